"""Online gradients of spiking layers: every weight is traced, and the gradients are
those of backpropagation through time, or of the dense reference if it is recurrent."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.nn as nn
import etrace.testing as et

from .networks import IN, OUT, SpikingNet, check_gradients, normal, sequence

N = 4


def trained(value: float) -> jax.Array:
    return value * jnp.asarray([0.8, 1.0, 1.1, 1.3])


# A neuron whose quantities are trained where that is interesting, and the size and the
# mean of its input.
NEURONS = {
    "IF": (lambda: nn.IF(N, threshold=trained(1.0), refractory=1), 1.0, 0.2),
    "LIF": (lambda: nn.LIF(N, tau=trained(5.0), threshold=trained(1.0)), 1.0, 0.2),
    "LIF, hard": (
        lambda: nn.LIF(
            N, reset="hard", v_reset=jnp.asarray(-0.2), refractory=2, tau=6.0
        ),
        1.0,
        0.4,
    ),
    "LIF, delayed": (
        lambda: nn.LIF(N, tau=jnp.asarray(6.0), reset_delay=True, detach_reset=True),
        1.0,
        0.2,
    ),
    "CurrentLIF": (
        lambda: nn.CurrentLIF(N, tau=trained(8.0), tau_syn=trained(3.0)),
        0.5,
        0.2,
    ),
    "ALIF": (
        lambda: nn.ALIF(N, tau_a=trained(20.0), beta=trained(0.4), refractory=1),
        1.0,
        0.4,
    ),
    "ALIF, e-prop": (
        lambda: nn.ALIF(N, reset_delay=True, detach_reset=True, spike=nn.Triangle()),
        1.0,
        0.4,
    ),
    "ALIF, held": (
        lambda: nn.ALIF(N, tau_a=trained(9.0), reset_delay=True, refractory=2),
        1.0,
        0.4,
    ),
    "GIF": (
        lambda: nn.GIF(
            N, tau_currents=(trained(4.0), 20.0), jumps=(trained(0.2), -0.1)
        ),
        1.0,
        0.4,
    ),
    "ExpIF": (lambda: nn.ExpIF(N, sharpness=trained(3.0)), 40.0, 1.0),
    "AdEx": (lambda: nn.AdEx(N, a=trained(0.1), b=trained(2.0)), 80.0, 0.6),
    "Izhikevich": (lambda: nn.Izhikevich(N, d=trained(8.0), dt=0.25), 40.0, 1.0),
    "LeakyIntegrator": (lambda: nn.LeakyIntegrator(N, tau=trained(5.0)), 1.0, 0.0),
}


@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name: str):
    make, scale, shift = NEURONS[name]
    check_gradients(SpikingNet(make(), scale, shift), spiking=name != "LeakyIntegrator")


def behind(synapse: nn.AbstractSynapse) -> nn.Synaptic:
    return nn.Synaptic(synapse, nn.LIF(N, tau=6.0))


LAYERS = {
    "delta": (lambda: behind(nn.Delta(N)), 1.0),
    "exponential": (lambda: behind(nn.Exponential(N, tau=trained(3.0))), 0.6),
    "alpha": (lambda: behind(nn.Alpha(N, tau=trained(2.0))), 0.6),
    "dual exponential": (
        lambda: behind(
            nn.DualExponential(N, tau_rise=trained(1.0), tau_fall=trained(4.0))
        ),
        0.6,
    ),
    "conductance": (
        lambda: behind(nn.Conductance(nn.Exponential(N), reversal=trained(2.0))),
        0.3,
    ),
    "plasticity": (
        lambda: nn.ShortTermPlasticity(
            N, tau_f=trained(10.0), tau_d=trained(20.0), utilisation=trained(0.2)
        ),
        0.5,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_synapses(name: str):
    make, scale = LAYERS[name]
    check_gradients(SpikingNet(make(), scale, 0.3), spiking=name != "plasticity")


class TwoReceptors(eqx.Module):
    """Excitation and inhibition, each with weights and conductances of its own."""

    weights: tuple[jax.Array, jax.Array]
    synapses: tuple[nn.Conductance, nn.Conductance]
    neuron: nn.LIF
    readout: jax.Array

    def __init__(self):
        self.weights = normal(N, IN, seed=3), 0.5 * normal(N, IN, seed=4)
        self.synapses = (
            nn.Conductance(nn.Exponential(N, tau=trained(3.0)), reversal=3.0),
            nn.Conductance(nn.Exponential(N, tau=trained(6.0)), reversal=-0.5),
        )
        self.neuron = nn.LIF(N, tau=15.0, drive="current")
        self.readout = normal(OUT, N, seed=5)

    def init_state(self):
        return [s.init_state() for s in self.synapses], self.neuron.init_state()

    def __call__(self, state, x):
        synapses, neuron = state
        total, new = jnp.zeros(N), []
        for weight, synapse, s in zip(self.weights, self.synapses, synapses):
            current, s = synapse(s, jnp.abs(weight) @ jnp.abs(x), neuron.v)
            total = total + current
            new.append(s)
        z, neuron = self.neuron(neuron, total)
        return self.readout @ z, (new, neuron)


def test_excitation_and_inhibition():
    check_gradients(TwoReceptors())


class RecurrentNet(eqx.Module):
    layer: nn.Recurrent
    readout: jax.Array

    def __init__(self, layer: nn.Recurrent):
        self.layer = eqx.tree_at(lambda r: r.weight, layer, 2 * layer.weight)
        self.readout = normal(OUT, len(layer.recurrent), seed=5)

    def init_state(self):
        return self.layer.init_state()

    def __call__(self, state, x):
        z, state = self.layer(state, x)
        return self.readout @ z, state


class Marked(eqx.Module):
    """The same, written out and marked for the dense reference."""

    layer: nn.Recurrent
    readout: jax.Array

    def init_state(self):
        return self.layer.init_state()

    def __call__(self, state, x):
        before = et.mixing_input(state.spikes, feeds=(0,))
        drive = self.layer.weight @ x + self.layer.connections() @ before
        z, neuron = self.layer.neuron(state.neuron, drive)
        return self.readout @ z, nn.RecurrentState(neuron, z)


def recurrent(neuron: nn.AbstractNeuron, **options: Any) -> RecurrentNet:
    return RecurrentNet(nn.Recurrent(IN, neuron, key=jax.random.key(1), **options))


def test_recurrent_lif_equals_the_dense_reference():
    lif = nn.LIF(N, tau=trained(6.0), threshold=0.5)
    net = recurrent(lif, self_connections=True)
    check_gradients(net, exact=False)
    inputs, targets = sequence()
    driver = etrace.value_and_grad(
        et.squared_error, window=4, reduction="sum", carry=False
    )
    _, found = driver(etrace.DRTRL(net), None, inputs, targets)
    groups = (et.StateGroup(leaves=(0, 1)),)  # membrane and spikes
    marked = Marked(net.layer, net.readout)
    _, expected = et.dense_reference(
        marked, et.squared_error, inputs, targets, groups=groups
    )[:2]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_populations_behind_synapses_are_traced():
    neuron = behind(nn.Exponential(N, tau=trained(3.0)))
    check_gradients(recurrent(neuron, excitatory=0.75), exact=False)


def test_eprop_with_a_leaky_read_out_is_exact():
    """Neurons of e-prop without recurrent connections, and its read-out."""
    k1, k2 = jax.random.split(jax.random.key(0))
    model = nn.RNN(
        [
            eqx.nn.Linear(IN, N, key=k1),
            nn.ALIF(N, tau=6.0, threshold=0.3, reset_delay=True, detach_reset=True),
            eqx.nn.Linear(N, OUT, use_bias=False, key=k2),
        ],
        readout=nn.LeakyIntegrator(OUT, tau=4.0, drive="current"),
    )
    inputs, targets = sequence()
    arguments = (model, et.squared_error, 3 * inputs, targets)
    _, expected = et.bptt(*arguments)
    driver = etrace.value_and_grad(
        et.squared_error, window=5, reduction="sum", carry=False
    )
    rule = etrace.EProp(model, kappa=float(np.exp(-1 / 4)))
    _, found = driver(rule, None, 3 * inputs, targets)
    assert et.gradient_distance(found, expected) < 1e-9
    _, plain = driver(etrace.DRTRL(model), None, 3 * inputs, targets)
    assert et.gradient_distance(plain, expected) > 1e-2
