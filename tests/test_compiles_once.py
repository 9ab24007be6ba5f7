"""Nothing is traced twice: the second call of everything is compiled already."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace
from etrace.testing import squared_error

from .helpers import clear_caches

CALLS: list[str] = []  # one entry each time JAX traces a step of `Leaky`


class Leaky(eqx.Module):
    decay: jax.Array
    weight: jax.Array

    def __init__(self, seed=0):
        self.decay = normal(2, seed=seed)
        self.weight = normal(2, 2, seed=seed + 1)

    def init_state(self):
        return jnp.zeros(2)

    def __call__(self, h, x):
        CALLS.append("step")
        h = jax.nn.sigmoid(self.decay) * h + jnp.tanh(self.weight @ x)
        return jnp.sin(h), h


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def traced(fun, *args):
    """How often the model's step is traced by this call."""
    before = len(CALLS)
    fun(*args)
    return len(CALLS) - before


@pytest.fixture
def compiled(caplog):
    """How many programs a call compiles."""

    def count(fun, *args) -> int:
        caplog.clear()
        with jax.log_compiles():
            jax.block_until_ready(jax.tree.leaves(eqx.filter(fun(*args), eqx.is_array)))
        return sum("Compiling" in record.message for record in caplog.records)

    return count


def test_the_second_call_compiles_nothing(compiled):
    alg, xs = etrace.DRTRL(Leaky()), normal(4, 2)
    learn = etrace.learn(squared_error, optax.sgd(0.1), window=2)
    start = lambda: alg.init(xs[0])  # noqa: E731
    calls = {
        "update": lambda x, s: alg.update(*s, x[0]),
        "window": lambda x, s: alg.update(*s, etrace.MultiStepData(x)),
        "value_and_grad": lambda x, s: etrace.value_and_grad(squared_error, window=2)(
            alg, s, x, x
        ),
        "evolve": lambda x, s: etrace.evolve(alg, s, x, window=2),
        "learn": lambda x, s: learn(alg, None, s, x, x),
    }
    for name, call in calls.items():
        clear_caches()
        assert compiled(call, xs, start()) > 0, name
        assert compiled(call, 2 * xs, start()) == 0, name


def test_update_is_traced_once():
    class Fresh(Leaky):  # analysed by no other test
        pass

    alg, x = etrace.DRTRL(Fresh()), jnp.ones(2)
    assert traced(alg.init, x) > 0
    state = alg.init(x)
    clear_caches()
    # The analysis has found all there is to know.
    assert traced(alg.update, *state, x) == 0
    _, *state = alg.update(*state, x)
    assert traced(alg.update, *state, 2 * x) == 0
    assert traced(alg.with_model(Fresh(seed=5)).update, *state, x) == 0
    assert traced(etrace.DRTRL(Fresh(seed=5)).update, *state, x) == 0


class Counting(Leaky):
    """Python numbers in the state, which JAX types weakly."""

    def init_state(self):
        return super().init_state(), 0, 0.5

    def __call__(self, state, x):
        y, h = super().__call__(state[0], x)
        return y, (h, state[1] + 1, 0.9 * state[2])


def test_python_numbers_in_the_state_are_traced_once():
    alg, x = etrace.DRTRL(Counting()), jnp.ones(2)
    assert traced(alg.init, x) > 0
    state = alg.init(x)
    clear_caches()
    assert traced(alg.update, *state, x) == 0
    _, *state = alg.update(*state, x)
    assert traced(alg.update, *state, x) == 0


def test_jitted_gradient_is_traced_once():
    model = Leaky()

    @eqx.filter_jit
    def gradient(model, state, x):
        alg = etrace.DRTRL(model)
        loss = lambda a: jnp.sum(a.update(*state, x)[0])  # noqa: E731
        return eqx.filter_grad(loss)(alg).model, alg.update(*state, x)[1:]

    x = jnp.ones(2)
    grads, state = gradient(model, etrace.DRTRL(model).init(x), x)
    updated = eqx.apply_updates(model, grads)
    assert traced(gradient, updated, state, 2 * x) == 0


def test_drivers_are_traced_once():
    xs = normal(4, 2)
    learn = etrace.learn(squared_error, optax.sgd(0.1), window=2)
    calls = {
        "value_and_grad": etrace.value_and_grad(squared_error, window=2),
        "evolve": lambda alg, state, xs, _: etrace.evolve(alg, state, xs, window=2),
        "learn": lambda alg, *rest: learn(alg, None, *rest),
    }

    class Fresh(Leaky):  # analysed by no other test
        pass

    alg = etrace.DRTRL(Fresh())
    assert traced(alg.init, xs[0]) > 0
    for name, driver in calls.items():
        clear_caches()
        assert traced(driver, alg, alg.init(xs[0]), xs, xs) == 0, name
        other = alg.with_model(Fresh(seed=5))
        assert traced(driver, other, other.init(xs[0]), 2 * xs, xs) == 0, name
