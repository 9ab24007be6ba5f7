"""Classifies the equations of a program, and says how each moves positions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .blocks import Blocks, find_blocks
from .control_flow import find_body_blocks, is_elementwise
from .ir import Edge, Equation, Program, Var
from .labels import LABEL, MIXED, UNSET, Labels, joined
from .primitive import Kind
from .primitives import SOLVE
from .solves import find_solve_blocks

NOTHING = -1  # the source of an element that no operand supplies (padding)


class Operations:
    """Classifies the equations of one program."""

    def __init__(self, program: Program, known: Mapping[Var, np.ndarray] | None = None):
        self.program = program
        self._known: dict[Var, np.ndarray | None] = {
            v: concrete(c) for v, c in program.constants.items()
        }
        self._known.update(known or {})
        self._producer = {v: e for e in program.equations for v in e.outputs}
        self.kinds = [self._classify(e) for e in program.equations]

    def known(self, var: Var) -> np.ndarray | None:
        """The value of `var` if it follows from concrete constants alone."""
        if var not in self._known:
            equation = self._producer.get(var)
            if equation is None:
                self._known[var] = None
            else:
                values = [self.known(v) for v in equation.inputs]
                self._known.update(zip(equation.outputs, _evaluated(equation, values)))
        return self._known[var]

    def _classify(self, equation: Equation) -> Kind:
        primitive = equation.primitive
        if equation.axes:
            return Kind.MIXING
        if primitive.kind in (Kind.STOP, Kind.MOVEMENT):
            return primitive.kind
        if primitive.indices is not None:
            indices = equation.inputs[primitive.indices]
            if all(self.known(v) is not None for v in indices):
                return Kind.MOVEMENT
        if is_by_element(equation):
            return Kind.ELEMENTWISE
        return Kind.MIXING

    def passes(self, edge: Edge) -> bool:
        """Whether gradients may flow on from what is read at an edge."""
        return self.kinds[edge[0]] is not Kind.STOP

    @functools.cache  # noqa: B019 (lives as long as the analysis)
    def blocks(self, edge: Edge) -> Blocks | None:
        """What a mixing operation keeps apart of one operand."""
        i, j = edge
        equation = self.program.equations[i]
        if equation.axes:
            return None
        if equation.body is not None or equation.has_own_derivative:
            return find_body_blocks(equation, j, of_body)
        if equation.primitive is SOLVE:
            return find_solve_blocks(equation, j, of_body)
        return find_blocks(equation, j, self.known)

    def arriving(
        self,
        i: int,
        operands: Sequence[np.ndarray | None],
        none: Any,
        mixed: Callable[[Edge, np.ndarray], Sequence[np.ndarray]] | None = None,
        more: tuple[int, ...] = (),
    ) -> list[list[np.ndarray]]:
        """What arrives at each result of an equation, of labels of its operands: one
        array for each way, to be joined.

        An elementwise operation has a way from each of its operands, a movement is one.
        Of a mixing operation, `mixed(edge, labels)` is what comes by an operand, per
        result; by default nothing does. Labels are `[*shape, *more]`, None for an
        operand that has none, `none` for an element.
        """
        equation = self.program.equations[i]
        kind, given = self.kinds[i], [o for o in operands if o is not None]
        if kind is Kind.STOP or not given:
            return [[] for _ in equation.outputs]
        if kind is Kind.MOVEMENT:
            return [[x] for x in self._moved(i, operands, none, more)]
        if kind is Kind.MIXING:
            pairs = [((i, j), o) for j, o in enumerate(operands) if o is not None]
            ways = [mixed(*pair) for pair in pairs] if mixed else []
            return [[way[n] for way in ways] for n in range(len(equation.outputs))]
        shape = (*equation.outputs[0].shape, *more)
        parts = [np.broadcast_to(o, shape) for o in given]
        return [parts for _ in equation.outputs]

    def carried(self, labels: Labels) -> Labels:
        """Labels of some values, and of all that depends on them, by whatever way."""
        labels = dict(labels)
        for i, equation in enumerate(self.program.equations):
            operands = [labels.get(v) for v in equation.inputs]
            found = self.arriving(i, operands, UNSET, self._in_blocks)
            for v, parts in zip(equation.outputs, found):
                if v.inexact and parts:
                    labels[v] = joined(parts)
        return labels

    def _in_blocks(self, edge: Edge, labels: np.ndarray) -> list[np.ndarray]:
        blocks = self.blocks(edge)
        if blocks is None:
            outputs = self.program.equations[edge[0]].outputs
            return [np.full(v.shape, MIXED) for v in outputs]
        return blocks.to_results(blocks.joined(labels))

    def _moved(
        self,
        i: int,
        operands: Sequence[np.ndarray | None],
        none: Any,
        more: tuple[int, ...],
    ) -> list[np.ndarray]:
        dtype = np.result_type(*(o.dtype for o in operands if o is not None))
        flat = [
            np.full((v.size, *more), none, dtype)
            if o is None
            else np.broadcast_to(o, (*v.shape, *more)).reshape(v.size, *more)
            for v, o in zip(self.program.equations[i].inputs, operands, strict=True)
        ]
        # Last, where `NOTHING` points to, is what no operand supplies.
        together = np.concatenate([*flat, np.full((1, *more), none, dtype)])
        return [together[s] for s in self.sources(i)]

    @functools.cache  # noqa: B019
    def sources(self, i: int) -> tuple[np.ndarray, ...]:
        """Where a movement takes its elements from.

        One array per output, in the output's shape: flat indices into the operands
        laid end to end, or `NOTHING`.
        """
        equation = self.program.equations[i]
        primitive = equation.primitive
        if primitive.sources is not None:
            return primitive.sources
        fixed = set(range(len(equation.inputs))[primitive.indices or slice(0, 0)])
        total = sum(v.size for v in equation.inputs)
        if primitive.move is not None and equation.params:
            ids = np.arange(total, dtype=LABEL)
            ends = np.cumsum([v.size for v in equation.inputs])[:-1]
            parts = zip(np.split(ids, ends), equation.inputs)
            operands = [x.reshape(v.shape) for x, v in parts]
            return primitive.move(equation, *operands)

        def move(first: int):
            operands, start = [], first
            for j, v in enumerate(equation.inputs):
                if j in fixed:
                    operands.append(jnp.asarray(self.known(v)))
                else:
                    ids = np.arange(start, start + v.size, dtype=np.int32)
                    operands.append(jnp.asarray(ids.reshape(v.shape)))
                start += v.size
            return map(np.asarray, equation.fun(*operands))

        # Numbers that come from no operand do not move with the numbering: what a
        # gather fills in out of bounds (possibly a NaN, cast to an integer).
        with jax.ensure_compile_time_eval(), np.errstate(invalid="ignore"):
            pairs = list(zip(move(0), move(total), strict=True))
        return tuple(np.asarray(np.where(b - a == total, a, NOTHING)) for a, b in pairs)


@functools.lru_cache(maxsize=256)
def of_body(program: Program) -> Operations:
    """The equations of a body. Functions that call functions are looked into from each
    of their operands, again and again."""
    return Operations(program)


def _evaluated(
    equation: Equation, values: Sequence[np.ndarray | None]
) -> list[np.ndarray | None]:
    """The results, if the operands are known."""
    if equation.axes or any(v is None for v in values):
        return [None for _ in equation.outputs]
    try:
        with jax.ensure_compile_time_eval():
            results = equation.fun(*map(jnp.asarray, values))
    except NotImplementedError:  # JAX 0.6 can evaluate no loop here
        return [None for _ in equation.outputs]
    return [concrete(x) for x in results]


def concrete(value: Any) -> np.ndarray | None:
    """The value, unless it is being traced or is of an opaque type (a PRNG key)."""
    opaque = jnp.issubdtype(jax.dtypes.result_type(value), jax.dtypes.extended)
    return None if isinstance(value, Tracer) or opaque else np.asarray(value)


def is_by_element(equation: Equation) -> bool:
    """Whether each element of the results depends on the same of every operand."""
    if not equation.outputs:
        return False
    shape = equation.outputs[0].shape
    if any(v.shape != shape for v in equation.outputs):
        return False
    if not all(broadcasts(v.shape, shape) for v in equation.inputs):
        return False
    if equation.has_own_derivative:
        return is_elementwise(equation, of_body)
    return equation.primitive.kind is Kind.ELEMENTWISE


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether a primitive broadcasts `shape` to `to`: a scalar, or axes of length 1."""
    same_rank = len(shape) == len(to)
    return shape == () or (
        same_rank and all(a in (1, b) for a, b in zip(shape, to, strict=True))
    )
