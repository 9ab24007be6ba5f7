"""Programs evaluated for many steps and many examples at once.

A program is written for one step of one example. Here each of its values may have one
axis in front, over the batch or over time and batch together; weights have none. Each
equation is mapped over that axis, so that a gradient with respect to a weight is one
product over time and batch. (Two axes would do as well, but then XLA copies what it
contracts.)
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from .._model import BatchAxis
from .ir import Edge, Program, Var


@dataclasses.dataclass(frozen=True)
class Value:
    """An array and what its leading axis is.

    `depth` is 0 if there is none, 1 for the batch, 2 for time and batch, `[k * batch]`.
    """

    array: Any
    depth: int

    @property
    def lead(self) -> int:
        """The number of leading axes."""
        return min(self.depth, 1)

    def spread(self, k: int, batch: int) -> "Value":
        """The same for all steps and examples."""
        if self.depth == 2:
            return self
        x = jnp.asarray(self.array)
        own = x.shape[self.lead :]
        x = jnp.broadcast_to(x if self.depth else x[None], (k, batch, *own))
        return Value(x.reshape(k * batch, *own), 2)

    def widen(self, shape: tuple[int, ...]) -> "Value":
        """Broadcasts what there is of one example to `shape`."""
        lead, own = self.array.shape[: self.lead], self.array.shape[self.lead :]
        if own == shape:
            return self
        x = self.array.reshape(*lead, *(1,) * (len(shape) - len(own)), *own)
        return Value(jnp.broadcast_to(x, (*lead, *shape)), self.depth)


Env = dict[Var, Value]


def run(
    program: Program,
    env: Env,
    equations: Iterable[int] | None = None,
    *,
    edge: Callable[[Edge, Value], Value] = lambda edge, value: value,
    faster: Mapping[int, Callable] = {},  # noqa: B006 (read only)
) -> Env:
    """Evaluates `equations` (all, if None, in order) over `env`, which is extended.

    **Arguments:**

    - `edge`: may replace any value at the place where it is read.
    - `faster`: by equation, another way to compute its value, not its derivative, where
        that has a leading axis.
    """
    env.update((v, Value(c, 0)) for v, c in program.constants.items() if v not in env)
    order = range(len(program.equations)) if equations is None else equations
    for i in order:
        equation = program.equations[i]
        operands = [edge((i, j), env[v]) for j, v in enumerate(equation.inputs)]
        operands = aligned(operands)
        depth = depth_of(program, i, [o.depth for o in operands])
        arrays, fun = [o.array for o in operands], operation(program, i, operands)
        if depth and i in faster:
            results = recall(fun, arrays, faster[i](*arrays))
        else:
            results = fun(*arrays)
        values = (Value(x, depth) for x in results)
        env.update(zip(equation.outputs, values, strict=True))
    return env


def depth_of(program: Program, i: int, operands: Sequence[int]) -> int:
    """The depth of what an operation gives, from that of its operands."""
    if program.equations[i].primitive.over_batch:
        return 0
    return max(operands, default=0) or int(program.over(i) is not None)


def _of_one_shape(shape: tuple[int, ...], operands: Sequence[Value]) -> bool:
    """Whether a primitive takes operands as they are, leading axis and all. (Mapping it
    would come to the same, and take longer to trace.)"""
    return all(
        x.array.shape[1:] == shape if x.depth else jnp.shape(x.array) == () != shape
        for x in operands
    )


def mapped(fun: Callable, operands: Sequence[Value], out_axes: Any = 0) -> Callable:
    """`fun` over the leading axis of the operands that have one."""
    axes = [0 if o.depth else None for o in operands]
    return jax.vmap(fun, axes, out_axes) if 0 in axes else fun


def operation(program: Program, i: int, operands: Sequence[Value]) -> Callable:
    """An operation over all steps and examples; it may name the axis of the batch."""
    equation, axis = program.equations[i], program.over(i)
    fun = equation.fun
    if equation.plain and _of_one_shape(equation.outputs[0].shape, operands):
        return fun
    if axis is None:
        depth = depth_of(program, i, [o.depth for o in operands])
        return mapped(fun, operands, 0 if depth else None)
    return _over_batch(fun, operands, axis)


def _over_batch(fun: Callable, operands: Sequence[Value], axis: BatchAxis) -> Callable:
    """`fun`, which names the axis of the batch, of all examples and of every step."""
    axes = [0 if o.depth else None for o in operands]
    every = jax.vmap(fun, axes, axis_name=axis.name, axis_size=axis.size)
    if 0 not in axes:
        return every

    def of_steps(*arrays: Array) -> Sequence[Array]:
        apart = [
            x.reshape(len(x) // axis.size, axis.size, *x.shape[1:]) if o.depth else x
            for o, x in zip(operands, arrays, strict=True)
        ]
        results = mapped(every, operands)(*apart)
        return [x.reshape(len(x) * axis.size, *x.shape[2:]) for x in results]

    return of_steps


def aligned(operands: list[Value]) -> list[Value]:
    """Repeats values of the batch for all steps where they meet others of all steps."""
    rows = {len(o.array) for o in operands if o.depth == 2}
    if not rows:
        return operands
    (rows,) = rows
    return [
        o.spread(rows // len(o.array), len(o.array)) if o.depth == 1 else o
        for o in operands
    ]


def recall(fun: Callable, operands: Sequence, known: Sequence) -> Sequence:
    """`known`, with the derivative of `fun(*operands)`."""

    @jax.custom_jvp
    def call(known, *operands):
        return known

    def rule(primals, tangents):
        known, *operands = primals
        _, *tangents = tangents
        moving = [not isinstance(t, SymbolicZero) for t in tangents]

        def of_moving(*some):
            left = iter(some)
            return fun(*(next(left) if m else o for m, o in zip(moving, operands)))

        if not any(moving):
            return known, list(map(no_tangent, known))
        # The value itself is not used, and so not computed.
        _, tangent = jax.jvp(
            of_moving,
            [o for m, o in zip(moving, operands) if m],
            [t for m, t in zip(moving, tangents) if m],
        )
        return known, list(tangent)

    call.defjvp(rule, symbolic_zeros=True)
    return call(list(known), *operands)


def no_tangent(x: Array) -> Any:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.zeros_like(x) if inexact else np.zeros(x.shape, jax.dtypes.float0)


def stopped(where: Mapping[Edge, np.ndarray], edge: Edge, value: Value) -> Value:
    """The value read at an edge, gradients stopped where it says so."""
    if edge not in where:
        return value
    value = value.widen(where[edge].shape)
    held = lax.stop_gradient(value.array)
    return Value(jnp.where(where[edge], held, value.array), value.depth)


def take(values: Array, positions: np.ndarray) -> Array:
    """Takes values [..., P] of a group to the elements of a site, [..., b, p, o]."""
    size, flat = values.shape[-1], positions.reshape(-1)
    n, rest = divmod(flat.size, size)
    if rest or (flat != np.tile(np.arange(size), n)).any():
        return values[..., np.maximum(positions, 0)]
    # One weight per neuron, or several gates side by side. Gathers are slow, and so is
    # on CPU what XLA makes of a broadcast that is read with another shape.
    tiled = jnp.concatenate([values] * n, axis=-1)
    return tiled.reshape(*values.shape[:-1], *positions.shape)
