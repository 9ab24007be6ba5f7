"""Derivatives of operations that JAX, or XLA, has not got right.

Of a loop of unknown length JAX knows the derivative forwards only. Its Jacobian is
found that way, number by number, or all at once where no number meets another: times a
tangent, it has a transpose.

The derivative of a maximum asks which elements equal it. XLA may compute an element
once for the maximum and once more for the comparison, and differ in the last digit:
then none does (seen with JAX 0.10.2 on CPU). Here those count that are equal to a few
digits less.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from ._batched import no_tangent
from ._bodies import find_body_blocks
from ._primitives import Primitives
from ._program import Equation, Program


def with_derivatives(program: Program) -> Program:
    """The program with such operations in their own stead."""
    equations = tuple(
        dataclasses.replace(e, fun=_OWN[e.name](e)) if e.name in _OWN else e
        for e in program.equations
    )
    return dataclasses.replace(program, equations=equations)


def _with_transpose(equation: Equation) -> Callable[..., Sequence[Array]]:
    fun = jax.custom_jvp(equation.fun)

    def rule(primals: Sequence[Any], tangents: Sequence[Any]):
        primals = list(map(jnp.asarray, primals))
        outputs = equation.fun(*primals)
        result = [no_tangent(o) for o in outputs]
        for j, t in enumerate(tangents):
            if not isinstance(t, SymbolicZero):
                for n, part in _moved(equation, primals, j, t).items():
                    result[n] = result[n] + part
        return outputs, result

    fun.defjvp(rule, symbolic_zeros=True)
    return fun


def _moved(
    equation: Equation, primals: Sequence[Array], j: int, tangent: Array
) -> dict[int, Array]:
    """The Jacobian of each result by operand j, times a tangent."""
    inexact = [n for n, v in enumerate(equation.outputs) if v.inexact]

    def of_operand(x: Array) -> list[Array]:
        outputs = equation.fun(*primals[:j], x, *primals[j + 1 :])
        return [outputs[n] for n in inexact]

    if _alone(equation, j):
        ones = jnp.ones_like(tangent)
        _, slopes = jax.jvp(of_operand, (primals[j],), (ones,))
        return {n: s * tangent for n, s in zip(inexact, slopes)}
    jacobians = jax.jacfwd(of_operand)(primals[j])
    product = functools.partial(jnp.tensordot, axes=tangent.ndim)
    return {n: product(m, tangent) for n, m in zip(inexact, jacobians)}


def _alone(equation: Equation, j: int) -> bool:
    """Whether each number of an operand meets none but itself, in every result."""
    shape = equation.inputs[j].shape
    if equation.body is None or any(
        v.shape != shape for v in equation.outputs if v.inexact
    ):
        return False
    blocks = find_body_blocks(equation, j, Primitives)
    own = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    return blocks is not None and all(
        np.array_equal(blocks.operand, own) and ((r == own) | (r == own.size)).all()
        for r, v in zip(blocks.results, equation.outputs)
        if v.inexact
    )


def _extremum(equation: Equation) -> Callable[..., Sequence[Array]]:
    """As in JAX, elements that are equal share the derivative."""
    fun, axes = jax.custom_jvp(equation.fun), tuple(equation.params["axes"])

    def rule(primals: Sequence[Any], tangents: Sequence[Any]):
        (x,), (tangent,) = primals, tangents
        (result,) = equation.fun(x)
        extreme = jnp.expand_dims(result, axes)
        size = jnp.where(jnp.isfinite(x), jnp.abs(x), 0)
        close = 8 * jnp.finfo(x.dtype).eps * jnp.max(size, axes, keepdims=True)
        equal = (jnp.abs(x - extreme) <= close) | (x == extreme)
        share = equal.astype(x.dtype)
        total = jnp.sum(share * tangent, axes) / jnp.sum(share, axes)
        return [result], [total]

    fun.defjvp(rule)
    return fun if equation.inputs[0].inexact else equation.fun


_OWN: dict[str, Callable[[Equation], Callable[..., Sequence[Array]]]] = {
    "reduce_max": _extremum,
    "reduce_min": _extremum,
    "while": _with_transpose,
}
