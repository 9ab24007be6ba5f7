"""Steps that do not count, states that begin with a parameter, and masks that change
while a trace is kept."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace

from .program import INPUTS, Program, W, check, loss, normal


def test_a_masked_step_counts_nothing():
    """Padded targets are NaN."""
    model = Program(lambda w, h, x: (0.8 * h + w["w"] @ x,) * 2, {"w": W}).model()
    targets = jnp.zeros((6, 4)).at[4:].set(jnp.nan)
    mask = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    run = etrace.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), window=2)
    for rule in (etrace.RTRL, etrace.DRTRL):
        value, grads, _ = run(rule(model), None, INPUTS, targets, mask)
        plain = run(rule(model), None, INPUTS, jnp.nan_to_num(targets), mask)
        assert jnp.isfinite(value) and jnp.allclose(value, plain[0], rtol=1e-12)
        assert jnp.allclose(grads.weights["w"], plain[1].weights["w"], rtol=1e-12)


class Start(eqx.Module):
    w: jax.Array
    h0: jax.Array

    def init_state(self):
        return jnp.tanh(self.h0)

    def __call__(self, h, x):
        h = 0.9 * h + self.w @ x
        return h, h


def test_a_learnt_initial_state_has_a_gradient():
    model = Start(W, normal(4, seed=5))

    def total(model):
        step = lambda h, x: model(h, x)[::-1]  # noqa: E731
        return jnp.sum((jax.lax.scan(step, model.init_state(), INPUTS)[1] - 0.3) ** 2)

    exact = jax.grad(total)(model)
    assert jnp.all(exact.h0 != 0)
    run = etrace.value_and_grad(loss, window=3, reduction="sum", carry=False)
    rules = (
        etrace.RTRL(model),
        etrace.DRTRL(model),
        etrace.DRTRL(model, None, "multi-step"),
    )
    for rule in rules:
        found = run(rule, None, INPUTS, jnp.zeros(6))[1]
        for a, b in ((found.w, exact.w), (found.h0, exact.h0)):
            np.testing.assert_allclose(a, b, rtol=1e-9)


def reset(w, h, x):
    """To a learnt state, where an episode begins."""
    x, begins = x
    h = jnp.where(begins, w["h0"], jax.nn.sigmoid(w["a"]) * h + w["w"] @ x)
    return h, h


def test_reset_to_a_learnt_state_within_a_sequence():
    begins = jnp.array([False, False, True, False, False, False])
    weights = {"w": W, "a": normal(4, seed=5), "h0": normal(4, seed=6)}
    step = lambda w, h, x: reset(w, h, (x["x"], x["begins"]))  # noqa: E731
    check(Program(step, weights, inputs={"x": INPUTS, "begins": begins}))


class Masked(eqx.Module):
    w: jax.Array
    mask: jax.Array

    def init_state(self):
        return jnp.zeros(4)

    def __call__(self, h, x):
        h = 0.9 * h + jnp.tanh(jnp.where(self.mask, self.w, 0.0) @ x)
        return h, h


@pytest.mark.parametrize("rule", [etrace.DRTRL, etrace.RTRL])
def test_connections_that_grow_have_no_credit_from_before(rule):
    """Connections are pruned and grown between two calls; the trace goes on."""
    rng = np.random.default_rng(0)
    old, new = (jnp.asarray(rng.random((4, 3)) < 0.5) for _ in range(2))

    def truth(w):
        h, total = jnp.zeros(4), 0.0
        for mask, counts in ((old, 0.0), (new, 1.0)):
            for x in INPUTS:
                h = 0.9 * h + jnp.tanh(jnp.where(mask, w, 0.0) @ x)
                total += counts * jnp.sum((h - 0.3) ** 2)
        return total

    exact = jax.grad(truth)(W)
    run = etrace.value_and_grad(loss, window=3, reduction="sum")
    before = rule(Masked(W, old))
    state = run(before, None, INPUTS, jnp.zeros(6))[2]
    if rule is etrace.DRTRL:  # RTRL's influence is of the weights themselves
        with pytest.raises(ValueError, match="model.mask has changed"):
            run(before.with_model(Masked(W, new)), state, INPUTS, jnp.zeros(6))
    after, state = before.rewired(state, Masked(W, new))
    found = run(after, state, INPUTS, jnp.zeros(6))[1].w
    assert jnp.any(~old & new) and jnp.any(old & ~new)
    np.testing.assert_allclose(found[new], exact[new], rtol=1e-9, atol=1e-12)


def test_outputs_that_come_late_are_told():
    """The read-out is a queue: the loss of a step reads nothing of this step. Single
    steps have no credit to give."""

    def step(w, state, x):
        h, queue = state
        h = jax.nn.sigmoid(w["a"]) * h + jnp.tanh(w["w"] @ x)
        return queue[-1], (h, jnp.concatenate([(w["out"] @ h)[None], queue[:-1]]))

    weights = {"w": W, "a": normal(4, seed=5), "out": normal(2, 4, seed=6)}
    start = lambda: (jnp.zeros(4), jnp.zeros((3, 2)))  # noqa: E731
    program = Program(step, weights, start, exact=False)
    with pytest.warns(etrace.LostCreditWarning, match="gets no credit"):
        check(program)
    report = etrace.DRTRL(program.model()).graph(INPUTS[0])
    told = {r.parameter for r in report.rows if r.reason}
    assert {".weights['w']", ".weights['a']"} <= told
