"""Neurons of `etrace.nn` and of NIR, the ones as the others."""

from typing import Any, NamedTuple

import nir
import numpy as np
from jaxtyping import Array

from .. import nn
from ..nn._parameters import Fixed, Positive, PositiveReal, Real, Shape
from ._clock import Clock, Numbers, moved
from ._scale import Scale

# --------------------------------------------------------------------- from a graph


class Options(NamedTuple):
    """What the neurons of a graph have in common."""

    clock: Clock
    firing: nn.FiringOptions
    dtype: np.dtype

    def step(self) -> dict[str, Any]:
        return dict(dt=self.clock.dt, dtype=self.dtype)


def neuron_of(
    node: Any, shape: Shape, options: Options, bias: Array | None = None
) -> nn.AbstractNeuron:
    """Neurons, behind a scale where the gain of their input is none of a layer's."""
    clock, step = options.clock, options.step()
    gain = quantity(node, "r", shape)
    firing: Any = dict(options.firing)
    if not isinstance(node, nir.LI | nir.CubaLI):
        firing["threshold"] = quantity(node, "v_threshold", shape)
        firing["v_reset"] = quantity(node, "v_reset", shape)
    leak: Any = {}
    if isinstance(node, nir.IF):
        gain = clock.dt * gain
    else:
        gain, leak = _leak(node, gain, shape, clock)
    match node:
        case nir.IF():
            neuron = nn.IF(shape, dtype=options.dtype, **firing)
        case nir.LIF():
            neuron = nn.LIF(shape, **leak, **step, **firing)
        case nir.CubaLIF():
            neuron = nn.CurrentLIF(shape, **leak, **step, **firing)
        case nir.LI():
            neuron = nn.LeakyIntegrator(shape, **leak, **step)
        case _:
            synapse = nn.Exponential(shape, tau=leak.pop("tau_syn"), **step)
            neuron = nn.Synaptic(synapse, nn.LeakyIntegrator(shape, **leak, **step))
    one = _is_one(gain, node)
    if one and bias is None:
        return neuron
    scale = Scale(shape, 1.0 if one else gain, bias, dtype=options.dtype)
    return nn.Synaptic(scale, neuron)


def _leak(
    node: Any, gain: Numbers, shape: Shape, clock: Clock
) -> tuple[Numbers, dict[str, Any]]:
    """The gain that is left for a scale, and the options of the membrane."""
    leak: dict[str, Any] = dict(v_rest=quantity(node, "v_leak", shape))
    name = "tau"
    if isinstance(node, nir.CubaLI | nir.CubaLIF):
        tau_syn = clock.layer_tau("tau_syn", quantity(node, "tau_syn", shape))
        # A step moves NIR's current towards its input; ours adds the input.
        gain = gain * quantity(node, "w_in", shape) * moved(tau_syn / clock.dt)
        name, leak["tau_syn"] = "tau_mem", tau_syn
    leak["tau"] = tau = clock.layer_tau(name, quantity(node, name, shape))
    jump = gain * moved(tau / clock.dt)
    if _is_one(jump, node):
        return jump, leak | {"drive": "jump"}
    return gain, leak | {"drive": "current"}


def quantity(node: Any, name: str, shape: Shape) -> np.ndarray:
    """A parameter of a node: one number, or one for each neuron."""
    value = np.asarray(getattr(node, name), np.float64)
    if value.size == 1:
        return value.reshape(())
    if value.shape != shape:
        raise ValueError(
            f"{name} has the shape {value.shape}; expected one number, or {shape}, "
            "the shape of the input."
        )
    return value


def _is_one(gain: Numbers, node: Any) -> bool:
    """Up to some roundings in the precision in which the node is stored."""
    dtype = np.asarray(node.r).dtype
    eps = np.finfo(dtype if dtype.kind == "f" else np.float64).eps
    return bool(np.all(np.abs(gain - 1) <= 16 * eps))


# ----------------------------------------------------------------------- to a graph


def node_of(
    layer: nn.AbstractNeuron, clock: Clock
) -> tuple[nir.NIRNode, Numbers | None]:
    """The node, and the bias of its input."""
    neuron, gain, bias, syn = _behind_synapses(layer)
    kind: Any
    match neuron:
        case nn.IF() if syn is None:
            kind, parameters = nir.IF, dict(r=gain / clock.dt)
        case nn.LIF():
            kind = nir.LIF if syn is None else nir.CubaLIF
            parameters = _membrane(neuron.leak, gain, syn, clock)
        case nn.CurrentLIF() if syn is None:
            syn = value(neuron.tau_syn) / neuron.leak.dt
            kind, parameters = nir.CubaLIF, _membrane(neuron.leak, gain, syn, clock)
        case nn.LeakyIntegrator():
            kind = nir.LI if syn is None else nir.CubaLI
            parameters = _membrane(neuron.leak, gain, syn, clock)
        case _:
            behind = "" if syn is None else " behind etrace.nn.Exponential"
            raise ValueError(
                f"{type(neuron).__name__}{behind} has no counterpart in NIR."
            )
    if not isinstance(neuron, nn.LeakyIntegrator):
        parameters |= _firing(neuron.firing)
    return kind(**{k: full(v, neuron.shape) for k, v in parameters.items()}), bias


def _membrane(
    leak: Any, gain: Numbers, syn: Numbers | None, clock: Clock
) -> dict[str, Numbers]:
    """Of a leak, and of a synapse before it with the time constant `syn` in steps."""
    steps = value(leak.tau) / leak.dt
    r = gain if leak.drive == "current" else gain / moved(steps)
    found: dict[str, Numbers] = dict(r=r, v_leak=value(leak.v_rest))
    tau = clock.graph_tau(steps)
    if syn is None:
        return found | dict(tau=tau)
    # NIR's current moves towards its input; ours adds the input.
    found |= dict(w_in=1 / moved(syn))
    return found | dict(tau_mem=tau, tau_syn=clock.graph_tau(syn))


def _behind_synapses(
    layer: nn.AbstractNeuron,
) -> tuple[nn.AbstractNeuron, Numbers, Numbers | None, Numbers | None]:
    """(the neuron, the gain and the bias of its input, the synapse's time constant in
    steps)."""
    neuron, gain, bias, syn = layer, np.ones(()), None, None
    while isinstance(neuron, nn.Synaptic):
        synapse = neuron.synapse
        if isinstance(synapse, Scale) and (synapse.bias is None or neuron is layer):
            gain = gain * value(synapse.scale)
            bias = bias if synapse.bias is None else value(synapse.bias)
        elif isinstance(synapse, nn.Exponential) and syn is None:
            syn = value(synapse.tau) / synapse.dt
        elif not isinstance(synapse, nn.Delta):
            raise ValueError(
                f"its synapse is {type(synapse).__name__}; supported are one etrace.nn."
                "Exponential, etrace.nn.Delta, and etrace.nir.Scale, with a bias only "
                "where it comes first."
            )
        neuron = neuron.neuron
    return neuron, gain, bias, syn


def _firing(firing: Any) -> dict[str, Numbers]:
    """Threshold and reset, if they are NIR's."""
    expected = dict(reset="hard", reset_delay=False, refractory=0)
    for name, nirs in expected.items():
        if (found := getattr(firing, name)) != nirs:
            raise ValueError(
                f"{name} is {found!r}; expected {nirs!r}. NIR's neurons are set to "
                "v_reset at once, and know no refractory period."
            )
    return dict(v_threshold=value(firing.threshold), v_reset=value(firing.v_reset))


def value(quantity: Real | PositiveReal) -> Numbers:
    """In double precision, also where the layer is not."""
    if isinstance(quantity, Positive):
        return np.exp(np.asarray(quantity.log, np.float64))
    found = quantity.value if isinstance(quantity, Fixed) else quantity
    return np.asarray(found, np.float64)


def full(values: Numbers, shape: Shape) -> np.ndarray:
    """One number for each neuron."""
    return np.array(np.broadcast_to(values, shape))
