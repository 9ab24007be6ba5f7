"""Synapses, neurons behind them, and recurrent layers."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace.nn as nn

from ..mistakes import as_a_user
from .networks import IN, normal

N = 4
TAUS = np.array([3.0, 5.0, 8.0, 13.0])


def run(layer: Any, xs: Any) -> tuple[np.ndarray, Any]:
    def step(state, x):
        y, state = layer(state, x)
        return state, (y, state)

    return jax.lax.scan(step, layer.init_state(), jnp.asarray(xs))[1]


# -------------------------------------------------------------------------- the kernels


def dual(t, rise, fall):
    peak = rise * fall / (fall - rise) * np.log(fall / rise)
    difference = lambda t: np.exp(-t / fall) - np.exp(-t / rise)  # noqa: E731
    return difference(t) / difference(peak)


KERNELS = {
    "delta": (nn.Delta(N), lambda t: (t == 0) + 0 * TAUS),
    "exponential": (
        nn.Exponential(N, tau=TAUS, dt=0.5),
        lambda t: np.exp(-t / TAUS),
    ),
    "alpha": (
        nn.Alpha(N, tau=TAUS, dt=0.5),
        lambda t: t / TAUS * np.exp(1 - t / TAUS),
    ),
    "dual exponential": (
        nn.DualExponential(N, tau_rise=1.5, tau_fall=TAUS, dt=0.5),
        lambda t: dual(t, 1.5, TAUS),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_sampled_exactly(name: str):
    """One spike gives the kernel, and the effects of several add up."""
    synapse, kernel = KERNELS[name]
    steps = 60
    times = 0.5 * np.arange(steps)[:, None]
    one, two = np.zeros((2, steps, N))
    one[0], two[0], two[7] = 1.0, -0.5, 2.0
    found = run(synapse, one)[0]
    np.testing.assert_allclose(found, kernel(times), rtol=1e-12, atol=1e-12)
    later = np.concatenate([np.zeros((7, N)), found[:-7]])
    np.testing.assert_allclose(run(synapse, two)[0], -0.5 * found + 2 * later)


def test_trained_time_constants_give_the_same_kernels():
    one = np.eye(30, 1) * np.ones(N)
    rise, fall = np.full(N, 1.5), TAUS
    for constant, trained in (
        (nn.Alpha(N, tau=fall), nn.Alpha(N, tau=jnp.asarray(fall))),
        (
            nn.DualExponential(N, tau_rise=rise, tau_fall=fall),
            nn.DualExponential(
                N, tau_rise=jnp.asarray(rise), tau_fall=jnp.asarray(fall)
            ),
        ),
    ):
        assert not jax.tree.leaves(eqx.filter(constant, eqx.is_array))
        np.testing.assert_allclose(run(constant, one)[0], run(trained, one)[0])


def test_short_term_plasticity():
    spikes = (np.random.default_rng(0).uniform(size=(80, N)) < 0.3).astype(float)
    stp = nn.ShortTermPlasticity(N, tau_f=20.0, tau_d=TAUS * 10, utilisation=0.3)
    u, r, ys = np.zeros(N), np.ones(N), []
    for x in spikes:
        u, r = u * np.exp(-1 / 20), 1 - (1 - r) * np.exp(-1 / (TAUS * 10))
        u = np.where(x > 0, u + 0.3 * (1 - u), u)
        ys.append(u * r * x)
        r = np.where(x > 0, r - u * r, r)
    found, states = run(stp, spikes)
    np.testing.assert_allclose(found, ys, rtol=1e-12)
    assert np.all((states.r > 0) & (states.r <= 1) & (states.u < 1))


def test_plasticity_depresses_or_facilitates():
    """A slow recovery weakens a regular train, a small utilisation strengthens it."""
    train = np.tile([[1.0], [0.0], [0.0], [0.0]], (5, N))
    options: list[tuple[dict[str, float], int]] = [
        (dict(tau_f=1.0, tau_d=500.0, utilisation=0.6), -1),
        (dict(tau_f=500.0, tau_d=5.0, utilisation=0.05), 1),
    ]
    for given, sign in options:
        sent = np.asarray(run(nn.ShortTermPlasticity(N, **given), train)[0])[::4]
        assert np.all(sign * np.diff(sent, axis=0) > 0)


def test_conductances_pull_towards_their_reversal_potential():
    """g in units of the leak conductance: the membrane rests where they balance."""
    exponential = nn.Exponential(N, tau=5.0)
    for reversal in (0.8, -0.5):
        lif = nn.LIF(N, tau=TAUS, drive="current")
        layer = nn.Synaptic(nn.Conductance(exponential, reversal), lif)
        xs = np.full((400, N), 0.3)
        g = 0.3 / (1 - math.exp(-1 / 5))
        _, states = run(layer, xs)
        np.testing.assert_allclose(states.v[-1], g * reversal / (1 + g), rtol=1e-9)


def test_conductance_in_a_loop():
    xs = np.random.default_rng(0).uniform(0, 0.4, size=(50, N))
    layer = nn.Synaptic(
        nn.Conductance(nn.Exponential(N, tau=TAUS), reversal=3.0), nn.LIF(N, tau=20.0)
    )
    v, g, zs = np.zeros(N), np.zeros(N), []
    for x in xs:
        g = np.exp(-1 / TAUS) * g + 0.2 * x
        v = np.exp(-1 / 20) * v + g * (3.0 - v)
        zs.append(v > 1)
        v = v - zs[-1]
    found, states = run(layer, 0.2 * xs)
    assert np.sum(zs) > 5
    np.testing.assert_array_equal(found, zs)
    np.testing.assert_allclose(states.v[-1], v, rtol=1e-10)


def test_current_lif_is_lif_behind_an_exponential_synapse():
    xs = np.random.default_rng(0).normal(size=(50, N))
    both = nn.Synaptic(nn.Exponential(N, tau=TAUS), nn.LIF(N))
    spikes = run(nn.CurrentLIF(N, tau_syn=TAUS), xs)[0]
    assert np.sum(spikes) > 5
    np.testing.assert_array_equal(run(both, xs)[0], spikes)


# --------------------------------------------------------------------- recurrent layers


def test_dales_law_and_self_connections():
    n = 200
    layer = nn.Recurrent(IN, nn.LIF(n), excitatory=0.8, key=jax.random.key(0))
    u = np.asarray(layer.connections())
    assert np.all(np.diag(u) == 0)
    off = ~np.eye(n, dtype=bool)
    assert np.all(u[:, :160][off[:, :160]] > 0) and np.all(u[:, 160:][off[:, 160:]] < 0)
    # Balanced: neurons of the smaller population are stronger in proportion.
    assert abs(u.sum(1).mean()) < 0.1 * u[:, :160].sum(1).mean()
    # Any step of an optimiser keeps the signs.
    moved = eqx.tree_at(lambda m: m.recurrent, layer, normal(n, n))
    assert np.all(moved.connections()[:, :160] >= 0)
    free = nn.Recurrent(IN, nn.LIF(n), self_connections=True, key=jax.random.key(0))
    np.testing.assert_array_equal(free.connections(), free.recurrent)
    for name, size in (("weight", IN), ("recurrent", n)):
        assert np.isclose(getattr(free, name).std(), size**-0.5, rtol=0.1)


def test_initialisers():
    zeros = jax.nn.initializers.zeros
    layer = nn.Recurrent(
        IN,
        nn.LIF(N, dtype=jnp.float32),
        weight_init=zeros,
        recurrent_init=jax.nn.initializers.orthogonal(),
        key=jax.random.key(0),
    )
    assert not layer.weight.any() and layer.weight.dtype == jnp.float32
    square = np.asarray(layer.recurrent @ layer.recurrent.T)
    np.testing.assert_allclose(square, np.eye(N), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dtypes(dtype: str):
    """Everything keeps the dtype of the layer; promotion is strict."""
    neuron = nn.LIF(N, dtype=dtype)
    synapses = [
        make(N, dtype=dtype)
        for make in (nn.Delta, nn.Exponential, nn.Alpha, nn.DualExponential)
    ]
    synapses.append(nn.Conductance(synapses[1], reversal=2.0))
    layers: list[Any] = [nn.Synaptic(synapse, neuron) for synapse in synapses]
    layers.append(nn.ShortTermPlasticity(N, dtype=dtype, utilisation=0.3))
    layers.append(nn.Recurrent(N, layers[1], excitatory=0.5, key=jax.random.key(0)))
    for layer in layers:
        y, state = layer(layer.init_state(), jnp.ones(N, dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves((y, state))} == {
            jnp.dtype(dtype)
        }


MISTAKES = {
    "rise and fall": (
        lambda: nn.DualExponential(N, tau_rise=5.0, tau_fall=5.0),
        ValueError,
        "tau_rise is 5.0 and tau_fall 5.0; expected the rise to be faster.*Alpha",
    ),
    "utilisation": (
        lambda: nn.ShortTermPlasticity(N, utilisation=1.5),
        ValueError,
        "utilisation is 1.5; expected fractions",
    ),
    "conductance of a neuron": (
        lambda: nn.Conductance(nn.LIF(N), reversal=0.0),
        TypeError,
        "synapse is of type LIF; expected one such as etrace.nn.Exponential",
    ),
    "conductance alone": (
        lambda: nn.Conductance(nn.Exponential(N), 0.0)(None, jnp.zeros(N)),
        TypeError,
        "v is missing; expected the membrane",
    ),
    "the other way round": (
        lambda: nn.Synaptic(nn.LIF(N), nn.Exponential(N)),
        TypeError,
        "synapse is of type LIF",
    ),
    "sizes": (
        lambda: nn.Synaptic(nn.Exponential(3), nn.LIF(N)),
        ValueError,
        r"synapse has shape and dtype \(3,\), float64, and neuron \(4,\), float64",
    ),
    "inputs": (
        lambda: nn.Recurrent(0, nn.LIF(N), key=jax.random.key(0)),
        ValueError,
        "inputs is 0; expected a positive int",
    ),
    "a size": (
        lambda: nn.Recurrent(IN, N, key=jax.random.key(0)),
        TypeError,
        "neuron is of type int; expected one such as etrace.nn.LIF",
    ),
    "two axes": (
        lambda: nn.Recurrent(IN, nn.LIF((2, 2)), key=jax.random.key(0)),
        ValueError,
        r"neuron has the shape \(2, 2\); expected one axis",
    ),
    "a percentage": (
        lambda: nn.Recurrent(IN, nn.LIF(N), excitatory=80, key=jax.random.key(0)),
        ValueError,
        r"excitatory is 80; expected a fraction in \[0, 1\]",
    ),
    "input": (
        lambda: nn.Exponential(N)(nn.Exponential(N).init_state(), jnp.zeros(3)),
        ValueError,
        r"x has the shape \(3,\); expected \(4,\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str):
    make, kind, message = MISTAKES[name]
    with as_a_user(), pytest.raises(kind, match=message):
        make()
