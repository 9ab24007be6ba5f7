"""`check_gradients` on models in which credit is lost: the loss moves, the gradient is
zero."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.testing as et

N, IN, OUT, STEPS = 4, 3, 2, 14
WAIT = 2  # steps of the refractory period


def normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


INPUTS, TARGETS = normal(STEPS, IN, seed=5), normal(STEPS, OUT, seed=6)
surrogate = etrace.nn.FastSigmoid(1.0)


class Refractory(eqx.Module):
    """LIF neurons with a refractory period of one's own. `emit` makes the output."""

    w: jax.Array
    theta: jax.Array
    readout: jax.Array
    emit: Callable[..., Any] = eqx.field(static=True)

    def __init__(self, emit: Callable[..., Any]):
        self.w, self.theta = normal(N, IN, seed=1), jnp.linspace(0.6, 1.0, N)
        self.readout, self.emit = normal(OUT, N, seed=2), emit

    def init_state(self):
        return jnp.zeros(N), jnp.zeros(N, int)

    def __call__(self, state, x):
        v, wait = state
        free = wait == 0
        v = jnp.where(free, 0.8 * v + self.w @ x, v)
        z = surrogate(v - self.theta) * free.astype(v.dtype)
        wait = jnp.where(z > 0, WAIT + 1, jnp.maximum(wait - 1, 0))
        v = v - v * jax.lax.stop_gradient(z)
        return self.readout @ self.emit(z, wait), (v, wait)


def kept(z: jax.Array, wait: jax.Array) -> jax.Array:
    return z


def counted(z: jax.Array, wait: jax.Array) -> jax.Array:
    """Neurons that fired just now are those with the whole period before them."""
    return (wait == WAIT + 1).astype(z.dtype)


def half_counted(z: jax.Array, wait: jax.Array) -> jax.Array:
    return jnp.concatenate([z[:2], counted(z, wait)[2:]])


def check(model: eqx.Module, inputs: jax.Array = INPUTS) -> etrace.GradientCheck:
    return etrace.check_gradients(
        etrace.DRTRL(model), et.squared_error, inputs, TARGETS
    )


def missed(found: etrace.GradientCheck) -> dict[str, tuple[int, int]]:
    return {
        p.name: (p.missed.numbers, p.missed.size) for p in found.parameters if p.missed
    }


def test_a_count_of_spikes_that_loses_the_surrogate():
    found = check(Refractory(counted))
    assert missed(found) == {".w": (N * IN, N * IN), ".theta": (N, N)}
    w = found.parameters[0]
    assert w.missed is not None and w.missed.moved > 1e-2
    assert any("eq in" in end or "gt in" in end for end in w.missed.ends)
    assert "test_missed_credit.py" in str(found)
    with pytest.raises(
        AssertionError, match=r"\.w: moves the loss, with gradient"
    ) as e:
        found.assert_close()
    assert "derivatives end at" in str(e.value) and ".theta: moves" in str(e.value)
    assert ".readout: moves" not in str(e.value)


def test_some_neurons_lose_it():
    found = check(Refractory(half_counted))
    assert missed(found) == {".w": (2 * IN, N * IN), ".theta": (2, N)}
    with pytest.raises(AssertionError, match=r"\.w: moves .* \(6 of 12 numbers, by"):
        found.assert_close(cosine=0.0)


def test_a_surrogate_that_is_kept():
    found = check(Refractory(kept))
    assert not missed(found) and found.own_derivatives
    found.assert_close()


class Parametric(eqx.Module):
    """A step with one more parameter, `p`, `[N]`."""

    w: jax.Array
    p: jax.Array
    drive: Callable[..., Any] = eqx.field(static=True)

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        h = 0.7 * h + self.drive(self.w @ x, self.p)
        return h[:OUT] + h[OUT:], h


def parametric(drive: Callable[..., Any], p: Any) -> etrace.GradientCheck:
    return check(Parametric(normal(N, IN, seed=1), jnp.asarray(p), drive))


P = (0.3, 0.6, -0.4, 0.9)
LOST = {
    "a hard threshold": (lambda z, p: jnp.where(z > p, 0.0, z), "gt in"),
    "rounded": (lambda z, p: z * jnp.round(4 * p), "round in"),
    "stopped": (lambda z, p: z * jax.lax.stop_gradient(p), "stop_gradient in"),
    "an integer": (lambda z, p: z * (4 * p).astype(int).astype(float), "convert"),
    "a narrow surrogate": (
        lambda z, p: z * etrace.nn.Triangle(width=1e-6)(p - 0.28),
        "a derivative of its own is zero there",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_loses_a_parameter(name: str):
    drive, end = LOST[name]
    found = parametric(drive, P)
    assert list(missed(found)) == [".p"]
    assert end in str(found.parameters[1].missed)
    with pytest.raises(AssertionError, match=r"\.p: moves the loss, with gradient"):
        found.assert_close()
    found.assert_close(frozen=(".p",))


RIGHT = {
    "units that are off": (lambda z, p: jax.nn.relu(z - 50 * jnp.abs(p)), P),
    "a kink": (lambda z, p: jax.nn.relu(p) * z, (0.0, 0.1, 0.2, 0.0)),
    "an extremum": (lambda z, p: z * (1 + p**2), (0.0,) * N),
    "nothing": (lambda z, p: z * (p - jax.lax.stop_gradient(p) + 1), P),
    "a mask": (lambda z, p: z * p * jnp.array([1.0, 0.0, 0.0, 1.0]), P),
    "silence": (lambda z, p: etrace.nn.Triangle(width=0.5)(z * 0.1 - jnp.abs(p)), P),
    "NaN nearby": (lambda z, p: z + jnp.sqrt(p - p[0] + 1e-9) * 0.0, P[:1] * N),
}


@pytest.mark.parametrize("name", RIGHT)
def test_zeros_that_are_right(name: str):
    found = parametric(*RIGHT[name])
    assert not missed(found)
    if name != "NaN nearby":
        found.assert_close()


def test_single_precision():
    single = lambda x: x.astype("float32")  # noqa: E731

    class Single(Parametric):
        def init_state(self):
            return jnp.zeros(N, "float32")

    for drive, lost in ((LOST["rounded"][0], True), (RIGHT["a kink"][0], False)):
        p = jnp.asarray((0.0, 0.1, 0.2, 0.0) if not lost else P)
        net = jax.tree.map(single, Single(normal(N, IN, seed=1), p, drive))
        found = etrace.check_gradients(
            etrace.DRTRL(net), et.squared_error, single(INPUTS), single(TARGETS)
        )
        assert list(missed(found)) == [".p"] * lost


def test_what_frozen_must_be():
    found = check(Refractory(kept))
    with pytest.raises(ValueError, match=r"frozen is \('\.b',\); expected .* \.w, "):
        found.assert_close(frozen=(".b",))
    with pytest.raises(ValueError, match=r"frozen is '\.w'; expected a collection"):
        found.assert_close(frozen=".w")
