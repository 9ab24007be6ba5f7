"""Derivatives that may be infinite, of weights in branches that are not taken.

A branch is evaluated whether it is taken or not, and its gradient times zero is NaN
where its derivative is infinite: of sqrt(w) at w = 0. JAX stops gradients where
operands enter the branch. A weight cannot be stopped there, since it has its trace
behind that (`sqrt(w)` is the weight of `sqrt(w) * x`), for steps that took the branch
and others together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

Function = Callable[..., Sequence[Any]]


def with_finite_slopes(fun: Function) -> Function:
    """An elementwise function whose derivative takes a zero to zero, even if it is
    infinite, and anything else to something infinite."""

    def times(slope: Array, tangent: Array) -> Array:
        finite, largest = jnp.isfinite(slope), jnp.finfo(slope.dtype).max
        sign = jnp.where(slope < 0, -jnp.ones_like(slope), jnp.ones_like(slope))
        result = jnp.where(finite, slope, sign) * tangent
        # In every dtype these overflow, of the smallest number too.
        for _ in range(3):
            result = jnp.where(finite, result, result * largest)
        return result

    return _with_rule(fun, lambda operands: operands, times)


def where_taken(fun: Function) -> Function:
    """An elementwise function of one more operand, the last: whether it has a
    derivative at all."""

    def times(slope: Array, tangent: Array, taken: Array) -> Array:
        return jnp.where(taken, slope, jnp.zeros_like(slope)) * tangent

    return _with_rule(fun, lambda operands: operands[:-1], times)


def _with_rule(
    fun: Function, own: Callable[[Sequence], Sequence], times: Callable[..., Array]
) -> Function:
    """`fun` of its own operands, its slopes multiplied with tangents by `times`, which
    is given the other operands as well."""

    @jax.custom_jvp
    def call(*operands: Array) -> Sequence[Array]:
        return fun(*own(operands))

    def rule(primals: Sequence[Array], tangents: Sequence[Any]):
        operands, results = own(primals), call(*primals)
        total = jnp.zeros_like(results[0])
        for j, tangent in enumerate(tangents[: len(operands)]):
            if not isinstance(tangent, SymbolicZero):
                slope = _slope(fun, operands, j, results[0].shape)
                tangent = jnp.broadcast_to(tangent, slope.shape)
                total = total + times(slope, tangent, *primals[len(operands) :])
        return results, [total]

    call.defjvp(rule, symbolic_zeros=True)
    return call


def _slope(
    fun: Function, operands: Sequence[Array], j: int, shape: tuple[int, ...]
) -> Array:
    """The derivative of each element by its own element of operand j, which may be one
    number for all."""

    def of_operand(x: Array) -> Array:
        return fun(*operands[:j], x, *operands[j + 1 :])[0]

    x = jnp.broadcast_to(operands[j], shape)
    return jax.jvp(of_operand, (x,), (jnp.ones_like(x),))[1]
