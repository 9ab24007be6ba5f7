"""States of every structure, copied and stored."""

import copy
import pickle
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace

from .program import INPUTS, Program, W, check, chosen, normal

WEIGHTS = {"w": W, "a": normal(4, seed=5)}


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_state_can_be_copied(copied):
    algorithm = etrace.DRTRL(Program(leaky, WEIGHTS, start_at_zero).model())
    state = algorithm.init(INPUTS[0])
    _, *state = algorithm.update(*state, INPUTS[0])
    expected = algorithm.update(*state, INPUTS[1])
    assert eqx.tree_equal(algorithm.update(*copied(state), INPUTS[1]), expected)


class Pair(NamedTuple):
    v: jax.Array
    i: jax.Array


class Cell(eqx.Module):
    v: jax.Array
    label: str = eqx.field(static=True)


def start_at_zero():
    return jnp.zeros(4)


def leaky(w, h, x):
    h = new(w, h, x)
    return h, h


def new(w, h, x):
    return jax.nn.sigmoid(w["a"]) * h + w["w"] @ x


def nested(w, state, x):
    pair, cell, nothing = state["pair"], state["cells"][0], state["nothing"]
    i = 0.5 * pair.i + w["w"] @ x
    v = jax.nn.sigmoid(w["a"]) * pair.v + i
    cell = Cell(0.7 * cell.v + v, cell.label)
    return cell.v, {"pair": Pair(v, i), "cells": [cell], "nothing": nothing}


def start_nested():
    zeros = jnp.zeros(4)
    return {"pair": Pair(zeros, zeros), "cells": [Cell(zeros, "a")], "nothing": None}


def empty(w, state, x):
    """A leaf of size 0, as a buffer of no delay has."""
    h, buffer = state
    h = new(w, h, x)
    buffer = jnp.concatenate([buffer, h[None]])[1:]
    return h, (h, buffer)


def scalars(w, state, x):
    """A state that is one number, for all neurons."""
    h, mean = state
    mean = 0.9 * mean + jnp.mean(x)
    h = new(w, h, x) + mean
    return h, (h, mean)


def booleans(w, state, x):
    h, active = state
    h = jnp.where(active, new(w, h, x), 0.5 * h + w["w"] @ x)
    return h, (h, h > 0.1)


def bytes_(w, state, x):
    """Spikes are kept as bytes, and their surrogate is lost on the way: no credit."""
    h, spikes = state
    h = new(w, h, x) - 0.2 * spikes.astype(float)
    return h, (h, (h > 0.3).astype(jnp.uint8))


def counted(w, state, x):
    """A refractory period by a counter of integers."""
    h, wait = state
    h = jnp.where(wait > 0, h, new(w, h, x))
    fired = h > 0.3
    h = jnp.where(fired, h - 0.3, h)
    return h, (h, jnp.where(fired, 2, jnp.maximum(wait - 1, 0)))


def counted_by_floats(w, state, x):
    h, wait = state
    h, wait = counted(w, (h, wait), x)[1]
    return h, (h, wait.astype(float))


def typed_key(w, state, x):
    h, key = state
    key, now = jax.random.split(key)
    kept = jax.random.bernoulli(now, 0.7, (4,))
    h = jax.nn.sigmoid(w["a"]) * h + jnp.where(kept, w["w"] @ x, 0.0) / 0.7
    return h, (h, key)


def zoneout(w, state, x):
    h, key = state
    key, now = jax.random.split(key)
    h = jnp.where(jax.random.bernoulli(now, 0.5, (4,)), h, jnp.tanh(new(w, h, x)))
    return h, (h, key)


def learnt_noise(w, state, x):
    h, key = state
    key, now = jax.random.split(key)
    h = new(w, h, x) + jnp.exp(w["a"]) * jax.random.normal(now, (4,))
    return h, (h, key)


def swapped(w, state, x):
    """The two leaves change places at every step."""
    p, q = state
    return q, (new(w, q, x), p)


def zeros_and(other):
    return lambda: (jnp.zeros(4), other())


PROGRAMS = {
    "nested": (nested, start_nested),
    "empty": (empty, zeros_and(lambda: jnp.zeros((0, 4)))),
    "scalars": (scalars, zeros_and(lambda: jnp.zeros(()))),
    "booleans": (booleans, zeros_and(lambda: jnp.zeros(4, bool))),
    "bytes": (bytes_, zeros_and(lambda: jnp.zeros(4, jnp.uint8))),
    "counter": (counted, zeros_and(lambda: jnp.zeros(4, int))),
    "counter of floats": (counted_by_floats, zeros_and(lambda: jnp.zeros(4))),
    "dropout": (typed_key, zeros_and(lambda: jax.random.key(0))),
    "zoneout": (zoneout, zeros_and(lambda: jax.random.key(0))),
    "noise of raw keys": (learnt_noise, zeros_and(lambda: jax.random.PRNGKey(0))),
    "swapped": (swapped, zeros_and(lambda: jnp.zeros(4))),
}


COMMON = ("nested", "empty", "counter of floats", "swapped")


@pytest.mark.parametrize("name", chosen(PROGRAMS, COMMON))
def test_exact(name: str):
    step, start = PROGRAMS[name]
    check(Program(step, WEIGHTS, start))
