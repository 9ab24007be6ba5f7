"""Graphs of NIR: out and back, and against its equations in NumPy."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest

import etrace
import etrace.nir
import etrace.nn as nn
import etrace.testing as et

from .nir_graphs import (
    DT,
    KEYS,
    graph_of,
    hard,
    input_of,
    linear,
    normal,
    output_of,
    parameters,
    uniform,
)

METHODS = {
    "euler": lambda tau: DT / tau,
    "exponential": lambda tau: 1 - np.exp(-DT / tau),
}


def layers(network: Any) -> list[Any]:
    """Those of networks in a network in its place."""
    if not isinstance(network, nn.RNN):
        return [network]
    parts = [*network.cells, network.readout]
    return [layer for part in parts if part is not None for layer in layers(part)]


def outputs(network: Any, inputs: np.ndarray) -> list[np.ndarray]:
    """Of every layer, at every step."""
    flat = [nn.RNN([layer]) for layer in layers(network)]

    def step(states, x):
        found, new = [], []
        for layer, state in zip(flat, states, strict=True):
            x, state = layer(state, x)
            found.append(x)
            new.append(state)
        return new, found

    states = [layer.init_state() for layer in flat]
    return [np.asarray(y) for y in jax.lax.scan(step, states, jnp.asarray(inputs))[1]]


# ------------------------------------------------------------------------ out and back


def neurons() -> nn.RNN:
    """Every kind of neuron, constants and parameters, any unit of time."""
    trained = jnp.linspace(3.0, 9.0, 6)
    per_neuron = hard(threshold=uniform(0.1, 0.3, 6), v_reset=uniform(-0.3, 0.0, 6))
    return nn.RNN(
        [
            linear(3, 6),
            nn.LIF(6, tau=trained, v_rest=0.1, drive="current", **per_neuron),
            linear(6, 5, use_bias=False),
            nn.LIF(5, tau=7e-3, dt=2e-3, v_rest=normal(5), **hard()),
            linear(5, 5),
            nn.RNN([nn.CurrentLIF(5, tau_syn=uniform(1, 5, 5), **hard())]),
            linear(5, 4),
            nn.CurrentLIF(4, drive="current", **hard(threshold=jnp.full(4, 0.02))),
            nn.RNN([linear(4, 4)], readout=nn.IF(4, **hard(threshold=0.9))),
        ],
        readout=nn.RNN([linear(4, 2), nn.LeakyIntegrator(2, v_rest=0.3)]),
    )


def synapses() -> nn.RNN:
    lif = nn.LIF(5, tau=jnp.asarray(6.0), **hard())
    scale = etrace.nir.Scale(5, jnp.linspace(0.5, 2.0, 5))
    li = nn.LeakyIntegrator(4, drive="current")
    return nn.RNN(
        [
            linear(3, 5),
            nn.Synaptic(scale, nn.Synaptic(nn.Exponential(5, tau=3.0, dt=0.5), lif)),
            scale,
            nn.Synaptic(nn.Delta(5), nn.LIF(5, tau=2.0, **hard())),
            eqx.nn.Linear(5, 4, key=KEYS[7]),
            nn.Synaptic(etrace.nir.Scale(4, [0.5, 1.0, 2.0, -2.0]), nn.IF(4, **hard())),
            nn.Synaptic(nn.Exponential(4, tau=2.0), li),
        ]
    )


def recurrent() -> nn.RNN:
    biased = etrace.nir.Scale(5, normal(5, seed=3), jnp.linspace(-0.5, 0.5, 5))
    slow = nn.LeakyIntegrator(4, drive="current")
    behind = nn.Synaptic(biased, nn.CurrentLIF(5, **hard()))
    return nn.RNN(
        [
            nn.Recurrent(3, nn.LIF(6, **hard()), key=KEYS[0]),
            nn.Recurrent(6, behind, excitatory=0.8, key=KEYS[1]),
            nn.Recurrent(5, slow, self_connections=True, key=KEYS[2]),
        ]
    )


def images() -> nn.RNN:
    """Kernels, strides, paddings and groups of several kinds."""
    first = eqx.nn.Conv2d(
        2, 4, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, key=KEYS[0]
    )
    same = eqx.nn.Conv2d(4, 2, 3, padding="SAME", dilation=(1, 2), key=KEYS[1])
    return nn.RNN(
        [
            first,
            nn.LIF((4, 3, 5), tau=uniform(2, 9, 4, 1, 1), **hard()),
            same,
            nn.IF((2, 3, 5), **hard(threshold=1.0)),
            jnp.ravel,
            linear(30, 2),
        ]
    )


def sound() -> nn.RNN:
    conv = eqx.nn.Conv1d(2, 3, 4, stride=2, padding=1, use_bias=False, key=KEYS[0])
    valid = eqx.nn.Conv1d(3, 3, 2, padding="VALID", key=KEYS[1])
    return nn.RNN([conv, nn.LIF((3, 4), **hard()), valid])


NETWORKS = {
    "neurons": (neurons, (3,)),
    "synapses": (synapses, (3,)),
    "recurrent": (recurrent, (3,)),
    "images": (images, (2, 5, 6)),
    "sound": (sound, (2, 9)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_out_and_back(name: str, method: Any, tmp_path):
    make, shape = NETWORKS[name]
    network, inputs = make(), 2 * normal(100, *shape)
    graph = etrace.nir.export(network, inputs[0], dt=DT, method=method)
    nir.write(tmp_path / "graph.nir", graph)
    if name != "images":  # nir cannot check kernels in groups
        nir.read(tmp_path / "graph.nir")
    back = etrace.nir.load(tmp_path / "graph.nir", dt=DT, method=method)
    found = outputs(back, inputs)
    for y, expected in zip(found, outputs(network, inputs), strict=True):
        # Neurons fire in every layer, and not always.
        assert np.mean(np.ptp(expected, axis=0) > 0.1) >= 0.25
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    for old, new in zip(layers(network), layers(back)):
        if isinstance(old, nn.Recurrent):
            assert new.self_connections == old.self_connections
    # The same graph once more: nothing wears off, and no layer is added.
    assert_same(etrace.nir.export(back, inputs[0], dt=DT, method=method), graph)


def assert_same(a: nir.NIRNode, b: nir.NIRNode) -> None:
    assert type(a) is type(b)
    if isinstance(a, nir.NIRGraph):
        for x, y in zip(a.nodes.values(), b.nodes.values(), strict=True):
            assert_same(x, y)
        return
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_allclose(x, y, rtol=1e-12)
        elif not isinstance(x, dict):
            assert x == y


def test_time_constants_and_gains():
    """In numbers: what is left after a step of 1 ms is 1 - 1/10, and exp(-1/20)."""
    layer = nn.LIF(2, tau=-1 / np.log(0.9), threshold=0.7, reset="hard", v_rest=0.2)
    node = etrace.nir.export(layer, jnp.ones(2), dt=1e-3).nodes["layer"]
    assert isinstance(node, nir.LIF)
    for name, value in dict(tau=1e-2, r=10, v_leak=0.2, v_reset=0.2).items():
        np.testing.assert_allclose(getattr(node, name), [value] * 2, rtol=1e-12)

    layer = nn.CurrentLIF(
        2, tau=20.0, tau_syn=10.0, dt=0.5, drive="current", reset="hard"
    )
    options: Any = dict(dt=5e-4, method="exponential")
    node = etrace.nir.export(layer, jnp.ones(2), **options).nodes["layer"]
    assert isinstance(node, nir.CubaLIF)
    w_in = 1 / (1 - np.exp(-0.05))
    for name, value in dict(tau_mem=2e-2, tau_syn=1e-2, r=1, w_in=w_in).items():
        np.testing.assert_allclose(getattr(node, name), [value] * 2, rtol=1e-12)


# ------------------------------------------------------------- against NIR's equations


class Simulated:
    """A node's published equation, stepped plainly: the current, the membrane, the
    spike, the reset. `share` of τ is how far a variable goes towards its drive."""

    def __init__(self, node: Any, share: Any):
        self.node, self.share, self.i = node, share, 0.0
        self.v = getattr(node, "v_leak", 0.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        p = self.node
        if hasattr(p, "tau_syn"):
            self.i += self.share(p.tau_syn) * (p.w_in * x - self.i)
            x = self.i
        if isinstance(p, nir.IF):
            self.v = self.v + DT * p.r * x
        else:
            tau = p.tau if hasattr(p, "tau") else p.tau_mem
            self.v = self.v + self.share(tau) * (p.v_leak - self.v + p.r * x)
        if not hasattr(p, "v_threshold"):
            return self.v
        z = self.v > p.v_threshold
        self.v = np.where(z, p.v_reset, self.v)
        return z.astype(float)


KINDS = [nir.LIF, nir.CubaLIF, nir.LI, nir.CubaLI, nir.IF]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(4,), (2, 3), ()])
@pytest.mark.parametrize("kind", KINDS)
def test_neurons(kind: Any, shape: tuple[int, ...], method: Any):
    """One number a neuron, or one number for four: 200 steps."""
    node = kind(**parameters(kind, shape))
    size = shape or (4,)
    graph = graph_of(input_of(*size), node, output_of(*size), type_check=bool(shape))
    network = etrace.nir.load(graph, dt=DT, method=method)
    inputs, simulated = 2 * normal(200, *size) + 0.5, Simulated(node, METHODS[method])
    expected = np.array([simulated(x) for x in inputs])
    (found,) = outputs(network, inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.all(np.ptp(expected, axis=0) > 0.1)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", [nir.LIF, nir.CubaLIF])
def test_feedback(kind: Any, nested: bool):
    """In a subgraph or not; with the biases of input weights and feedback."""
    node = kind(**parameters(kind, (4,)))
    if kind is nir.LIF:  # a gain for which a layer alone would do
        node.r[:] = 1
    weight, bias = 2 * normal(4, 3), uniform(0.1, 0.5, 4)
    around = nir.Affine(normal(4, 4, seed=1), -bias / 3)
    part = node, around
    if nested:
        part = graph_of(input_of(4), part, output_of(4))
    graph = graph_of(input_of(3), nir.Affine(weight, bias), part, output_of(4))
    network = etrace.nir.load(graph, dt=DT)
    (layer,) = network.cells
    assert isinstance(layer, nn.Recurrent) and layer.self_connections
    simulated, z = Simulated(node, METHODS["euler"]), np.zeros(4)
    inputs, expected = normal(200, 3), []
    for x in inputs:
        z = simulated(weight @ x + bias + around.weight @ z + around.bias)
        expected.append(z)
    np.testing.assert_array_equal(outputs(network, inputs)[0], expected)
    assert np.all(np.ptp(expected, axis=0) == 1)


def correlated(x: np.ndarray, node: Any) -> np.ndarray:
    """A convolution as NIR has it: sums over windows of the padded input."""
    (s1, s2), (d1, d2), g = node.stride, node.dilation, node.groups
    kernel = node.weight
    pads = [d * (k - 1) for k, d in zip(kernel.shape[2:], (d1, d2))]
    same = [(n // 2, n - n // 2) for n in pads]
    padding = same if node.padding == "same" else [(n, n) for n in node.padding]
    x = np.pad(x, [(0, 0), *padding])
    windows = np.lib.stride_tricks.sliding_window_view(
        x, [n + 1 for n in pads], axis=(1, 2)
    )
    windows = windows[:, ::s1, ::s2, ::d1, ::d2]
    out = [
        np.einsum("cijkl,ockl->oij", part, weights)
        for part, weights in zip(np.split(windows, g), np.split(kernel, g))
    ]
    return np.concatenate(out) + node.bias[:, None, None]


@pytest.mark.parametrize(
    "options",
    [
        dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        dict(stride=1, padding="same", dilation=1, groups=1),
        dict(stride=1, padding=0, dilation=1, groups=4),
    ],
)
def test_convolutions(options):
    weight = normal(4, 4 // options["groups"], 2, 3)
    node = nir.Conv2d((6, 7), weight, bias=normal(4, seed=1), **options)
    inputs = normal(2, 4, 6, 7)
    expected = np.array([correlated(x, node).ravel() for x in inputs])
    flatten = nir.Flatten(None, start_dim=0)
    nodes = node, flatten, output_of(len(expected[0]))
    network = etrace.nir.load(
        graph_of(input_of(4, 6, 7), *nodes, type_check=False), dt=1.0
    )
    np.testing.assert_allclose(outputs(network, inputs)[1], expected, atol=1e-12)


def test_a_gain_of_single_precision_is_a_jump():
    """As snnTorch writes its neurons: v = β v + x, of numbers in single precision."""
    beta = np.array([0.9, 0.73], np.float32)
    tau = np.float32(1e-4) / (1 - beta)
    zeros = np.zeros(2, np.float32)
    node = nir.LIF(tau, tau / np.float32(1e-4), zeros, zeros + 1, zeros)
    graph = graph_of(input_of(2), node, output_of(2))
    (layer,) = etrace.nir.load(graph, dt=1e-4).cells
    assert isinstance(layer, nn.LIF) and layer.leak.drive == "jump"
    _, state = layer(layer.init_state()._replace(v=jnp.full(2, 0.5)), jnp.full(2, 0.25))
    np.testing.assert_allclose(state.v, 0.5 * beta + 0.25, rtol=1e-6)


def test_what_a_graph_does_not_say():
    node = nir.LIF(**parameters(nir.LIF, (3,)))
    graph = graph_of(input_of(3), node, output_of(3))
    options: Any = dict(spike=nn.Sigmoid(), detach_reset=True, dtype=jnp.float32)
    (layer,) = etrace.nir.load(graph, dt=DT, **options).cells
    assert isinstance(layer, nn.Synaptic) and isinstance(layer.neuron, nn.LIF)
    firing = layer.neuron.firing
    assert firing.spike == nn.Sigmoid() and firing.detach_reset
    assert layer.init_state().v.dtype == jnp.float32


# ---------------------------------------------------------------------------- training


def test_a_loaded_network_trains():
    """Online gradients are those of backpropagation through time."""
    neurons = nir.LIF(**parameters(nir.LIF, (5,)))
    weights = nir.Affine(3 * normal(5, 3), uniform(0.3, 1.0, 5))
    readout = nir.Linear(normal(2, 5))
    graph = graph_of(input_of(3), weights, neurons, readout, output_of(2))
    network = etrace.nir.load(graph, dt=DT)
    inputs, targets = normal(20, 3), normal(20, 2, seed=1)
    assert np.all(np.ptp(outputs(network, inputs)[1], axis=0) == 1)
    loss = et.squared_error
    _, expected = et.bptt(network, loss, inputs, targets)
    _, now = et.truncated(network, loss, inputs, targets, window=1)
    driver = etrace.value_and_grad(loss, window=4, reduction="sum", carry=False)
    _, found = driver(etrace.DRTRL(network), None, inputs, targets)
    assert et.gradient_distance(now, expected) > 1e-2
    assert et.gradient_distance(found, expected) < 1e-9
    # Weights and bias are trained, what neurons are made of is not.
    assert len(jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))) == 3
