"""Rules made with wrong options say what was wrong, and where each rule is exact."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import etrace
import etrace.testing as et
from etrace.testing._parts import spike

from .mistakes import refused

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


class Spiking(eqx.Module):
    """A layer of spiking neurons, read by leaky neurons that keep `leak`."""

    weight: jax.Array
    recurrent: jax.Array | None
    readout: jax.Array
    leak: float = 0.7

    def __init__(self, recurrent: bool = False, neurons: int = 4):
        self.weight = normal(neurons, 3)
        self.recurrent = normal(neurons, neurons, seed=1) if recurrent else None
        self.readout = normal(2, neurons, seed=2)

    def init_state(self):
        neurons = self.readout.shape[1]
        return jnp.zeros(neurons), jnp.zeros(neurons), jnp.zeros(2)

    def __call__(self, state, x):
        v, s, y = state
        v = 0.8 * v + self.weight @ x - 0.5 * jax.lax.stop_gradient(s)
        if self.recurrent is not None:
            v = v + self.recurrent @ s
        s = spike(v - 0.5)
        y = self.leak * y + self.readout @ s
        return y, (v, s, y)


class Instant(Spiking):
    """The same, read without a memory: the whole model is one layer."""

    def init_state(self):
        return jnp.zeros(self.readout.shape[1])

    def __call__(self, v, x):
        v = 0.8 * v + self.weight @ x
        s = spike(v - 0.5)
        return self.readout @ s, v - 0.5 * jax.lax.stop_gradient(s)


INPUTS, TARGETS = normal(7, 3, seed=3), normal(7, 2, seed=4)


def distance_to_bptt(algorithm: Any, window: int = 3) -> float:
    run = etrace.value_and_grad(
        et.squared_error, window=window, reduction="sum", carry=False
    )
    _, grads = run(algorithm, None, INPUTS, TARGETS)
    _, exact = et.bptt(algorithm.model, et.squared_error, INPUTS, TARGETS)
    return float(et.gradient_distance(grads, exact))


def test_eprop_is_exact_with_the_leak_of_the_readout():
    assert distance_to_bptt(etrace.EProp(Spiking(), kappa=0.7)) < 1e-12
    assert distance_to_bptt(etrace.EProp(Spiking(), kappa=0.0)) > 1e-2
    assert distance_to_bptt(etrace.EProp(Spiking(recurrent=True), kappa=0.7)) > 1e-2


def test_otpe_is_exact_for_one_hidden_layer():
    assert distance_to_bptt(etrace.OTPE(Spiking(), leak=0.7)) < 1e-12
    assert distance_to_bptt(etrace.OTPE(Spiking(), leak=0.6)) > 1e-2


def test_ottt_is_exact_for_one_layer():
    assert distance_to_bptt(etrace.OTTT(Instant(), leak=0.8)) < 1e-12
    assert distance_to_bptt(etrace.OTTT(Instant(), leak=0.7)) > 1e-2


def test_without_memory_esdrtrl_is_instantaneous():
    model = Spiking()
    run = etrace.value_and_grad(et.squared_error, reduction="sum", carry=False)
    _, grads = run(etrace.ESDRTRL(model, decay=0.0), None, INPUTS, TARGETS)
    _, now = et.truncated(model, et.squared_error, INPUTS, TARGETS)
    assert et.gradient_distance(grads, now) < 1e-12


def test_rank_is_a_decay():
    assert etrace.ESDRTRL(Spiking(), rank=3).decays == (0.5, 0.5)


@pytest.mark.parametrize("feedback", ["random", "adaptive"])
def test_other_feedback_learns(feedback):
    algorithm: Any = etrace.EProp(
        Spiking(recurrent=True, neurons=20), kappa=0.7, feedback=feedback, key=KEY
    )
    train = etrace.learn(et.squared_error, optax.sgd(0.01), window=7)
    losses, opt_state = [], None
    for _ in range(40):
        algorithm, opt_state, _, loss = train(
            algorithm, opt_state, None, INPUTS, TARGETS
        )
        losses.append(float(loss.mean()))
    assert losses[-1] < 0.7 * losses[0]


def test_adaptive_feedback_follows_the_readout():
    """With the read-out's change in it, another key gives the same difference."""
    model = Instant()
    changed = eqx.tree_at(lambda m: m.readout, model, model.readout + normal(2, 4))
    run = etrace.value_and_grad(et.squared_error, reduction="sum", carry=False)

    def gradient(feedback, model, start):
        algorithm = etrace.EProp(start, feedback=feedback, key=KEY).with_model(model)
        return run(algorithm, None, INPUTS, TARGETS)[1].weight

    same = gradient("adaptive", model, model) - gradient("random", model, model)
    assert jnp.allclose(same, 0)
    moved = gradient("adaptive", changed, model) - gradient("random", changed, model)
    # The part of the signal that the change adds is that of a symmetric read-out.
    only = eqx.tree_at(lambda m: m.readout, model, changed.readout - model.readout)
    outputs = lambda m: jnp.stack([*_outputs(m)])  # noqa: E731
    error = outputs(changed) - TARGETS
    _, expected = et.bptt(only, lambda y, e: jnp.sum(y * e), INPUTS, error)
    assert jnp.allclose(moved, expected.weight)


def _outputs(model):
    v = model.init_state()
    for x in INPUTS:
        y, v = model(v, x)
        yield y


def test_a_budget_of_bytes_is_kept():
    model = Spiking(recurrent=True, neurons=20)
    whole = etrace.DRTRL(model).graph(INPUTS[0]).nbytes
    least = etrace.ESDRTRL(model).graph(INPUTS[0]).nbytes
    for budget in (whole, (whole + least) // 2, least):
        algorithm = etrace.HybridDRTRL(model, max_bytes=budget)
        *_, trace = algorithm.init(INPUTS[0])
        assert sum(x.nbytes for x in jax.tree.leaves(trace)) <= budget
    with pytest.raises(ValueError, match="max_bytes is 10, but .* at least"):
        etrace.HybridDRTRL(model, max_bytes=10).init(INPUTS[0])


WRONG: list[tuple[Any, type, str]] = [
    (functools.partial(etrace.EProp, kappa=1.1), ValueError, "kappa is 1.1"),
    (functools.partial(etrace.EProp, kappa="x"), TypeError, "kappa is 'x'"),
    (functools.partial(etrace.EProp, feedback="mirror"), ValueError, "feedback must"),
    (functools.partial(etrace.EProp, feedback="random", key=3), TypeError, "key is 3"),
    (functools.partial(etrace.ESDRTRL, decay=1.5), ValueError, "decay is 1.5"),
    (functools.partial(etrace.ESDRTRL, decay=(1, 2, 3)), ValueError, "pair of numbers"),
    (functools.partial(etrace.ESDRTRL, rank=0), ValueError, "rank is 0"),
    (
        functools.partial(etrace.HybridDRTRL, max_bytes=9, factored=lambda m: m.weight),
        ValueError,
        "max_bytes and factored",
    ),
    (functools.partial(etrace.OTTT, leak=-0.1), ValueError, "leak is -0.1"),
    (functools.partial(etrace.UORO, key=None), TypeError, "key is"),
    (functools.partial(etrace.SnAp, n=0), ValueError, "n is 0"),
    (functools.partial(etrace.ThreeFactor, rule=3), TypeError, "rule is 3"),
    (functools.partial(etrace.DNI, synthesiser=None), TypeError, "synthesiser is None"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_wrong_options(make, error, message):
    refused(lambda: make(Spiking()), error, message)


def test_rflo_needs_one_number_a_neuron():
    with pytest.raises(ValueError, match="one number per neuron"):
        etrace.RFLO(Spiking(), leak=0.9).init(INPUTS[0])


def test_adaptive_feedback_needs_a_linear_readout():
    class Mean(Instant):
        def __call__(self, v, x):
            _, v = super().__call__(v, x)
            return v.mean()[None], v

    algorithm = etrace.EProp(Mean(), feedback="adaptive")
    run = etrace.value_and_grad(et.squared_error)
    with pytest.raises(ValueError, match='feedback is "adaptive", but no weight'):
        run(algorithm, None, INPUTS, TARGETS[:, :1])


@pytest.mark.parametrize(
    ("modulator", "message"),
    [
        (jnp.zeros(3), "modulator is float64\\[3\\]"),
        (jnp.zeros((7, 5)), "modulator is float64\\[7, 5\\]"),
        (jnp.zeros(7, int), "modulator is int64"),
    ],
)
def test_wrong_modulators(modulator, message):
    run = etrace.value_and_grad(et.squared_error)
    algorithm = etrace.ThreeFactor(Instant())
    with pytest.raises(ValueError, match=message):
        run(algorithm, None, INPUTS, TARGETS, modulator=modulator)


def test_a_modulator_where_none_is_expected_and_the_reverse():
    run = etrace.value_and_grad(et.squared_error)
    with pytest.raises(TypeError, match="modulator is given, but DRTRL"):
        run(etrace.DRTRL(Instant()), None, INPUTS, TARGETS, modulator=jnp.zeros(7))
    with pytest.raises(ValueError, match="modulator is missing"):
        run(etrace.ThreeFactor(Instant()), None, INPUTS, TARGETS)


class Affine(eqx.Module):
    """A synthesiser for one array."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, hidden):
        return self.weight @ hidden + self.bias


def test_a_synthesiser_learns_what_later_losses_say():
    model = Instant()
    algorithm = etrace.DNI(
        model,
        vjp_method="multi-step",
        synthesiser=Affine(jnp.zeros((4, 4)), jnp.zeros(4)),
    )
    inputs, targets = normal(8, 3, seed=3), normal(8, 2, seed=4)
    fitted, losses = etrace.fit_synthesiser(
        algorithm,
        et.squared_error,
        inputs,
        targets,
        optax.sgd(0.3),
        window=2,
        epochs=300,
    )
    assert losses[-1] < 0.5 * losses[0]
    run = etrace.value_and_grad(et.squared_error, window=4, reduction="sum")
    with pytest.raises(ValueError, match="fitted for windows of 2 steps"):
        run(fitted, None, inputs, targets)


def test_a_perfect_synthesiser_gives_bptt():
    """The gradient behind a window, put in by hand."""
    model = Instant()
    _, exact = et.bptt(model, et.squared_error, INPUTS, TARGETS)
    first = 4

    def later(v):
        total = 0.0
        for x, target in zip(INPUTS[first:], TARGETS[first:], strict=True):
            y, v = model(v, x)
            total += et.squared_error(y, target)
        return total

    class Perfect(eqx.Module):
        def __call__(self, hidden):
            return jax.grad(later)(hidden)

    run = etrace.value_and_grad(et.squared_error, window=7, reduction="sum")
    make = functools.partial(etrace.DNI, model, vjp_method="multi-step")
    _, head, state = run(
        make(synthesiser=Perfect()), None, INPUTS[:first], TARGETS[:first]
    )
    reverse = et.truncated(
        model,
        et.squared_error,
        INPUTS[first:],
        TARGETS[first:],
        window=len(INPUTS) - first,
        state=state[0],
    )
    total = jax.tree.map(jnp.add, head, reverse[1])
    assert et.gradient_distance(total, exact) < 1e-12
