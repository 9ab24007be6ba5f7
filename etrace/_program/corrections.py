"""Derivatives of operations that JAX, or XLA, has not got right.

Of a function with a derivative of its own, JAX has that by what all elements share, not
by what it is at each of them.

Of a loop of unknown length JAX knows the derivative forwards only. Its Jacobian is
found that way, number by number, or all at once where no number meets another: times a
tangent, it has a transpose.

The derivative of a maximum asks which elements equal it. XLA may compute an element
once for the maximum and once more for the comparison, and differ in the last digit:
then none does, and 0/0 is NaN (seen with JAX 0.10.2 on CPU). Here the element that the
search for the largest names counts in any case.
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

from .control_flow import find_body_blocks
from .custom import inexact, is_narrow, widened
from .evaluate import no_tangent
from .ir import Equation, Program, Var
from .jaxprs import has_while
from .operations import Operations, is_by_element
from .primitive import Rewritten
from .primitives import MAXIMUM


def with_derivatives(program: Program) -> Program:
    """The program with such operations in their own stead."""
    equations: list[Equation] = []
    read = {*program.outputs, *(v for e in program.equations for v in e.inputs)}
    for e in (part for e in program.equations for part in _parts(e, read)):
        if e.primitive.rewritten is not None:
            fun = _REWRITTEN[e.primitive.rewritten](e)
            equations.append(dataclasses.replace(e, fun=fun))
        elif is_narrow(e) and is_by_element(e):
            equations += widened(e)
        else:
            equations.append(e)
    return dataclasses.replace(program, equations=tuple(equations))


def _parts(equation: Equation, read: set[Var]) -> list[Equation]:
    """Of a function with a derivative of its own: the results that have one, and the
    others if they are read. (The error code of a solver is one for all neurons, which
    its solution keeps apart.)"""
    kinds = [v.inexact for v in equation.outputs]
    if not equation.has_own_derivative or equation.effect or len({*kinds}) < 2:
        return [equation]

    def part(kind: bool) -> Equation:
        chosen = [n for n, k in enumerate(kinds) if k == kind]
        fun = lambda *xs: [equation.fun(*xs)[n] for n in chosen]  # noqa: E731
        outputs = tuple(equation.outputs[n] for n in chosen)
        body = equation.body
        if body is not None:
            inner = tuple(body.outputs[n] for n in chosen)
            body = dataclasses.replace(body, outputs=inner)
        return dataclasses.replace(equation, fun=fun, outputs=outputs, body=body)

    parts = [part(True), part(False)]
    return [p for p in parts if not read.isdisjoint(p.outputs)]


def _with_transpose(equation: Equation, each: Callable = lambda fun: fun) -> Callable:
    """`each` may change how a batch is computed."""
    value = each(equation.fun)
    fun = jax.custom_jvp(value)
    slopes = [each(functools.partial(_slopes, equation, j)) for j in inexact(equation)]

    def rule(primals: Sequence[Any], tangents: Sequence[Any]):
        primals = list(map(jnp.asarray, primals))
        outputs = value(*primals)
        result = [no_tangent(o) for o in outputs]
        results = [n for n, v in enumerate(equation.outputs) if v.inexact]
        for j, slope in zip(inexact(equation), slopes, strict=True):
            t = tangents[j]
            if isinstance(t, SymbolicZero):
                continue
            alone = _alone(equation, j)
            for n, s in zip(results, slope(*primals), strict=True):
                result[n] += s * t if alone else jnp.tensordot(s, t, t.ndim)
        return outputs, result

    fun.defjvp(rule, symbolic_zeros=True)
    return fun


def _slopes(equation: Equation, j: int, *primals: Array) -> list[Array]:
    """The derivative of each inexact result by operand j: a Jacobian, or a slope for
    each number where none meets another."""

    def of_operand(x: Array) -> list[Array]:
        outputs = equation.fun(*primals[:j], x, *primals[j + 1 :])
        return [o for o, v in zip(outputs, equation.outputs) if v.inexact]

    if _alone(equation, j):
        return jax.jvp(of_operand, (primals[j],), (jnp.ones_like(primals[j]),))[1]
    return jax.jacfwd(of_operand)(primals[j])


def _alone(equation: Equation, j: int) -> bool:
    """Whether each number of an operand meets none but itself, in every result."""
    shape = equation.inputs[j].shape
    if equation.body is None or any(
        v.shape != shape for v in equation.outputs if v.inexact
    ):
        return False
    blocks = find_body_blocks(equation, j, Operations)
    own = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    return blocks is not None and all(
        np.array_equal(blocks.operand, own) and ((r == own) | (r == own.size)).all()
        for r, v in zip(blocks.results, equation.outputs)
        if v.inexact
    )


def _extremum(equation: Equation) -> Callable[..., Sequence[Array]]:
    """As in JAX, elements that are equal share the derivative."""
    if not equation.inputs[0].inexact:
        return equation.fun
    fun, axes = jax.custom_jvp(equation.fun), tuple(equation.params["axes"])
    search = jnp.argmax if equation.primitive is MAXIMUM else jnp.argmin

    def rule(primals: Sequence[Any], tangents: Sequence[Any]):
        (x,), (tangent,) = primals, tangents
        (result,) = equation.fun(x)
        extreme = jnp.expand_dims(result, axes)
        # Ties are found by comparing; that there is one at all, by searching. Of NaN
        # there is none: 0/0, as in JAX.
        largest = (x == extreme) | (_named(search, x, axes) & ~jnp.isnan(extreme))
        share = largest.astype(x.dtype)
        total = jnp.sum(share * tangent, axes) / jnp.sum(share, axes)
        return [result], [total]

    fun.defjvp(rule)
    return fun


def _named(search: Callable, x: Array, axes: tuple[int, ...]) -> Array:
    """Where the element lies that a search over several axes finds."""
    first = jnp.moveaxis(x, axes, range(len(axes)))
    rows = first.reshape(-1, *first.shape[len(axes) :])
    number = jnp.arange(len(rows)).reshape(-1, *(1,) * (rows.ndim - 1))
    found = number == search(rows, axis=0)[None]
    return jnp.moveaxis(found.reshape(first.shape), range(len(axes)), axes)


def _branches(equation: Equation) -> Callable[..., Sequence[Array]]:
    """A branch that might not come to an end is run only where it is taken."""
    endless = any(map(has_while, equation.params["branches"]))
    return _with_transpose(equation, _one_by_one) if endless else equation.fun


def _one_by_one(fun: Callable[..., Sequence[Array]]) -> Callable[..., Sequence[Array]]:
    """`fun`, which is not computed for a whole batch at once."""
    alone = jax.custom_batching.custom_vmap(lambda *operands: list(fun(*operands)))

    @alone.def_vmap
    def rule(size: int, batched: Sequence[bool], *operands: Array):
        def one(moving: Sequence[Array]) -> list[Array]:
            own = iter(moving)
            return alone(*(next(own) if b else x for b, x in zip(batched, operands)))

        moving = [x for b, x in zip(batched, operands) if b]
        results = jax.lax.map(one, moving)
        return results, [True for _ in results]

    return alone


_REWRITTEN: dict[Rewritten, Callable[[Equation], Callable[..., Sequence[Array]]]] = {
    Rewritten.BRANCHES: _branches,
    Rewritten.EXTREMUM: _extremum,
    Rewritten.FORWARDS: _with_transpose,
}
