"""Neurons: their equations, their options, and their gradients online."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace.nn as nn

from ..mistakes import as_a_user
from .networks import normal

N, STEPS = 4, 40
TAUS = np.array([5.0, 10.0, 20.0, 40.0])


def inputs(scale: float, shift: float) -> np.ndarray:
    return scale * (np.random.default_rng(1).normal(size=(STEPS, N)) + shift)


def run(neuron: nn.AbstractNeuron, xs: np.ndarray) -> tuple[np.ndarray, Any]:
    """Outputs and states after each step."""

    def step(state, x):
        y, state = neuron(state, x)
        return state, (y, state)

    dtype = neuron.dtype
    return jax.lax.scan(step, neuron.init_state(), jnp.asarray(xs, dtype))[1]


# ------------------------------------------- the equations, one neuron and step a time


def leaky(v, x, tau, rest=0.0, drive="jump"):
    alpha = np.exp(-1.0 / tau)
    return rest + alpha * (v - rest) + (x if drive == "jump" else (1 - alpha) * x)


def reset_of(v, reset, threshold, v_reset):
    return {"soft": v - threshold, "hard": v_reset, "none": v}[reset]


def reference_lif(xs, *, tau=None, drive="jump", tau_syn=None, rest=0.0, **o):
    """IF without `tau`, CurrentLIF with `tau_syn`."""
    reset, refractory = o.get("reset", "soft"), o.get("refractory", 0)
    threshold, v_reset = o.get("threshold", 1.0), o.get("v_reset", rest)
    zs, vs = np.zeros_like(xs), np.zeros_like(xs)
    for n in range(xs.shape[1]):
        v, i, wait, fired = rest, 0.0, 0, False
        for t, x in enumerate(xs[:, n]):
            if tau_syn is not None:
                i = np.exp(-1.0 / tau_syn) * i + x
                x = i
            held = wait > 0
            wait = max(wait - 1, 0)
            due = fired and o.get("reset_delay", False)
            if due and reset == "hard":
                v = v_reset
            if not held:
                v = v + x if tau is None else leaky(v, x, tau[n], rest, drive)
            if due and reset == "soft":
                v = v - threshold
            fired = v > threshold and not held
            if fired:
                zs[t, n], wait = 1.0, refractory
                if not o.get("reset_delay", False):
                    v = reset_of(v, reset, threshold, v_reset)
            vs[t, n] = v
    return zs, vs


OPTIONS = [
    dict(reset=reset, reset_delay=delay, refractory=refractory)
    for reset, delay, refractory in itertools.product(
        ("soft", "hard", "none"), (False, True), (0, 2)
    )
]


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: " ".join(map(str, o.values()))
)
def test_lif_family(options: dict[str, Any]):
    xs = inputs(0.6, 0.4)
    cases = [
        (nn.IF(N, threshold=0.8, **options), dict(threshold=0.8)),
        (
            nn.LIF(N, tau=TAUS, v_rest=-0.2, v_reset=-0.5, **options),
            dict(tau=TAUS, rest=-0.2, v_reset=-0.5),
        ),
        (
            nn.CurrentLIF(N, tau=TAUS, tau_syn=2.0, drive="current", **options),
            dict(tau=TAUS, tau_syn=2.0, drive="current"),
        ),
    ]
    for neuron, given in cases:
        zs, vs = reference_lif(
            xs * (4 if "tau_syn" in given else 1), **given, **options
        )
        found, states = run(neuron, xs * (4 if "tau_syn" in given else 1))
        assert zs.sum() > 3
        np.testing.assert_array_equal(found, zs)
        np.testing.assert_allclose(states.v, vs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delay", [False, True])
def test_alif(delay: bool):
    """With the delay: eqs. of Bellec et al. (2020), of the state before the spike."""
    xs, beta, rho, alpha = inputs(0.6, 0.6), 0.3, np.exp(-1 / 30), np.exp(-1 / TAUS)
    neuron = nn.ALIF(N, tau=TAUS, tau_a=30.0, beta=beta, reset_delay=delay)
    v, a, z, zs, before = np.zeros(N), np.zeros(N), np.zeros(N), [], []
    for x in xs:
        # A soft reset after the spike fades with the membrane, one with a delay not.
        v = alpha * v + x - (1 if delay else alpha) * z
        a = rho * a + z
        z = (v > 1 + beta * a).astype(float)
        zs.append(z)
        before.append((v, a, z))
    found, states = run(neuron, xs)
    assert np.sum(zs) > 10
    np.testing.assert_array_equal(found, zs)
    v, a, z = (np.stack(x) for x in zip(*before, strict=True))
    np.testing.assert_allclose(states.v, v if delay else v - z, atol=1e-12)
    np.testing.assert_allclose(states.a, a if delay else rho * a + z, atol=1e-12)


@pytest.mark.parametrize("delay", [False, True])
def test_gif(delay: bool):
    xs, alpha = inputs(0.6, 0.6), np.exp(-2.0 / TAUS)
    taus, jumps = (4.0, 60.0), (0.2, -0.3)
    neuron = nn.GIF(
        N,
        tau=TAUS,
        tau_currents=taus,
        jumps=jumps,
        drive="current",
        dt=2.0,
        reset_delay=delay,
    )
    times: list[list[int]] = [[] for _ in range(N)]
    v, vs = np.zeros(N), []
    for t, x in enumerate(4 * xs):
        # The currents are sums over all earlier spikes.
        eta = [
            sum(
                A * np.exp(-2.0 * (t - s - 1) / tau)
                for s in spikes
                for A, tau in zip(jumps, taus, strict=True)
            )
            for spikes in times
        ]
        z = v > 1
        # What fired is still in v; a reset without delay fades with the membrane.
        v = alpha * v + (1 - alpha) * (x + np.array(eta)) - (1 if delay else alpha) * z
        for n in np.flatnonzero(v > 1):
            times[n].append(t)
        vs.append(v if delay else v - (v > 1))
    found, states = run(neuron, 4 * xs)
    assert sum(map(len, times)) > 10
    assert [np.flatnonzero(f).tolist() for f in np.asarray(found).T] == times
    np.testing.assert_allclose(states.v, vs, atol=1e-12)


def test_exponential_neurons():
    xs = inputs(30.0, 0.8)
    for adapts in (False, True):
        a, b, tau_w = (0.2, 3.0, 100.0) if adapts else (0.0, 0.0, 1.0)
        common = dict(tau=TAUS, v_rest=-70.0, v_rheobase=-50.0, sharpness=2.0, dt=0.5)
        if adapts:
            neuron = nn.AdEx(N, tau_w=tau_w, a=a, b=b, **common)
        else:
            neuron = nn.ExpIF(N, threshold=-40.4, v_reset=-70.6, **common)
        v, w, zs, vs = np.full(N, -70.0), np.zeros(N), [], []
        for x in 3 * xs:
            dv = (-70.0 - v + 2 * np.exp((v + 50.0) / 2) - w + x) / TAUS
            dw = (a * (v + 70.0) - w) / tau_w
            v, w = v + 0.5 * dv, w + 0.5 * dw
            z = v > -40.4
            v, w = np.where(z, -70.6, v), w + b * z
            zs.append(z)
            vs.append(v)
        found, states = run(neuron, 3 * xs)
        assert np.sum(zs) > 5
        np.testing.assert_array_equal(found, zs)
        np.testing.assert_allclose(states.v, vs, rtol=1e-10)


def test_izhikevich():
    xs = inputs(20.0, 1.0)
    neuron = nn.Izhikevich(N, a=np.array([0.02, 0.02, 0.1, 0.02]), d=6.0, c=-60.0)
    a = np.array([0.02, 0.02, 0.1, 0.02])
    v, u, zs, vs = np.full(N, -65.0), np.full(N, -13.0), [], []
    for x in xs:
        dv, du = 0.04 * v**2 + 5 * v + 140 - u + x, a * (0.2 * v - u)
        v, u = v + 0.5 * dv, u + 0.5 * du
        z = v > 30
        v, u = np.where(z, -60.0, v), u + 6.0 * z
        zs.append(z)
        vs.append(v)
    found, states = run(neuron, xs)
    assert np.sum(zs) > 5
    np.testing.assert_array_equal(found, zs)
    np.testing.assert_allclose(states.v, vs, rtol=1e-10)


def test_leaky_integrator():
    xs, v = inputs(1.0, 0.0), np.full(N, 0.5)
    found, states = run(nn.LeakyIntegrator(N, tau=TAUS, v_rest=0.5), xs)
    for t, x in enumerate(xs):
        v = 0.5 + np.exp(-1 / TAUS) * (v - 0.5) + x
        np.testing.assert_allclose(found[t], v, rtol=1e-12)
    np.testing.assert_array_equal(found, states.v)


# --------------------------------------------------------- parameters, dtypes, mistakes

ALL = [
    nn.IF, nn.LIF, nn.CurrentLIF, nn.ALIF, nn.GIF, nn.ExpIF, nn.AdEx, nn.Izhikevich,
    nn.LeakyIntegrator,
]  # fmt: skip


def inexact(tree: Any) -> list[jax.Array]:
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


def test_numbers_are_constants_and_jax_arrays_are_parameters():
    for neuron in ALL:
        assert not inexact(neuron(N))
    assert not inexact(nn.LIF(N, tau=TAUS, threshold=[1.0, 1.0, 2.0, 2.0]))
    lif = nn.LIF(N, tau=jnp.asarray(TAUS), threshold=jnp.asarray(1.5))
    log_tau, threshold = inexact(lif)
    np.testing.assert_allclose(log_tau, np.log(TAUS))
    assert threshold == 1.5 and not inexact(nn.LIF(N, v_rest=-1.0, reset="hard"))
    # An unused reset potential would be a parameter without a gradient.
    assert len(inexact(nn.LIF(N, v_rest=jnp.asarray(0.0)))) == 1
    assert len(inexact(nn.LIF(N, v_rest=jnp.asarray(0.0), reset="hard"))) == 2


def test_constants_and_parameters_compute_the_same():
    xs = inputs(0.6, 0.4)
    constant, parameter = nn.ALIF(N, tau=TAUS), nn.ALIF(N, tau=jnp.asarray(TAUS))
    for a, b in zip(*(jax.tree.leaves(run(n, xs)) for n in (constant, parameter))):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_a_constant_array_does_not_compile_anew():
    """Equal constants are one static part of the model, as equal numbers are."""
    traces = 0

    @eqx.filter_jit
    def step(neuron, x):
        nonlocal traces
        traces += 1
        return neuron(neuron.init_state(), x)

    for tau in (TAUS, TAUS.copy(), 2 * TAUS):
        step(nn.LIF(N, tau=tau), jnp.ones(N))
    assert traces == 2


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dtypes(dtype: str):
    """Everything inexact keeps the dtype of the neuron; promotion is strict."""
    x = jnp.full(N, 0.7, dtype)
    for make in ALL:
        options = {} if make is nn.LeakyIntegrator else {"refractory": 2}
        trainable = "a" if make is nn.Izhikevich else "threshold"
        options |= {"tau": jnp.asarray(TAUS)} if make in ALL[1:5] else {}
        if make not in (nn.LeakyIntegrator,):
            options[trainable] = jnp.asarray(0.5 if make in ALL[:5] else -40.0)
        neuron = make(N, dtype=dtype, **options)
        y, state = eqx.filter_jit(neuron)(neuron.init_state(), x)
        grads = eqx.filter_grad(lambda n: jnp.sum(n(n.init_state(), x)[0]))(neuron)  # noqa: B023
        for leaf in [y, *inexact(neuron), *inexact(state), *inexact(grads)]:
            assert leaf.dtype == dtype
        waits = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.dtype == "int32"]
        assert len(waits) == (make is not nn.LeakyIntegrator)


def test_shapes_and_batches():
    """A layer of any shape, with a quantity for each channel, for a batch by `vmap`."""
    neuron = nn.ALIF((2, 3, 3), tau=jnp.ones((2, 1, 1)), refractory=1)
    xs = normal(5, 2, 3, 3)
    states = jax.tree.map(lambda s: jnp.stack([s] * 5), neuron.init_state())
    spikes, states = jax.vmap(neuron)(states, xs)
    assert spikes.shape == (5, 2, 3, 3) and states.wait.shape == (5, 2, 3, 3)
    one, _ = neuron(neuron.init_state(), xs[2])
    np.testing.assert_array_equal(spikes[2], one)


def test_detach_reset():
    """Neither the spike nor the membrane changes, only the derivative."""

    def membrane(v, detach, reset):
        lif = nn.LIF(1, tau=1e9, detach_reset=detach, reset=reset)
        return lif(nn.LIFState(v, None), jnp.zeros(1))[1].v[0]

    v, psi = jnp.asarray([1.2]), nn.Arctan().derivative(jnp.asarray([0.2]))
    for reset, kept, slope in (("soft", 1.0, -psi[0]), ("hard", 0.0, -1.2 * psi[0])):
        for detach in (False, True):
            grad = jax.grad(membrane)(v, detach, reset)[0]
            assert jnp.isclose(grad, kept + (0 if detach else slope), rtol=1e-6)


MISTAKES = {
    "size": (lambda: nn.LIF("many"), TypeError, "size is 'many'; expected the number"),
    "no neurons": (lambda: nn.LIF(0), ValueError, "size is 0; expected positive"),
    "negative tau": (lambda: nn.LIF(N, tau=-1.0), ValueError, "tau is -1.0; expected"),
    "trained negative tau": (
        lambda: nn.LIF(N, tau=jnp.asarray(-1.0)),
        ValueError,
        "tau is .*; expected it to be positive",
    ),
    "tau's shape": (
        lambda: nn.LIF(N, tau=np.ones(3)),
        ValueError,
        r"tau has the shape \(3,\); expected one number.*the shape \(4,\)",
    ),
    "threshold": (
        lambda: nn.LIF(N, threshold="high"),
        TypeError,
        "threshold is 'high'; expected a number or an array of numbers",
    ),
    "not finite": (
        lambda: nn.IF(N, threshold=np.nan),
        ValueError,
        "threshold is nan; expected finite numbers",
    ),
    "reset": (
        lambda: nn.LIF(N, reset="zero"),
        ValueError,
        'reset is \'zero\'; expected one of "soft", "hard", "none"',
    ),
    "drive": (lambda: nn.LIF(N, drive="big"), ValueError, "drive is 'big'; expected"),
    "dt": (lambda: nn.LIF(N, dt=0), ValueError, "dt is 0; expected a number above 0"),
    "dtype": (lambda: nn.LIF(N, dtype=int), TypeError, "dtype is int64; expected a fl"),
    "refractory": (
        lambda: nn.LIF(N, refractory=1.5),
        TypeError,
        "refractory is 1.5; expected a number of steps",
    ),
    "negative refractory": (
        lambda: nn.LIF(N, refractory=-1),
        ValueError,
        "refractory is -1; expected 0 or more",
    ),
    "spike": (
        lambda: nn.LIF(N, spike=jnp.tanh),
        TypeError,
        "spike is of type .*Arctan",
    ),
    "an unknown option": (lambda: nn.LIF(N, rest=1.0), TypeError, "rest"),
    "a soft peak": (lambda: nn.AdEx(N, reset="soft"), TypeError, "reset"),
    "currents": (
        lambda: nn.GIF(N, tau_currents=(1.0, 2.0), jumps=(1.0,)),
        ValueError,
        "tau_currents has 2 entries and jumps 1",
    ),
    "one current": (
        lambda: nn.GIF(N, tau_currents=1.0),
        TypeError,
        "tau_currents is 1.0; expected a tuple",
    ),
    "c": (
        lambda: nn.Izhikevich(N, c="low"),
        TypeError,
        "c is 'low'; expected a",
    ),
    "input": (
        lambda: nn.LIF(N)(nn.LIF(N).init_state(), jnp.zeros((5, N))),
        ValueError,
        r"x has the shape \(5, 4\); expected \(4,\), one number for each neuron of the "
        "LIF.*use jax.vmap",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str):
    make, kind, message = MISTAKES[name]
    with as_a_user(), pytest.raises(kind, match=message):
        make()
