"""Masks that change while the trace goes on: refused, or moved over exactly."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.testing as et

N, IN, OUT, T = 4, 3, 2, 6
KEYS = jax.random.split(jax.random.key(3), 6)
OLD, NEW = (jax.random.bernoulli(k, 0.5, (N, IN)) for k in KEYS[:2])
W, READOUT = jax.random.normal(KEYS[2], (N, IN)), jax.random.normal(KEYS[3], (OUT, N))
XS, TARGETS = jax.random.normal(KEYS[4], (T, IN)), jnp.ones((T, OUT))
PLACES = {"kept": OLD & NEW, "grown": ~OLD & NEW, "pruned": OLD & ~NEW}


class Masked(eqx.Module):
    """Leaky neurons with a masked matrix; `gains` are whole numbers that scale it."""

    w: jax.Array
    mask: jax.Array
    gains: jax.Array
    steps: jax.Array  # a constant that no weight meets

    def __init__(self, mask: jax.Array, gain: int = 1, steps: int = 0):
        self.w, self.mask, self.gains = W, mask, jnp.full((N, 1), gain)
        self.steps = jnp.asarray(steps)

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        w = jnp.where(self.mask, self.w * self.gains.astype(float), 0)
        h = 0.9 * h + jnp.tanh(w @ x)
        return READOUT @ h + 0 * self.steps.astype(float), h


RUN = etrace.value_and_grad(et.squared_error, window=3, reduction="sum")


def truth(then: Masked, now: Masked) -> jax.Array:
    """The gradient of the losses after the change, through both models."""

    def loss(w):
        h, total = then.init_state(), jnp.zeros(())
        for model, counts in ((then, 0.0), (now, 1.0)):
            model = eqx.tree_at(lambda m: m.w, model, w)
            for x, target in zip(XS, TARGETS, strict=True):
                y, h = model(h, x)
                total = total + counts * et.squared_error(y, target)
        return total

    return jax.grad(loss)(W)


def after(algorithm: etrace.ETraceVjpAlgorithm, xs: Any = XS) -> Any:
    """The state after a sequence."""
    return RUN(algorithm, None, xs, TARGETS)[2]


def close(got: jax.Array, exact: jax.Array, place: str) -> bool:
    at = PLACES[place]
    assert jnp.any(exact[at] != 0)
    return bool(jnp.allclose(got[at], exact[at], rtol=1e-9))


RULES: dict[str, Callable] = {
    "DRTRL": etrace.DRTRL,
    "multi-step": functools.partial(etrace.DRTRL, vjp_method="multi-step"),
    "EProp": functools.partial(etrace.EProp, kappa=0.5),
    "RFLO": functools.partial(etrace.RFLO, leak=0.9, feedback="symmetric"),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rewired_trace_is_exact(name: str):
    algorithm = RULES[name](Masked(OLD))
    exact = truth(Masked(OLD), Masked(NEW))
    algorithm, state = algorithm.rewired(after(algorithm), Masked(NEW))
    got = RUN(algorithm, state, XS, TARGETS)[1].w
    assert close(got, exact, "kept") and close(got, exact, "grown")
    assert not jnp.any(got[PLACES["pruned"]])


def test_a_batch_is_rewired():
    algorithm = etrace.DRTRL(Masked(OLD), batched=True)
    loss = lambda y, t: jnp.sum(jax.vmap(et.squared_error)(y, t))  # noqa: E731
    run = etrace.value_and_grad(loss, window=3, reduction="sum")
    xs, targets = (jnp.stack([x, x], 1) for x in (XS, TARGETS))
    state = run(algorithm, None, xs, targets)[2]
    algorithm, state = algorithm.rewired(state, Masked(NEW))
    got = run(algorithm, state, xs, targets)[1].w / 2
    exact = truth(Masked(OLD), Masked(NEW))
    assert close(got, exact, "kept") and close(got, exact, "grown")


def test_a_trace_is_scaled_as_its_weight_was():
    then, now = Masked(OLD, gain=2), Masked(NEW, gain=3)
    algorithm = etrace.DRTRL(then)
    algorithm, state = algorithm.rewired(after(algorithm), now)
    got, exact = RUN(algorithm, state, XS, TARGETS)[1].w, truth(then, now)
    assert close(got, exact, "kept") and close(got, exact, "grown")


def test_rtrl_goes_on_whatever_is_rewired():
    algorithm, exact = etrace.RTRL(Masked(OLD)), truth(Masked(OLD), Masked(NEW))
    state = after(algorithm)
    moved, same = algorithm.rewired(jax.tree.map(jnp.copy, state), Masked(NEW))
    got = RUN(moved, same, XS, TARGETS)[1].w
    assert all(close(got, exact, place) for place in PLACES)
    got = RUN(algorithm.with_model(Masked(NEW)), state, XS, TARGETS)[1].w
    assert all(close(got, exact, place) for place in PLACES)


CALLS: dict[str, Callable] = {
    "update": lambda alg, state: alg.update(*state, XS[0]),
    "value_and_grad": lambda alg, state: RUN(alg, state, XS, TARGETS),
    "evolve": lambda alg, state: etrace.evolve(alg, state, XS),
}


@pytest.mark.parametrize("name", CALLS)
def test_another_mask_is_refused(name: str):
    algorithm = etrace.DRTRL(Masked(OLD))
    hidden, other, trace = algorithm.init(XS[0])
    state = lambda: (jax.tree.map(jnp.copy, hidden), other, trace)  # noqa: E731
    changed = algorithm.with_model(Masked(NEW))
    with pytest.raises(ValueError, match=r"model\.mask has changed.*\.rewired\(state"):
        CALLS[name](changed, state())
    # What no weight meets may change.
    CALLS[name](algorithm.with_model(Masked(OLD, steps=3)), state())


def test_another_mask_is_refused_when_a_compiled_step_is_run():
    algorithm = etrace.DRTRL(Masked(OLD))
    step = eqx.filter_jit(lambda alg, state: alg.update(*state, XS[0]))
    state = algorithm.init(XS[0])
    step(algorithm, state)
    step(algorithm.with_model(Masked(OLD, steps=3)), state)
    with pytest.raises(RuntimeError, match=r"model\.mask has changed"):
        jax.block_until_ready(step(algorithm.with_model(Masked(NEW)), state))


def test_a_mask_the_analysis_never_knew_may_change():
    """Inside `jax.jit` it is data; it can be rewired there."""

    @eqx.filter_jit
    def both(then, now):
        algorithm = etrace.DRTRL(then)
        algorithm, state = algorithm.rewired(after(algorithm), now)
        return RUN(algorithm, state, XS, TARGETS)[1].w

    got, exact = both(Masked(OLD), Masked(NEW)), truth(Masked(OLD), Masked(NEW))
    assert close(got, exact, "kept") and close(got, exact, "grown")
    step = eqx.filter_jit(lambda alg, state: alg.update(*state, XS[0])[1:])
    state = eqx.filter_jit(lambda alg: alg.init(XS[0]))(etrace.DRTRL(Masked(OLD)))
    for mask in (OLD, NEW):
        state = step(etrace.DRTRL(Masked(mask)), state)


class Mixed(eqx.Module):
    """A weight of two parameters; whole numbers say how much of each."""

    a: jax.Array
    b: jax.Array
    share: jax.Array

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        w = self.a * self.share.astype(float) + self.b
        h = 0.9 * h + jnp.tanh(w @ x)
        return h, h


def test_what_cannot_be_moved_is_refused():
    algorithm = etrace.ESDRTRL(Masked(OLD))
    with pytest.raises(ValueError, match="ESDRTRL keeps its trace in another form"):
        algorithm.rewired(algorithm.init(XS[0]), Masked(NEW))
    # Nothing that it is about has changed.
    algorithm.rewired(algorithm.init(XS[0]), Masked(OLD, steps=2))
    then, now = (Mixed(W, W, jnp.full((1, 1), n)) for n in (1, 2))
    algorithm = etrace.DRTRL(then)
    with pytest.raises(ValueError, match="change how parameters are combined"):
        algorithm.rewired(algorithm.init(XS[0]), now)
    algorithm = etrace.DRTRL(Masked(OLD))
    with pytest.raises(ValueError, match="trace belongs to another model"):
        algorithm.rewired(algorithm.init(XS[0]), Masked(OLD[:, :2]))
