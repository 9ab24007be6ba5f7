"""A rule written by a user: nothing but the hooks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import etrace
import etrace.testing as et
from etrace import MultiStepData

from .helpers import gradient_by_windows
from .toy_rule import LeakyTrace


class Leaky(eqx.Module):
    """Neurons that keep 0.8 of their potential."""

    weight: jax.Array
    readout: jax.Array

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, state, x):
        v = 0.8 * state + jnp.tanh(self.weight @ x)
        return self.readout @ v, v


@pytest.fixture
def problem():
    k1, k2, k3, k4 = jax.random.split(jax.random.key(0), 4)
    normal = jax.random.normal
    model = Leaky(normal(k1, (3, 2)), normal(k2, (2, 3)))
    inputs, targets = normal(k3, (6, 2)), normal(k4, (6, 2))
    return model, inputs, targets


def test_equals_bptt_through_update_and_drivers(problem):
    model, inputs, targets = problem
    algorithm = LeakyTrace(model)
    value, expected = et.bptt(model, et.squared_error, inputs, targets)
    _, now = et.truncated(model, et.squared_error, inputs, targets, window=1)
    assert et.gradient_distance(expected, now) > 1e-2
    for window in (1, 4, 6):
        driver = etrace.value_and_grad(
            et.squared_error, window=window, reduction="sum", carry=False
        )
        got, grads = driver(algorithm, None, inputs, targets)
        assert jnp.allclose(got, value, rtol=1e-9)
        assert et.gradient_distance(grads, expected) < 1e-9


def test_batched_and_multi_step(problem):
    model, inputs, targets = problem
    _, one = et.bptt(model, et.squared_error, inputs, targets)
    expected = jax.tree.map(lambda g: 2 * g, one)
    twice = lambda x: jnp.stack([x, x], axis=1)  # noqa: E731
    loss = lambda y, t: jnp.sum(jax.vmap(et.squared_error)(y, t))  # noqa: E731
    for method in ("single-step", "multi-step"):
        algorithm = LeakyTrace(model, vjp_method=method, batched=True)
        driver = etrace.value_and_grad(loss, window=2, reduction="sum", carry=False)
        _, grads = driver(algorithm, None, twice(inputs), twice(targets))
        assert et.gradient_distance(grads, expected) < 1e-9


def test_learns(problem):
    model, inputs, targets = problem
    algorithm, opt_state, state = LeakyTrace(model, name="leaky"), None, None
    assert algorithm.name == "leaky"
    train = etrace.learn(et.squared_error, optax.sgd(0.05), window=3)
    losses = []
    for _ in range(30):
        algorithm, opt_state, _, loss = train(
            algorithm, opt_state, state, inputs, targets
        )
        losses.append(loss.mean())
    assert losses[-1] < 0.5 * losses[0]


def test_a_hook_of_a_finished_rule_may_be_overridden():
    """Without past, D-RTRL is the instantaneous gradient."""

    class Instantaneous(etrace.DRTRL):
        def _solve_weight_gradients(self, data, window, signals):
            return signals.gradients()

    problem = et.make_problem(et.NetSpec((et.LayerSpec("gru", 3),)), length=4)
    _, grads = gradient_by_windows(Instantaneous, problem, "single-step")((4,))
    _, now = problem.truncated(window=1)
    assert et.gradient_distance(grads, now) < 1e-9


def test_the_derivative_of_update_may_be_overridden(problem):
    """The drivers respect it."""

    class Doubled(etrace.DRTRL):
        def _update_bwd(self, residuals, cotangents):
            params, *rest = super()._update_bwd(residuals, cotangents)
            return jax.tree.map(lambda g: 2 * g, params), *rest

    model, inputs, targets = problem
    driver = etrace.value_and_grad(et.squared_error, window=4, carry=False)
    _, once = driver(etrace.DRTRL(model), None, inputs, targets)
    _, twice = driver(Doubled(model), None, inputs, targets)
    assert et.gradient_distance(twice, jax.tree.map(lambda g: 2 * g, once)) < 1e-12


def test_evolve_carries_the_rules_trace(problem):
    model, inputs, _ = problem
    algorithm = LeakyTrace(model)
    (_, _, trace), _ = etrace.evolve(algorithm, None, inputs, window=4)
    hidden, other, expected = algorithm.init(inputs[0])
    _, hidden, other, expected = algorithm.update(
        hidden, other, expected, MultiStepData(inputs)
    )
    assert all(map(jnp.allclose, trace.data, expected.data))
