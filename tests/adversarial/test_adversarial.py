"""What JAX defines, JAX decides: at ties, masks, ends of ranges, in every precision.

A step is rewritten before it is analysed: branches become selections, short loops are
unrolled, some operations have a derivative of the library's. Value and derivative stay
those of JAX at values where that is easily lost.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from etrace._program.corrections import with_derivatives
from etrace._program.evaluate import Value, run
from etrace._program.trace import trace_program

from ..helpers import examples, fresh_caches
from .operations import OPERATIONS, SIZE
from .programs import DTYPES, Net, Spec, make, spec_of

ROWS = 3


def flat_step(net: Net) -> tuple[Callable[..., list[Array]], list[Array]]:
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(params)

    def step(*arguments: Array) -> list[Array]:
        own = treedef.unflatten(arguments[: len(leaves)])
        return jax.tree.leaves(eqx.combine(own, rest)(*arguments[len(leaves) :])[0])

    return step, leaves


def rewritten(step: Callable, leaves: list[Array], data: list[Array]) -> Callable:
    """The step as the library evaluates it, for all rows at once."""
    one = [x[0] for x in data]
    program = with_derivatives(
        trace_program(step, [*leaves, *one], params=len(leaves), fixed=len(leaves))
    )

    def of_rows(*arguments: Array) -> list[Array]:
        depths = [0] * len(leaves) + [2] * len(data)
        pairs = zip(program.inputs, map(Value, arguments, depths), strict=True)
        env = run(program, dict(pairs))
        return [env[v].spread(ROWS, 1).array for v in program.outputs]

    return of_rows


def by_jax(step: Callable, leaves: list[Array], data: list[Array], cts: list[Array]):
    """Values, and cotangents of every argument, row by row as JAX has them."""
    rows = []
    for r in range(ROWS):
        values, pull = jax.vjp(step, *leaves, *(x[r] for x in data))
        rows.append((values, pull([c[r] for c in cts])))
    found = list(zip(*(g for _, g in rows)))
    with np.errstate(invalid="ignore", over="ignore"):
        weights = [sum(np.asarray(g, float) for g in gs) for gs in found[: len(leaves)]]
    values = [np.stack(v) for v in zip(*(v for v, _ in rows))]
    return values, [*weights, *map(np.stack, found[len(leaves) :])]


def agree(ours: Any, theirs: Any, dtype: Any, what: str) -> None:
    """To rounding, wherever JAX has a number that the dtype can hold (a sum over rows
    may be larger).

    Rounding is that of ordinary numbers: a huge one beside others excuses nothing.
    """
    ours, theirs = (np.asarray(x, np.longdouble) for x in (ours, theirs))
    number = np.abs(theirs) <= float(jnp.finfo(dtype).max)
    ours, theirs = ours[number], theirs[number]
    size, eps = np.abs(theirs), float(jnp.finfo(dtype).eps)
    ordinary = np.max(size, initial=0.0, where=size < 1e3)
    with np.errstate(invalid="ignore"):
        right = np.abs(ours - theirs) <= 64 * eps * (size + ordinary)
    assert right.all(), f"{what}: {ours} instead of {theirs}"


def compare(spec: Spec) -> bool:
    """Whether JAX has numbers to compare with."""
    net = make(spec)
    step, leaves = flat_step(net)
    data = [spec.numbers(ROWS, SIZE, salt=n) for n in (1, 2)]
    values = jax.eval_shape(step, *leaves, *(x[0] for x in data))
    cts = [
        jnp.asarray(np.random.default_rng(n).normal(size=(ROWS, *v.shape)), v.dtype)
        for n, v in enumerate(values)
    ]
    expected, gradients = by_jax(step, leaves, data, cts)
    found, pull = jax.vjp(rewritten(step, leaves, data), *leaves, *data)
    for ours, theirs in zip(found, expected, strict=True):
        agree(ours, theirs, spec.dtype, "value")
    for n, (ours, theirs) in enumerate(zip(pull(cts), gradients, strict=True)):
        agree(ours, theirs, spec.dtype, f"gradient of argument {n}")
    return any(np.isfinite(g).any() and np.any(g) for g in gradients)


#: What the library rewrites, or has a derivative of its own for. The default run takes
#: these one by one; the others it draws.
REWRITTEN = (
    "masked max",
    "lowest max",
    "largest inputs",
    "smallest inputs",
    "root in a branch",
    "weight in a branch",
    "root of a weight",
    "divided in a branch",
    "normalised in a branch",
    "branch in a branch",
    "branch in a loop",
    "switched",
    "long loop",
    "one slope",
    "indexing",
)


@pytest.mark.parametrize("name", examples(REWRITTEN, tuple(OPERATIONS)))
def test_every_operation_is_that_of_jax(name: str):
    arity = OPERATIONS[name][1].count("x")
    said = [
        compare(Spec(((name, (1, 0)[:arity]),), dtype, seed, special))
        for dtype in examples(("bfloat16",), DTYPES)
        for seed, special in ((0, 0), (1, 4), (2, 7))
    ]
    assert any(said) or name == "no power"


def test_random_steps_are_those_of_jax():
    said: list[bool] = []
    used: set[str] = set()

    @hypothesis.settings(max_examples=examples(ci=150, thorough=3000))
    @hypothesis.seed(0)
    @hypothesis.given(seed=st.integers(0, 2**31))
    def check(seed: int):
        spec = spec_of(seed)
        hypothesis.note(str(spec))
        fresh_caches()
        said.append(compare(spec))
        used.update(name for name, _ in spec.steps)

    check()
    assert sum(said) > 0.6 * len(said)
    assert len(used) > 0.8 * len(OPERATIONS)
