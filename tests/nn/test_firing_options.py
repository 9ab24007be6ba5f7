"""Spikes, resets and refractory periods: values and gradients of every neuron under
every option, against the equations by hand. These carry the spike itself and a count
of their own, and choose options by arithmetic."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace.nn as nn

from .networks import normal

N, STEPS = 3, 12
SPIKE = nn.FastSigmoid(2.0)
Numbers = dict[str, jax.Array]

# The quantities of each neuron, and its inputs' mean and size. Every neuron fires.
LEAKY = dict(tau=6.0, v_rest=-0.1, threshold=0.9, v_reset=-0.3)
PEAKED = dict(tau=5.0, v_rest=-70.0, v_rheobase=-50.0, sharpness=2.0)
KINDS: dict[type, tuple[dict[str, float], tuple[float, float]]] = {
    nn.IF: (dict(threshold=0.9, v_reset=-0.3), (0.3, 0.5)),
    nn.LIF: (LEAKY, (0.5, 0.5)),
    nn.CurrentLIF: (LEAKY | dict(tau_syn=2.0), (0.2, 0.3)),
    nn.ALIF: (LEAKY | dict(tau_a=9.0, beta=0.3), (0.6, 0.5)),
    nn.GIF: (
        LEAKY | dict(tau0=4.0, tau1=9.0, jump0=0.2, jump1=-0.3),
        (0.5, 0.5),
    ),
    nn.ExpIF: (PEAKED | dict(threshold=-40.0, v_reset=-68.0), (60.0, 30.0)),
    nn.AdEx: (
        PEAKED | dict(threshold=-40.0, v_reset=-68.0, tau_w=30.0, a=0.2, b=3.0),
        (60.0, 30.0),
    ),
    nn.Izhikevich: (
        dict(a=0.05, b=0.2, c=-60.0, d=5.0, threshold=30.0),
        (60.0, 10.0),
    ),
}
PEAKS = (nn.ExpIF, nn.AdEx, nn.Izhikevich)


def combinations(kind: type) -> list[dict[str, Any]]:
    flags, refractory = (False, True), (0, 2)
    if kind in PEAKS:
        found = itertools.product(("hard",), (False,), flags, refractory)
    else:
        found = itertools.product(("soft", "hard", "none"), flags, flags, refractory)
    names = ("reset", "reset_delay", "detach_reset", "refractory")
    return [dict(zip(names, values, strict=True)) for values in found]


def quantities(kind: type) -> Numbers:
    """A number for each neuron."""
    spread = jnp.asarray([0.98, 1.0, 1.03])
    return {name: value * spread for name, value in KINDS[kind][0].items()}


def inputs(kind: type, scale: float = 1.0) -> jax.Array:
    mean, size = KINDS[kind][1]
    return scale * (mean + size * normal(STEPS, N, seed=3))


# --------------------------------------------------------------------- the library


def neuron_of(kind: type, p: Numbers, options: dict[str, Any]) -> nn.AbstractNeuron:
    options = options | dict(spike=SPIKE)
    if kind in PEAKS:
        options = {k: options[k] for k in ("detach_reset", "refractory", "spike")}
    if kind is nn.GIF:
        options["tau_currents"] = p["tau0"], p["tau1"]
        options["jumps"] = p["jump0"], p["jump1"]
        p = {name: p[name] for name in LEAKY}
    return kind(N, **p, **options)


def built(kind: type, options: dict[str, Any], p: Numbers, xs: jax.Array) -> jax.Array:
    neuron = neuron_of(kind, p, options)

    def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        z, state = neuron(state, x)
        return state, jnp.concatenate([z, state.v])

    return jax.lax.scan(step, neuron.init_state(), xs)[1]


# ------------------------------------------------------------------ the equations


class Options(NamedTuple):
    """What a neuron does, as numbers: all combinations are one compiled function."""

    soft: Any
    hard: Any
    delay: Any
    detach: Any
    refractory: Any


def as_numbers(options: dict[str, Any]) -> Options:
    soft, hard = options["reset"] == "soft", options["reset"] == "hard"
    others = ("reset_delay", "detach_reset", "refractory")
    return Options(soft, hard, *(options[name] for name in others))


def by_hand(kind: type, options: Options, p: Numbers, xs: jax.Array) -> jax.Array:
    v = p.get("v_rest", jnp.full(N, -65.0 if kind is nn.Izhikevich else 0.0))
    extra = dict.fromkeys(("i", "a", "w", "k0", "k1", "u"), jnp.zeros(N))
    if kind is nn.Izhikevich:
        extra["u"] = p["b"] * v
    z = jnp.where(options.delay, SPIKE(v - p["threshold"]), 0.0)
    start = (v, extra, z, jnp.zeros(N, int))
    step = lambda state, x: hand_step(kind, options, p, state, x)  # noqa: E731
    return jax.lax.scan(step, start, xs)[1]


def hand_step(
    kind: type, options: Options, p: Numbers, state: Any, x: jax.Array
) -> tuple[Any, jax.Array]:
    v, extra, before, left = state
    held = left > 0
    target = p["c"] if kind is nn.Izhikevich else p["v_reset"]

    def reset(v: jax.Array, z: jax.Array, when: Any, size: jax.Array) -> jax.Array:
        z = jnp.where(options.detach, jax.lax.stop_gradient(z), z)
        return jnp.where(when, v - z * size, v)

    delay, now = options.delay, jnp.logical_not(options.delay)
    if kind is nn.ALIF:
        extra = extra | {"a": jnp.exp(-1 / p["tau_a"]) * extra["a"] + before}
    old = v
    v = reset(v, before, options.hard & delay, v - target)
    extra, moved = membrane(kind, p, extra, v, old, x)
    v = jnp.where(held, v, moved)
    v = reset(v, before, options.soft & delay, p["threshold"])
    shift = p["beta"] * extra["a"] if kind is nn.ALIF else 0.0
    z = jnp.where(held, 0.0, SPIKE(v - p["threshold"] - shift))
    v = reset(v, z, options.soft & now, p["threshold"])
    v = reset(v, z, options.hard & now, v - target)
    left = jnp.where(z > 0, options.refractory, jnp.maximum(left - 1, 0))
    return (v, jumped(kind, p, extra, z), z, left), jnp.concatenate([z, v])


def membrane(
    kind: type, p: Numbers, extra: Numbers, v: jax.Array, old: jax.Array, x: jax.Array
) -> tuple[Numbers, jax.Array]:
    """What evolves beside the membrane, and the membrane if it is not held."""
    if kind is nn.IF:
        return extra, v + x
    if kind is nn.Izhikevich:
        u = extra["u"]
        du = p["a"] * (p["b"] * old - u)
        moved = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + x)
        return extra | {"u": u + 0.5 * du}, moved
    if kind in (nn.ExpIF, nn.AdEx):
        w = extra["w"]
        upstroke = p["sharpness"] * jnp.exp((v - p["v_rheobase"]) / p["sharpness"])
        moved = v + (p["v_rest"] - v + upstroke - w + x) / p["tau"]
        if kind is nn.AdEx:
            w = w + (p["a"] * (old - p["v_rest"]) - w) / p["tau_w"]
        return extra | {"w": w}, moved
    if kind is nn.CurrentLIF:
        x = jnp.exp(-1 / p["tau_syn"]) * extra["i"] + x
        extra = extra | {"i": x}
    if kind is nn.GIF:
        x = x + extra["k0"] + extra["k1"]
    return extra, p["v_rest"] + jnp.exp(-1 / p["tau"]) * (v - p["v_rest"]) + x


def jumped(kind: type, p: Numbers, extra: Numbers, z: jax.Array) -> Numbers:
    """What a spike adds."""
    if kind is nn.GIF:
        return extra | {
            f"k{k}": jnp.exp(-1 / p[f"tau{k}"]) * extra[f"k{k}"] + p[f"jump{k}"] * z
            for k in (0, 1)
        }
    if kind is nn.AdEx:
        return extra | {"w": extra["w"] + p["b"] * z}
    if kind is nn.Izhikevich:
        return extra | {"u": extra["u"] + p["d"] * z}
    return extra


# ------------------------------------------------------------------------ compared


def with_gradients(outputs: Callable[[Numbers, Any], Any]) -> Callable[..., Any]:
    """The gradients of a weighted sum of the outputs by quantities and inputs, and the
    outputs."""
    weights = normal(STEPS, 2 * N, seed=7)

    def total(p: Numbers, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = outputs(p, xs)
        return jnp.sum(weights * found), found

    return jax.grad(total, argnums=(0, 1), has_aux=True)


def of_library(kind: type) -> Callable[..., list[Any]]:
    """For every combination of options, in one compiled function."""

    @jax.jit
    def everything(p: Numbers, xs: jax.Array) -> list[Any]:
        return [
            with_gradients(functools.partial(built, kind, options))(p, xs)
            for options in combinations(kind)
        ]

    return everything


def of_equations(kind: type, p: Numbers, xs: jax.Array) -> list[Any]:
    def one(options: Options) -> Any:
        return with_gradients(functools.partial(by_hand, kind, options))(p, xs)

    options = [as_numbers(o) for o in combinations(kind)]
    stacked = jax.tree.map(lambda *o: jnp.asarray(o), *options)
    found = jax.jit(jax.vmap(one))(stacked)
    return [jax.tree.map(lambda x: x[k], found) for k in range(len(options))]  # noqa: B023


def assert_close(a: Any, b: Any, options: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12, err_msg=f"{options}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_options(kind: type):
    library, p, xs = of_library(kind), quantities(kind), inputs(kind)
    expected = of_equations(kind, p, xs)
    for options, a, b in zip(combinations(kind), library(p, xs), expected, strict=True):
        (by_p, _), outputs = b
        assert jnp.sum(outputs[:, :N]) > 3  # it fires
        unread = {"v_reset"} if options["reset"] != "hard" else set()
        for name in by_p.keys() - unread:
            assert jnp.any(by_p[name] != 0), name
        assert_close(a, b, options)

    # Who never fires does not notice the refractory period.
    weak = library(p, inputs(kind, 0.02 if kind in PEAKS else 0.1))
    for k, options in enumerate(combinations(kind)):
        assert not jnp.any(weak[k][1][:, :N])
        if options["refractory"]:
            assert_close(weak[k], weak[k - 1], options)


def test_constants_have_the_gradients_of_parameters():
    """By the inputs, the only ones there are."""
    options = dict(reset="soft", reset_delay=True, detach_reset=False, refractory=2)
    for kind in (nn.CurrentLIF, nn.ALIF, nn.AdEx):
        p, xs = quantities(kind), inputs(kind)
        fixed = {name: np.asarray(value) for name, value in p.items()}
        leaves = jax.tree.leaves(neuron_of(kind, fixed, options))
        assert not any(map(eqx.is_array, leaves))
        loss = lambda xs, q: jnp.sum(built(kind, options, q, xs) ** 2)  # noqa: B023, E731
        by_x = [jax.grad(loss)(xs, q) for q in (p, fixed)]
        np.testing.assert_allclose(*by_x, rtol=1e-9)
