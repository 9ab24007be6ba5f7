"""Layers one on top of the other: what is a layer, learned online, and a task."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace
import etrace.nn as nn
import etrace.testing as et

from ..mistakes import refused

IN, N, OUT, STEPS = 3, 4, 2, 6
KEYS = jax.random.split(jax.random.key(0), 8)
INPUTS = jax.random.normal(KEYS[6], (STEPS, IN))
TARGETS = jax.random.normal(KEYS[7], (STEPS, OUT))


def gru(inputs=IN):
    return eqx.nn.GRUCell(inputs, N, key=KEYS[0])


def lstm(inputs=N):
    return eqx.nn.LSTMCell(inputs, N, key=KEYS[1])


def linear(outputs=OUT):
    return eqx.nn.Linear(N, outputs, key=KEYS[2])


def integrator():
    return nn.LeakyIntegrator(OUT, tau=5.0)


def run(model, inputs=INPUTS):
    state, outputs = model.init_state(), []
    for x in inputs:
        y, state = model(state, x)
        outputs.append(y)
    return jnp.stack(outputs), state


# ------------------------------------------------------------------- what is a layer


def test_layers_of_every_kind():
    """Equinox cells, functions, layers of `etrace.nn`, and a stateful read-out."""
    leaky = nn.IndRNN(N, N, key=KEYS[3])
    norm = eqx.nn.LayerNorm(N)
    readout = nn.CTRNN(N, OUT, jnp.tanh, recurrent=False, key=KEYS[4])
    rnn = nn.RNN([gru(), jnp.tanh, linear(N), norm, lstm(), leaky], readout)
    outputs, state = run(rnn)

    g, h, c, i, r = *jnp.zeros((4, N)), jnp.zeros(OUT)
    for x, y in zip(INPUTS, outputs):
        g = gru()(x, g)
        h, c = lstm()(norm(linear(N)(jnp.tanh(g))), (h, c))
        _, i = leaky(i, h)
        _, r = readout(r, i)
        np.testing.assert_allclose(y, r, rtol=1e-12)
    assert len(state) == 7
    for a, b in zip(jax.tree.leaves(state), [g, h, c, i, r], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_nothing_is_copied_or_wrapped():
    layers = [gru(), jnp.tanh, nn.MGU(N, N, key=KEYS[3])]
    rnn = nn.RNN(layers, linear())
    assert all(a is b for a, b in zip(rnn.cells, layers))
    names = [row.parameter for row in etrace.DRTRL(rnn).graph(INPUTS[0]).rows]
    assert ".cells[0].weight_ih" in names and ".readout.weight" in names


def test_spiking_layers():
    """Weights before a neuron, and a leaky read-out of spikes: all of them traced."""
    lif = nn.LIF(N, tau=5.0, threshold=0.3)
    rnn = nn.RNN([eqx.nn.Linear(IN, N, key=KEYS[5]), lif, linear()], integrator())
    outputs, state = run(rnn, 3 * INPUTS)
    spikes, membrane, total = 0, lif.init_state(), integrator().init_state()
    for x, y in zip(3 * INPUTS, outputs):
        z, membrane = lif(membrane, rnn.cells[0](x))
        _, total = integrator()(total, linear()(z))
        np.testing.assert_allclose(y, total.v, rtol=1e-12)
        spikes += z.sum()
    assert spikes > 3
    np.testing.assert_array_equal(state[1].v, membrane.v)
    rows = etrace.DRTRL(rnn).graph(INPUTS[0]).rows
    assert {row.status for row in rows} == {"traced"} and len(rows) == 4


def test_an_rnn_is_a_layer():
    nested = nn.RNN([nn.RNN([gru()]), nn.RNN([lstm()], linear())])
    flat = nn.RNN([gru(), lstm()], linear())
    np.testing.assert_array_equal(run(nested)[0], run(flat)[0])


def test_without_a_readout():
    outputs, (state,) = run(nn.RNN([gru()]))
    np.testing.assert_array_equal(outputs[-1], state)


def test_the_state_has_the_dtype_of_the_cell():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (gru(), lstm()))
    for leaf in jax.tree.leaves(nn.RNN(half).init_state()):
        assert leaf.dtype == jnp.bfloat16


class Foreign(eqx.Module):
    """A cell of another library: `cell(input, hidden) -> hidden`, a dict of two."""

    linear: eqx.nn.Linear

    def __call__(self, input, hidden):
        fast = jnp.tanh(self.linear(input) + 0.5 * hidden["slow"])
        return {"fast": fast, "slow": 0.9 * hidden["slow"] + 0.1 * fast}


def foreign(**options):
    def start():
        return {"fast": jnp.zeros(N), "slow": jnp.ones(N)}

    return nn.CellLayer(
        Foreign(eqx.nn.Linear(IN, N, key=KEYS[5])), start=start, **options
    )


def test_cells_of_other_libraries():
    layer = foreign()
    outputs, (state, _) = run(nn.RNN([layer, jnp.sin]))
    np.testing.assert_array_equal(outputs[-1], jnp.sin(state["fast"]))
    slow = jnp.ones(N)
    for x, y in zip(INPUTS, outputs):
        fast = jnp.tanh(layer.cell.linear(x) + 0.5 * slow)
        slow = 0.9 * slow + 0.1 * fast
        np.testing.assert_allclose(y, jnp.sin(fast), rtol=1e-12)

    outputs, (state,) = run(nn.RNN([foreign(output=lambda state: state["slow"])]))
    np.testing.assert_array_equal(outputs[-1], state["slow"])


# ------------------------------------------------------------------- learned online


def gradient(model, method="single-step", window=2):
    driver = etrace.value_and_grad(
        et.squared_error, window=window, reduction="sum", carry=False
    )
    return driver(etrace.DRTRL(model, None, method), None, INPUTS, TARGETS)[1]


class ByHand(eqx.Module):
    """A GRU below an LSTM, wired by hand."""

    cells: tuple[eqx.nn.GRUCell, eqx.nn.LSTMCell]
    readout: eqx.nn.Linear

    def init_state(self):
        return jnp.zeros(N), (jnp.zeros(N), jnp.zeros(N))

    def __call__(self, state, x):
        g = self.cells[0](x, state[0])
        h = self.cells[1](g, state[1])
        return self.readout(h[0]), (g, h)


def test_wiring_changes_no_gradient():
    rnn = nn.RNN([gru(), lstm()], linear())
    by_hand = ByHand((gru(), lstm()), linear())
    for a, b in zip(*map(jax.tree.leaves, (gradient(rnn), gradient(by_hand)))):
        np.testing.assert_array_equal(a, b)


def test_a_foreign_cell_learns_online():
    """Its recurrence is position-local, so single steps give the exact gradient."""
    model = nn.RNN([foreign()], linear())
    _, exact = et.bptt(model, et.squared_error, INPUTS, TARGETS)
    _, now = et.truncated(model, et.squared_error, INPUTS, TARGETS)
    assert et.gradient_distance(gradient(model), exact) < 1e-12
    assert et.gradient_distance(now, exact) > 1e-2


class GLU(eqx.Module):
    """What stands between state-space layers: a gated linear unit, and a shortcut."""

    value: eqx.nn.Linear
    gate: eqx.nn.Linear

    def __init__(self, size, dtype=None, *, key):
        k1, k2 = jax.random.split(key)
        self.value = eqx.nn.Linear(size, size, dtype=dtype, key=k1)
        self.gate = eqx.nn.Linear(size, size, dtype=dtype, key=k2)

    def __call__(self, x):
        y = jax.nn.gelu(x)
        return x + self.value(y) * jax.nn.sigmoid(self.gate(y))


# What lies below a recurrent layer keeps its instantaneous gradient, and is reported.
deep = pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")


def deep_lru(inputs, size, hidden, outputs, depth, dtype=None, **options):
    """Linear in, LRUs with GLUs behind them, linear out."""
    first, last, *keys = jax.random.split(KEYS[0], 2 * depth + 2)
    layers = [eqx.nn.Linear(inputs, size, dtype=dtype, key=first)]
    for k1, k2 in zip(keys[::2], keys[1::2]):
        layers.append(nn.LRU(size, hidden, dtype=dtype, key=k1, **options))
        layers.append(GLU(size, dtype, key=k2))
    return nn.RNN(layers, eqx.nn.Linear(size, outputs, dtype=dtype, key=last))


@deep
def test_the_uppermost_lru_is_exact():
    """The lower one lacks the credit that reaches it through the upper one's memory,
    the layers between them their past."""
    model = deep_lru(IN, 3, N, OUT, depth=2)
    _, exact = et.bptt(model, et.squared_error, INPUTS, TARGETS)
    _, now = et.truncated(model, et.squared_error, INPUTS, TARGETS)
    steps, whole = gradient(model), gradient(model, "multi-step", STEPS)
    assert et.gradient_distance(whole, exact) < 1e-12
    for part in (lambda m: m.cells[3:], lambda m: m.readout):
        assert et.gradient_distance(part(steps), part(exact)) < 1e-12
    assert et.gradient_distance(now.cells[3], exact.cells[3]) > 1e-2
    assert et.gradient_distance(steps.cells[1], exact.cells[1]) > 1e-2
    assert et.gradient_distance(steps.cells[1], now.cells[1]) > 1e-2
    for part in (lambda m: m.cells[0], lambda m: m.cells[2]):
        assert et.gradient_distance(part(steps), part(now)) < 1e-12


# -------------------------------------------------------------------- delayed copy


def delayed_copy(key, delay, steps, batch=16):
    """Streams of random bits as ±1, and the bits of `delay` steps ago as 0 and 1."""
    bits = jax.random.bernoulli(key, 0.5, (delay + steps, batch, 1))
    bits = bits.astype(jnp.float32)
    return 2 * bits[delay:] - 1, bits[:-delay]


def wrong_bit(outputs, targets):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs, targets))


def accuracy(algorithm, delay):
    inputs, targets = delayed_copy(KEYS[4], delay, 300)
    state = algorithm.init(inputs[0])
    _, outputs = etrace.evolve(algorithm, state, inputs, window=100)
    right = (outputs > 0) == (targets > 0.5)
    return jnp.mean(right[3 * delay :])


def learn(algorithm, delay, steps, window, rate):
    """One pass over never-ending streams, an update of the weights every window, by
    ever less: what is learnt does not depend on rounding."""
    inputs, targets = delayed_copy(KEYS[5], delay, steps)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps // window))
    train = etrace.learn(wrong_bit, optimiser, window=window)
    state = optimiser.init(eqx.filter(algorithm.model, eqx.is_inexact_array))
    stream = algorithm.init(inputs[0])
    return train(algorithm, state, stream, inputs, targets)[0]


@deep
@jax.numpy_dtype_promotion("standard")  # optax relies on it
@pytest.mark.parametrize(
    "depth, delay, window, rate", [(1, 10, 1, 3e-3), (2, 15, 5, 1e-2)]
)
def test_lrus_learn_to_remember(depth, delay, window, rate):
    """One layer, one step at a time; two, in windows shorter than the delay."""
    model = deep_lru(1, 8, 32, 1, depth, jnp.float32, r_min=0.8, r_max=0.99)
    algorithm = etrace.DRTRL(model, batched=True)
    assert accuracy(algorithm, delay) < 0.7
    algorithm = learn(algorithm, delay, 1500, window, rate)
    assert accuracy(algorithm, delay) > 0.95


# ------------------------------------------------------------------------- mistakes


class NoState(eqx.Module):
    """Called like an Equinox cell, but says not how its state starts."""

    def __call__(self, input, hidden):
        return hidden


class Reversed(eqx.Module):
    """A layer whose call lacks the input."""

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, state):
        return state, state


MISTAKES = {
    "no list": (lambda: nn.RNN(gru()), TypeError, r"cells is a GRUCell.*\[layer\]"),
    "no layer": (lambda: nn.RNN([]), ValueError, "cells is empty"),
    "a number": (
        lambda: nn.RNN([gru(), 3]),
        TypeError,
        r"cells\[1\] is 3, a int, which cannot be called; expected a layer",
    ),
    "a class": (
        lambda: nn.RNN([nn.LRU]),
        TypeError,
        r"cells\[0\] is the class LRU; expected an instance",
    ),
    "a cell without a state": (
        lambda: nn.RNN([NoState()]),
        TypeError,
        r"cells\[0\] is a NoState.* as layer\(x\).*\(input, hidden\).*CellLayer",
    ),
    "a layer without an input": (
        lambda: nn.RNN([gru()], Reversed()),
        TypeError,
        r"readout is a Reversed.* as layer\(state, x\).*\(state\)\.$",
    ),
    "a cell layer's cell": (
        lambda: nn.CellLayer(3, start=lambda: jnp.zeros(2)),
        TypeError,
        "cell is 3; expected a function",
    ),
    "a cell layer's start": (
        lambda: nn.CellLayer(gru(), start=jnp.zeros(2)),
        TypeError,
        "start is .*; expected a function",
    ),
    "a cell layer's output": (
        lambda: nn.CellLayer(gru(), start=lambda: jnp.zeros(2), output="h"),
        TypeError,
        "output is 'h'; expected a function or None",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    refused(*MISTAKES[mistake])
