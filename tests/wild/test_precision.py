"""Dtypes of half precision, and several of them."""

import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.nn as nn

from .program import INPUTS, Program, W, check, chosen, normal

pytestmark = pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")

WEIGHTS = {"w": W, "a": normal(4, seed=5)}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [8, 64])
def test_every_dtype_is_traced(dtype: str, size: int):
    lif = nn.LIF(size, dtype=dtype)
    step = lambda w, state, x: lif(state, w["w"] @ x)  # noqa: E731
    weights = {"w": jnp.ones((size, 3), dtype)}
    model = Program(step, weights, start=lif.init_state).model()
    report = etrace.DRTRL(model).graph(jnp.ones(3, dtype))
    assert [row.status for row in report.rows] == ["traced"]


def single_state(w, h, x):
    """Weights of double precision, a state of single."""
    drive = (w["w"] @ x).astype(jnp.float32)
    h = jax.nn.sigmoid(w["a"]).astype(jnp.float32) * h + drive
    return h.astype(float), h


def quantised(w, h, x):
    """Weights rounded to eight bits; straight through, backwards."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(w["w"])) / 127)
    integers = jnp.round(w["w"] / scale).astype(jnp.int8)
    near = w["w"] + jax.lax.stop_gradient(integers.astype(float) * scale - w["w"])
    h = jax.nn.sigmoid(w["a"]) * h + near @ x
    return h, h


def double_accumulator(w, state, x):
    """A cell of single precision, and a sum of double."""
    h, total = state
    h = jnp.float32(0.8) * h + (w["w"] @ x).astype(jnp.float32)
    total = jax.nn.sigmoid(w["a"]) * total + h.astype(float)
    return total, (h, total)


def pair():
    return jnp.zeros(4, jnp.float32), jnp.zeros(4)


PROGRAMS = {
    "a state of single precision": Program(
        single_state, WEIGHTS, lambda: jnp.zeros(4, jnp.float32), tolerance=1e-5
    ),
    "quantised weights": Program(quantised, WEIGHTS),
    "an accumulator": Program(double_accumulator, WEIGHTS, pair, tolerance=1e-5),
}


COMMON = ("a state of single precision",)


@pytest.mark.parametrize("name", chosen(PROGRAMS, COMMON))
def test_exact(name: str):
    check(PROGRAMS[name])


def test_whole_traces_of_half_precision():
    """A training step of bfloat16 has no NaN and keeps the dtype."""
    weights = {name: value.astype(jnp.bfloat16) for name, value in WEIGHTS.items()}
    step = lambda w, h, x: (jax.nn.sigmoid(w["a"]) * h + w["w"] @ x,) * 2  # noqa: E731
    model = Program(step, weights, lambda: jnp.zeros(4, jnp.bfloat16)).model()
    run = etrace.value_and_grad(lambda y, t: jnp.sum(y**2), window=2, carry=False)
    inputs = INPUTS.astype(jnp.bfloat16)
    for rule in (etrace.DRTRL(model), etrace.RTRL(model)):
        for leaf in run(rule, None, inputs, jnp.zeros(6))[1].weights.values():
            assert leaf.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(leaf)))
