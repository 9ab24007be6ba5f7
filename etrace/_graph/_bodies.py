"""What a loop, or a function with a derivative of its own, keeps apart.

Each axis of an operand is numbered, and the numbers are run through the body. An axis
is kept where no value of the body meets another number of it than its own; around a
loop, the numbers that come back must be those that went in.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._blocks import Blocks, first_labels
from ._kinds import Kind
from ._program import CUSTOM, Equation, Loop, Program, Var

_NONE, _SEVERAL = -1, -2

Numbers = dict[Var, np.ndarray]


def find_body_blocks(equation: Equation, j: int, classify: Callable) -> Blocks | None:
    """The blocks of operand j of an equation with a body; None if all is one block.

    `classify` makes `Primitives` of a program.
    """
    assert equation.body is not None
    shape, kept, found = equation.inputs[j].shape, [], []
    walk = functools.partial(_walk, classify(equation.body))
    for axis, size in enumerate(shape):
        along = [-1 if d == axis else 1 for d in range(len(shape))]
        numbers = np.broadcast_to(np.arange(size).reshape(along), shape)
        results = _around(equation, j, numbers, walk)
        if results is not None:
            kept.append(axis)
            found.append(results)
    sizes = [shape[a] for a in kept]
    if math.prod(sizes) == 1 and len(kept) < len(shape):
        return None
    strides = [math.prod(sizes[n + 1 :]) for n in range(len(sizes))]
    index = np.indices(shape)
    own = sum((s * index[a] for s, a in zip(strides, kept)), np.zeros(shape, int))
    blocks = Blocks(
        math.prod(sizes) + 1,
        own,
        tuple(
            _numbered([r[n] for r in found], strides, v.shape, math.prod(sizes))
            for n, v in enumerate(equation.outputs)
        ),
    )
    custom = equation.name in CUSTOM
    return blocks if not custom or _keeps_apart(equation, j, blocks) else None


def _numbered(found: list, strides: list[int], shape: tuple[int, ...], none: int):
    """Block numbers of a result; what depends on nothing is a block of its own."""
    total, missing = np.zeros(shape, int), np.zeros(shape, bool)
    for numbers, stride in zip(found, strides):
        total = total + stride * numbers
        missing |= numbers == _NONE
    return np.where(missing, none, total)


def _around(equation: Equation, j: int, numbers: np.ndarray, walk: Callable):
    """The numbers of all results, or None if they meet others than their own."""
    body, loop = equation.body, equation.loop or Loop(0, 0, 0)
    assert body is not None
    own = j - loop.conditions
    first = loop.constants + loop.carry
    if own < 0:
        return None
    if equation.loop and own >= first:  # one step of what the loop reads
        if (numbers != numbers[:1]).any():
            return None
        numbers = numbers[0]
    labels = {body.inputs[own]: numbers}
    while True:
        results = walk(labels)
        if results is None:
            return None
        carry = zip(body.inputs[loop.constants : first], results[: loop.carry])
        before = dict(labels)
        for v, out in carry:
            joined = _joined([labels.get(v, np.full(v.shape, _NONE)), out])
            if (joined == _SEVERAL).any():
                return None
            labels[v] = joined
        if all(v in before and (before[v] == x).all() for v, x in labels.items()):
            shapes = [v.shape for v in equation.outputs]
            return [np.broadcast_to(r, s) for r, s in zip(results, shapes)]


def _walk(primitives: Any, labels: Numbers) -> list[np.ndarray] | None:
    """The numbers of the outputs of a body; None if one has several."""
    program: Program = primitives.program
    labels = dict(labels)
    for i, equation in enumerate(program.equations):
        operands = [labels.get(v) for v in equation.inputs]
        kind = primitives.kinds[i]
        if kind is Kind.STOP or all(o is None for o in operands):
            continue
        if kind is Kind.MOVEMENT:
            found = primitives.moved(i, operands, _NONE)
        elif kind is Kind.ELEMENTWISE:
            shape = equation.outputs[0].shape
            parts = [np.broadcast_to(o, shape) for o in operands if o is not None]
            found = [_joined(parts)] * len(equation.outputs)
        else:
            found = _mixed(primitives, i, operands)
        labels.update((v, x) for v, x in zip(equation.outputs, found) if v.inexact)
    results = [labels.get(v, np.full(v.shape, _NONE)) for v in program.outputs]
    return None if any((r == _SEVERAL).any() for r in results) else results


def _mixed(primitives: Any, i: int, operands: list) -> list[np.ndarray]:
    outputs = primitives.program.equations[i].outputs
    found = [np.full(v.shape, _NONE) for v in outputs]
    for j, numbers in enumerate(operands):
        if numbers is None:
            continue
        blocks = primitives.blocks((i, j))
        if blocks is None:
            return [np.full(v.shape, _SEVERAL) for v in outputs]
        own = first_labels(numbers, blocks)
        other = (numbers != _NONE) & (numbers != blocks.to_operand(own))
        own[blocks.operand[other]] = _SEVERAL
        found = [_joined([f, r]) for f, r in zip(found, blocks.to_results(own))]
    return found


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    result = parts[0]
    for part in parts[1:]:
        clash = np.where(result == part, result, _SEVERAL)
        clash = np.where(part == _NONE, result, clash)
        result = np.where(result == _NONE, part, clash)
    return result


def _keeps_apart(equation: Equation, j: int, blocks: Blocks) -> bool:
    """Probes that a custom derivative keeps blocks apart, like its primal.

    vjp(m * r) == m * vjp(r), for a random r and a random number m for each block.
    """
    rng = np.random.default_rng(0)
    m = rng.normal(size=blocks.count)

    def probe(v: Var) -> Array:
        x = rng.normal(size=v.shape) if v.inexact else np.ones(v.shape)
        return jnp.asarray(x, v.dtype)

    with jax.ensure_compile_time_eval():
        operands = [probe(v) for v in equation.inputs]

        def fun(x: Array) -> list[Array]:
            outputs = equation.fun(*operands[:j], x, *operands[j + 1 :])
            return [o for o, v in zip(outputs, equation.outputs) if v.inexact]

        try:
            outputs, vjp = jax.vjp(fun, operands[j])
        except Exception:  # a derivative that cannot be taken here keeps nothing apart
            return False
        places = [b for b, v in zip(blocks.results, equation.outputs) if v.inexact]
        r = [probe(v) for v in equation.outputs if v.inexact]
        masked = [jnp.asarray(m[b], x.dtype) * x for b, x in zip(places, r)]
        (plain,), (found,) = vjp(r), vjp(masked)
        expected = m[blocks.operand] * np.asarray(plain)
        return np.allclose(found, expected, rtol=1e-3, atol=1e-6, equal_nan=True)
