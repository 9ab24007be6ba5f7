"""Products of products: `B @ (A @ x)` is one product with the weight `B @ A`.

Between the two lies a vector that no position holds, so that A would have no trace by
itself. With low-rank weights and adapters both are factors of one weight expression,
and their site is the product of the two.
"""

import collections
import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .forms import LinearForm, linear_form, of_form
from .ir import Equation, Program, Var
from .primitive import Primitive


def merge_products(
    program: Program, params: Iterable[Var], data: Iterable[Var], new: Iterable[Var]
) -> Program:
    """The program with every chain of two products on the way to the new state as one.

    Of products of two weights with parameters in them, the first of which nothing else
    reads.
    """
    params, data, new = map(tuple, (params, data, new))
    while True:
        joined = _join_one(program, params, data, new)
        if joined is None:
            return program
        program = joined


def _join_one(
    program: Program, params: Iterable[Var], given: Iterable[Var], new: Iterable[Var]
) -> Program | None:
    made = {v: i for i, e in enumerate(program.equations) for v in e.outputs}
    readers = collections.Counter(v for e in program.equations for v in e.inputs)
    data = program.reached_from(given)
    weights = program.reached_from(params) - data
    for i in program.needed(new):
        outer = program.equations[i]
        j = _weight_of(outer, weights, data)
        between = None if j is None else outer.inputs[1 - j]
        if between not in made or readers[between] > 1 or between in program.outputs:
            continue
        first = made[between]
        inner = program.equations[first]
        k = _weight_of(inner, weights, data)
        pair = None if j is None or k is None else _joined(inner, k, outer, j)
        if pair is not None:
            before = program.equations[:first] + program.equations[first + 1 : i]
            equations = (*before, *pair, *program.equations[i + 1 :])
            return dataclasses.replace(program, equations=equations)
    return None


def _weight_of(equation: Equation, weights: set[Var], data: set[Var]) -> int | None:
    """Which operand of a product is the weight, if one is and the other is data."""
    if not equation.primitive.multiplies:
        return None
    for j, v in enumerate(equation.inputs):
        if v in weights and equation.inputs[1 - j] in data:
            return j
    return None


def _joined(
    inner: Equation, k: int, outer: Equation, j: int
) -> tuple[Equation, Equation] | None:
    """The product of the weights, and that of the result with the data."""
    first, second = linear_form(inner, k), linear_form(outer, j)
    if first is None or second is None or {first.sizes[0], second.sizes[0]} != {1}:
        return None
    (u,), (z,) = inner.outputs, outer.outputs
    order = _order(first, second, u, j)
    if order is None:
        return None
    a, x, b = inner.inputs[k], inner.inputs[1 - k], outer.inputs[j]

    def weight(a: Array, b: Array) -> list[Array]:
        a = first.canonical_weight(a)[0][order]
        return [second.canonical_weight(b).astype(z.dtype) @ a.astype(z.dtype)]

    def local_input(weight: Array, x: Array) -> Array:
        return first.local_input(*((weight, x) if k == 0 else (x, weight)))

    def product(weight: Array, x: Array) -> list[Array]:
        x = local_input(weight, x).astype(z.dtype)
        result = jnp.einsum("bpc,boc->bpo", x, weight)
        return [second.from_canonical(result, z.shape)]

    sizes = (1, first.sizes[1], second.sizes[2], first.sizes[3])
    w = Var((1, sizes[2], sizes[3]), z.dtype)
    form = LinearForm(sizes, local_input, second.canonical, lambda w: w)
    source = outer.source
    return (
        Equation(_OF_WEIGHTS, weight, (a, b), (w,), {}, source),
        Equation(of_form(form), product, (w, x), (z,), {}, source),
    )


_OF_WEIGHTS = Primitive("product of weights")


def _order(first: LinearForm, second: LinearForm, u: Var, j: int) -> np.ndarray | None:
    """Which output of the first product is which input of the second, if the same
    everywhere."""
    ids = np.arange(u.size).reshape(u.shape)
    given = np.asarray(first.canonical(ids))[0]
    with jax.ensure_compile_time_eval():
        numbers = jnp.asarray(ids)
        operands = (None, numbers) if j == 0 else (numbers, None)
        taken = np.asarray(second.local_input(*operands))[0]
    if given.shape != taken.shape:
        return None
    orders = np.argsort(given, axis=1)
    orders = np.take_along_axis(orders, np.argsort(np.argsort(taken)), axis=1)
    same = (np.take_along_axis(given, orders, axis=1) == taken).all()
    return orders[0] if same and (orders == orders[:1]).all() else None
