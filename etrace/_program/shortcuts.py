"""Movements that undo each other.

Where the state is taken apart, its parts are put together for the step, which may take
them apart itself: layers in one array under a loop, h and c in one vector. What is left
of such a pair is the part that went in, so that a value depends on what it reads, and
not on all that lay beside it.
"""

import dataclasses

import numpy as np

from .ir import Equation, Program, Var
from .operations import NOTHING, Operations
from .primitive import Kind
from .primitives import RESHAPE


def with_shortcuts(program: Program) -> Program:
    """Reads values where they come from, if movements only brought them here."""
    operations, end = Operations(program), 0
    begin: dict[Var, int] = {}  # the numbers of a value's own elements
    roots: dict[int, Var] = {}
    origin: dict[Var, np.ndarray] = {}  # of each element of what was moved
    same: dict[Var, Var] = {}
    equations = []
    for i, equation in enumerate(program.equations):
        inputs = tuple(same.get(v, v) for v in equation.inputs)
        equation = dataclasses.replace(equation, inputs=inputs)
        if operations.kinds[i] is Kind.MOVEMENT and equation.outputs[0].inexact:
            numbers = []
            for v in inputs:
                if v not in origin and v not in begin:
                    begin[v], roots[end] = end, v
                    end += v.size
                own = np.arange(v.size) + begin.get(v, 0)
                numbers.append(origin.get(v, own).reshape(-1))
            flat = np.concatenate(numbers)
            for v, at in zip(equation.outputs, operations.sources(i)):
                origin[v] = found = np.where(at == NOTHING, NOTHING, flat[at])
                root = roots.get(int(found.flat[0])) if found.size else None
                if root is None or not _is_whole(found, begin[root], root):
                    continue
                if root.shape == v.shape:
                    same[v] = root
                elif len(equation.outputs) == 1:
                    equation = _reshaped(equation, root, v)
        equations.append(equation)
    outputs = tuple(same.get(v, v) for v in program.outputs)
    return _without_unread(dataclasses.replace(program, outputs=outputs), equations)


def _is_whole(found: np.ndarray, begin: int, root: Var) -> bool:
    own = np.arange(begin, begin + root.size)
    return found.size == root.size and bool((found.reshape(-1) == own).all())


def _reshaped(equation: Equation, root: Var, to: Var) -> Equation:
    return dataclasses.replace(
        equation,
        primitive=RESHAPE,
        fun=lambda x: [x.reshape(to.shape)],
        inputs=(root,),
        params={},
    )


def _without_unread(program: Program, equations: list[Equation]) -> Program:
    """Without what was read before, and is not any more."""
    before = {v for e in program.equations for v in e.inputs}
    read, kept = set(program.outputs), []
    for equation in reversed(equations):
        if not before.isdisjoint(equation.outputs) and read.isdisjoint(
            equation.outputs
        ):
            continue
        read.update(equation.inputs)
        kept.append(equation)
    return dataclasses.replace(program, equations=tuple(reversed(kept)))
