"""Functions with a derivative of their own.

What such a function keeps apart is for its derivative to say, not for its value: of a
surrogate gradient, of a straight-through estimator, of a check that raises an error,
the declared derivative is what credit flows along. It is judged from its equations, so
that nothing depends on rounding, and no function of the user is run on made-up numbers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from ._batched import no_tangent
from ._program import (
    CUSTOM,
    Equation,
    Program,
    Var,
    has_while,
    inner_jaxprs,
    trace_program,
)


def pushforward(equation: Equation, j: int) -> Program | None:
    """The derivative by operand `j`, as a program of all operands and a tangent.

    It gives a tangent of every result, zero of those that have none. None if there is
    no such derivative: JAX has none, or what stands for it is not linear.
    """
    # A solver: its derivative takes seconds to trace, and mixes.
    if any(map(has_while, inner_jaxprs(equation.params.values()))):
        return None
    structs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in equation.inputs]
    try:
        program = trace_program(
            lambda *operands: _pushed(equation, j, operands[:-1], operands[-1]),
            [*structs, structs[j]],
        )
    except Exception:  # whatever the user's derivative raises: there is none
        return None
    # The coefficients of a linear function are of no interest, and a derivative may
    # well use the function itself.
    moving = program.reached_from(program.inputs[-1:])
    varying = program.reached_from(program.inputs[:-1])
    kept = [
        e
        for e in program.equations
        if moving.intersection(e.outputs) or not varying.intersection(e.outputs)
    ]
    return dataclasses.replace(program, equations=tuple(kept))


def _pushed(
    equation: Equation, j: int, operands: Sequence[Array], tangent: Array
) -> list[Array]:
    inexact = [n for n, v in enumerate(equation.outputs) if v.inexact]

    def of_operand(x: Array) -> list[Array]:
        outputs = equation.fun(*operands[:j], x, *operands[j + 1 :])
        return [outputs[n] for n in inexact]

    if equation.name == "custom_jvp_call":
        _, found = jax.jvp(of_operand, (operands[j],), (tangent,))
    else:
        # JAX goes backwards through it only. That way is linear, and is transposed.
        results, pull = jax.vjp(of_operand, operands[j])
        backwards = lambda *cotangents: pull(list(cotangents))[0]  # noqa: E731
        like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
        found = jax.linear_transpose(backwards, *like)(tangent)
    every = [jnp.zeros(v.shape, v.dtype) for v in equation.outputs]
    for n, x in zip(inexact, found, strict=True):
        every[n] = x
    return every


def is_narrow(equation: Equation) -> bool:
    """Whether a function broadcasts some of its operands, such as one slope for all."""
    shape = equation.outputs[0].shape if equation.outputs else ()
    return equation.name in CUSTOM and any(
        v.inexact and v.shape != shape for v in equation.inputs
    )


def widened(equation: Equation) -> list[Equation]:
    """The same with every operand in the shape of the results.

    What is shared by all elements meets each of them then: it has a derivative there.
    """
    shape = equation.outputs[0].shape
    narrow = [
        j for j, v in enumerate(equation.inputs) if v.inexact and v.shape != shape
    ]
    result, inputs = [], list(equation.inputs)
    for j in narrow:
        wide = Var(shape, inputs[j].dtype)
        spread = lambda x: [jnp.broadcast_to(x, shape)]  # noqa: E731
        result.append(
            Equation(
                "broadcast_in_dim", spread, (inputs[j],), (wide,), {}, equation.source
            )
        )
        inputs[j] = wide
    fun = _of_wide(equation, narrow)
    return [
        *result,
        Equation(
            equation.name,
            fun,
            tuple(inputs),
            equation.outputs,
            equation.params,
            equation.source,
            equation.body,
        ),
    ]


def _of_wide(
    equation: Equation, narrow: Sequence[int]
) -> Callable[..., Sequence[Array]]:
    """An element of the result has its slope by its own element of each operand."""
    shapes = {j: equation.inputs[j].shape for j in narrow}

    def narrowed(operands: Sequence[Any]) -> list[Any]:
        return [
            _first(x, shapes[j]) if j in shapes else x for j, x in enumerate(operands)
        ]

    @jax.custom_jvp
    def fun(*operands: Array) -> Sequence[Array]:
        return equation.fun(*narrowed(operands))

    def rule(primals: Sequence[Array], tangents: Sequence[Any]):
        own = narrowed(primals)
        results = equation.fun(*own)
        totals = [no_tangent(x) for x in results]
        for j, tangent in enumerate(tangents):
            if isinstance(tangent, SymbolicZero):
                continue
            slopes = _pushed(equation, j, own, jnp.ones_like(own[j]))
            for n, v in enumerate(equation.outputs):
                if v.inexact:
                    totals[n] = totals[n] + slopes[n] * tangent
        return results, totals

    fun.defjvp(rule, symbolic_zeros=True)
    return fun


def _first(x: Array, shape: tuple[int, ...]) -> Array:
    """Undoes a broadcast."""
    if shape == ():
        return x[(0,) * x.ndim]
    return x[tuple(slice(0, n) for n in shape)]
