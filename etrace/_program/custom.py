"""Functions with a derivative of their own.

What such a function keeps apart is for its derivative to say, not for its value: of a
surrogate gradient, of a straight-through estimator, of a check that raises an error,
the declared derivative is what credit flows along. It is judged from its equations, so
that nothing depends on rounding, and no function of the user is run on made-up numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from .evaluate import no_tangent
from .ir import Equation, Program, Var
from .jaxprs import has_while, inner_jaxprs
from .primitives import BROADCAST, CUSTOM_VJP
from .trace import trace_program


@functools.lru_cache(maxsize=256)
def pushforward(equation: Equation) -> Program | None:
    """The derivative as a program of all operands and a tangent of each inexact one.

    It gives a tangent of every result, zero of those that have none. None if there is
    no such derivative: JAX has none, or what stands for it is not linear. (All tangents
    are there at once, since a rule may ask which are.)
    """
    # A solver: its derivative takes seconds to trace, and mixes.
    if _is_solver(equation):
        return None
    structs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in equation.inputs]
    moving, n = inexact(equation), len(structs)
    try:
        program = trace_program(
            lambda *args: _pushed(equation, moving, args[:n], args[n:]),
            [*structs, *(structs[j] for j in moving)],
        )
    except Exception:  # whatever the user's derivative raises: there is none
        return None
    # The coefficients of a linear function are of no interest, and a derivative may
    # well use the function itself.
    linear = program.reached_from(program.inputs[n:])
    varying = program.reached_from(program.inputs[:n])
    kept = [
        e
        for e in program.equations
        if linear.intersection(e.outputs) or not varying.intersection(e.outputs)
    ]
    return _by_value(dataclasses.replace(program, equations=tuple(kept)))


def _by_value(program: Program) -> Program | None:
    """The same, the bodies of functions with a derivative of their own in their place:
    a tangent that such a function is applied to goes through its value. (A function
    may well be its own derivative.)"""
    equations, constants = list[Equation](), dict(program.constants)
    same: dict[Var, Var] = {}
    for e in program.equations:
        e = dataclasses.replace(e, inputs=tuple(same.get(v, v) for v in e.inputs))
        if not e.has_own_derivative:
            equations.append(e)
            continue
        # What does more than compute (a check) has no body: as it is linear there, its
        # derivative is its value.
        tangents = [] if e.body is not None else [e.inputs[j] for j in inexact(e)]
        body = pushforward(e) if e.body is None else _by_value(e.body)
        if body is None:
            return None
        found, outputs = body.applied([*e.inputs, *tangents])
        equations += found
        constants.update(body.constants)
        same.update(zip(e.outputs, outputs, strict=True))
    outputs = tuple(same.get(v, v) for v in program.outputs)
    return Program(program.inputs, outputs, tuple(equations), constants)


def is_linear(equation: Equation) -> bool:
    """Whether the derivative of a function is linear in what comes back, as far as that
    is looked at: it is not if it clips or scales it."""
    own = equation.primitive.has_own_derivative
    looked_at = own and not _is_solver(equation)
    return not looked_at or pushforward(equation) is not None


def is_assumed_linear(equation: Equation) -> bool:
    """Whether that is not looked at, and the user's word (JAX sees to it that
    derivatives forwards are)."""
    return equation.primitive is CUSTOM_VJP and _is_solver(equation)


def _is_solver(equation: Equation) -> bool:
    return any(map(has_while, inner_jaxprs(equation.params.values())))


def inexact(equation: Equation) -> list[int]:
    """The operands that have a tangent."""
    return [j for j, v in enumerate(equation.inputs) if v.inexact]


def _pushed(
    equation: Equation,
    moving: Sequence[int],
    operands: Sequence[Array],
    tangents: Sequence[Array],
) -> list[Array]:
    """Tangents of the results, for those of some operands."""
    results = [n for n, v in enumerate(equation.outputs) if v.inexact]

    def of_moving(*some: Array) -> list[Array]:
        arguments = list(operands)
        for j, x in zip(moving, some, strict=True):
            arguments[j] = x
        outputs = equation.fun(*arguments)
        return [outputs[n] for n in results]

    own = [operands[j] for j in moving]
    if equation.primitive is not CUSTOM_VJP:
        _, found = jax.jvp(of_moving, own, list(tangents))
    else:
        # JAX goes backwards through it only. That way is linear, and is transposed.
        values, pull = jax.vjp(of_moving, *own)
        backwards = lambda *cotangents: pull(list(cotangents))  # noqa: E731
        like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in values]
        found = jax.linear_transpose(backwards, *like)(tuple(tangents))
    every = [jnp.zeros(v.shape, v.dtype) for v in equation.outputs]
    for n, x in zip(results, found, strict=True):
        every[n] = x
    return every


def is_narrow(equation: Equation) -> bool:
    """Whether a function broadcasts some of its operands, such as one slope for all."""
    shape = equation.outputs[0].shape if equation.outputs else ()
    return (
        equation.has_own_derivative
        and not equation.axes
        and any(v.inexact and v.shape != shape for v in equation.inputs)
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
            Equation(BROADCAST, spread, (inputs[j],), (wide,), {}, equation.source)
        )
        inputs[j] = wide
    fun = _of_wide(equation, narrow)
    return [*result, dataclasses.replace(equation, fun=fun, inputs=tuple(inputs))]


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
            slopes = _pushed(equation, [j], own, [jnp.ones_like(own[j])])
            for n, v in enumerate(equation.outputs):
                if v.inexact:
                    totals[n] = totals[n] + slopes[n] * tangent.astype(v.dtype)
        return results, totals

    fun.defjvp(rule, symbolic_zeros=True)
    return fun


def _first(x: Array, shape: tuple[int, ...]) -> Array:
    """Undoes a broadcast."""
    if shape == ():
        return x[(0,) * x.ndim]
    return x[tuple(slice(0, n) for n in shape)]
