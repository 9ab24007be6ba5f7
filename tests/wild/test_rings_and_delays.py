"""Buffers, delays and clocks in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .program import N, Program, W, check, chosen, normal

WEIGHTS = {"w": W, "a": normal(N, seed=5)}
STEPS = 8
INPUTS = 2 * normal(STEPS, 3, seed=1)


def new(w, v, x):
    return jax.nn.sigmoid(w["a"]) * v + w["w"] @ x


def buffer(length, clock=None):
    found = jnp.zeros(N), jnp.zeros((length, N))
    return lambda: found if clock is None else (*found, jnp.zeros((), clock))


def ring(w, state, x):
    """Written at the place of the time, read two steps later."""
    v, past, t = state
    v = new(w, v, x)
    return past[(t - 2) % 5], (v, past.at[t % 5].set(v), t + 1)


def ring_by_slices(w, state, x):
    v, past, t = state
    v = new(w, v, x)
    past = lax.dynamic_update_index_in_dim(past, v, t % 3, 0)
    y = lax.dynamic_index_in_dim(past, (t + 1) % 3, 0, keepdims=False)
    return y, (v, past, t + 1)


def ring_that_feeds_back(w, state, x):
    v, past, t = state
    v = new(w, v, x) + 0.3 * past[t % 3]
    return v, (v, past.at[t % 3].set(jnp.tanh(v)), t + 1)


def lags(w, state, x):
    """Each neuron has a delay of its own."""
    line, v = state
    line = jnp.concatenate([(w["w"] @ x)[None], line[:-1]])
    v = jax.nn.sigmoid(w["a"]) * v + line[np.array([0, 1, 3, 4]), np.arange(N)]
    return v, (line, v)


def learnt_kernel(w, state, x):
    """A delay as a distribution over the past, which is learnt."""
    v, past = state
    v = new(w, v, x)
    past = jnp.roll(past, 1, 0).at[0].set(v)
    return jnp.sum(jax.nn.softmax(w["k"], 0) * past, 0), (v, past)


def learnt_delay(w, state, x):
    """A real number of steps, between two of the past."""
    v, past = state
    v = new(w, v, x)
    past = jnp.roll(past, 1, 0).at[0].set(v)
    delay = jnp.clip(jax.nn.softplus(w["d"]), 0.0, 1.999)
    whole = lax.stop_gradient(jnp.floor(delay))
    part, at, n = delay - whole, whole.astype(int), jnp.arange(N)
    return (1 - part) * past[at, n] + part * past[at + 1, n], (v, past)


def turning(w, state, x):
    """The state turns by as many places as steps have passed."""
    v, t = state
    v = jnp.roll(jax.nn.sigmoid(w["a"]) * v, t) + w["w"] @ x
    return v, (v, t + 1)


def clocked(w, state, x):
    """A gate that opens and closes by a clock."""
    c, h, t = state
    gate = jnp.sin(t.astype(float) * jnp.arange(1.0, N + 1)) ** 2
    now = jax.nn.sigmoid(w["a"]) * c + w["w"] @ x
    c, h = gate * now + (1 - gate) * c, gate * jnp.tanh(now) + (1 - gate) * h
    return h, (c, h, t + 1)


def phased(w, state, x):
    """A learnt rhythm for each neuron, of a clock."""
    h, t = state
    phase = jnp.mod(t - w["shift"], w["period"]) / w["period"]
    gate = jnp.where(phase < 0.3, phase / 0.3, 0.05 * phase)
    h = gate * new(w, h, x) + (1 - gate) * h
    return h, (h, t + 0.7)


def two_clocks(dtype):
    return lambda: (jnp.zeros(N), jnp.zeros(N), jnp.zeros((), dtype))


RHYTHM = {"shift": jnp.linspace(0.1, 0.7, N), "period": jnp.linspace(2.1, 3.0, N)}
EXACT = {
    "ring": (ring, WEIGHTS, buffer(5, int)),
    "learnt kernel": (learnt_kernel, {**WEIGHTS, "k": normal(3, N, seed=9)}, buffer(3)),
    "clock of integers": (clocked, WEIGHTS, two_clocks(int)),
    "clock of floats": (clocked, WEIGHTS, two_clocks(float)),
    "phased": (
        phased,
        {**WEIGHTS, **RHYTHM},
        lambda: (jnp.zeros(N), jnp.zeros(())),
    ),
}
TOLD = {
    "lags": (lags, WEIGHTS, lambda: (jnp.zeros((5, N)), jnp.zeros(N))),
    "ring by slices": (ring_by_slices, WEIGHTS, buffer(3, int)),
    "ring that feeds back": (ring_that_feeds_back, WEIGHTS, buffer(3, int)),
    "learnt delay": (learnt_delay, {**WEIGHTS, "d": normal(N, seed=9)}, buffer(3)),
    "turning": (turning, WEIGHTS, lambda: (jnp.zeros(N), jnp.zeros((), int))),
}


COMMON = ("ring", "clock of floats", "phased", "lags")


@pytest.mark.parametrize("name", chosen([*EXACT, *TOLD], COMMON))
def test_gradients(name: str):
    step, weights, start = {**EXACT, **TOLD}[name]
    check(Program(step, weights, start, exact=name in EXACT, inputs=INPUTS))
