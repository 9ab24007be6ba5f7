"""Checks at run time, prints, barriers and collectives in a step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace

from .program import INPUTS, Net, Program, W, check, loss, normal

pytestmark = pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")

WEIGHTS = {"w": W, "a": normal(4, seed=5)}


def leak(w, h):
    return jax.nn.sigmoid(w["a"]) * h


def guarded_input(w, h, x):
    h = leak(w, h) + eqx.error_if(w["w"] @ x, jnp.any(jnp.isnan(x)), "x has NaN")
    return h, h


def guarded_state(w, h, x):
    h = eqx.error_if(h, jnp.any(jnp.isnan(h)), "h has NaN")
    h = leak(w, h) + w["w"] @ x
    return h, h


def watched(w, h, x):
    h = leak(w, h) + w["w"] @ x
    jax.debug.callback(lambda h: None, h)
    return h, h


def barrier(w, h, x):
    h = jax.lax.optimization_barrier(leak(w, h) + w["w"] @ x)
    return h, h


def rounded(w, h, x):
    h = jax.lax.reduce_precision(leak(w, h) + w["w"] @ x, 8, 7)
    return h, h


@pytest.mark.parametrize(
    "step", [guarded_input, guarded_state, watched, barrier, rounded]
)
def test_exact(step):
    # The derivative of a rounding rounds, too.
    tolerance = 1e-2 if step is rounded else 1e-9
    program = Program(step, WEIGHTS, tolerance=tolerance)
    check(program)
    statuses = {r.status for r in etrace.DRTRL(program.model()).graph(INPUTS[0]).rows}
    assert statuses == {"traced"}


def centred(w, h, x):
    """By the mean over a batch, as batch normalisation does."""
    h = leak(w, h) + w["w"] @ (x - jax.lax.pmean(x, "batch"))
    return h, h


@pytest.mark.parametrize("batched", [False, True])
def test_a_collective_works_or_is_refused(batched: bool):
    model = Program(centred, WEIGHTS).model()
    inputs = jnp.stack([INPUTS, -0.5 * INPUTS], 1)
    run = etrace.value_and_grad(loss, window=1, reduction="sum", carry=False)

    def total(model: Net, inputs: jax.Array) -> jax.Array:
        step = lambda h, x: model(h, x)[::-1]  # noqa: E731
        found = jax.lax.scan(step, model.init_state(), inputs)[1]
        return jnp.sum((found - 0.3) ** 2)

    by_example = jax.vmap(jax.grad(total), (None, 1), axis_name="batch")
    exact = jax.tree.map(lambda g: g.sum(0), by_example(model, inputs).weights)
    try:
        if batched:
            rule = etrace.RTRL(model, batched=True)
            found = run(rule, None, inputs, jnp.zeros((6, 2)))[1].weights
        else:
            one = lambda x: run(etrace.RTRL(model), None, x, jnp.zeros(6))[1].weights  # noqa: E731
            found = jax.vmap(one, in_axes=1, axis_name="batch")(inputs)
            found = jax.tree.map(lambda g: g.sum(0), found)
    except ValueError as error:
        assert "batch" in str(error) and "axis" in str(error)
        return
    for name in exact:
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-9)
