"""From a network to a graph."""

import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import nir
import numpy as np

from .. import nn
from .._model import kind_of
from ..nn._parameters import Shape
from ._clock import Clock, Method, clock_of
from ._neurons import full, node_of, value
from ._scale import Scale
from ._weights import conv_node, linear_node


def export(
    network: Any, example: Any, *, dt: float, method: Method = "euler"
) -> nir.NIRGraph:
    r"""A NIR graph of a network: [`etrace.nir.load`][] with the same `dt` and `method`
    gives a network that takes the same steps.

    | `etrace.nn`, Equinox | NIR |
    |---|---|
    | `RNN`, also in an `RNN` | a chain of its layers |
    | `equinox.nn.Linear` | `Linear`, `Affine` |
    | `equinox.nn.Conv1d`, `Conv2d` | `Conv1d`, `Conv2d` |
    | `jax.numpy.ravel` | `Flatten` |
    | `etrace.nir.Scale` | `Scale` |
    | `IF`, `LIF` | `IF`, `LIF` |
    | `CurrentLIF`, or `LIF` behind `Exponential` | `CubaLIF` |
    | `LeakyIntegrator`, behind `Exponential` | `LI`, `CubaLI` |
    | `Recurrent` | `Linear`, and a subgraph with feedback |

    Neurons have to be reset as NIR's are: `reset="hard"`, at once, without a refractory
    period. What only training knows is left out: surrogate gradients, `detach_reset`,
    which numbers are trained, and that signs or zeros of recurrent weights are to stay.

    `nir.write(path, graph)` writes a file. To read one with kernels that are not square
    or in groups, nir needs `type_check=False`.

    **Arguments:**

    - `network`: an [`etrace.nn.RNN`][], or a single layer.
    - `example`: an input of one example; only its shape matters.
    - `dt`: the length of a step in the unit of the graph's time constants, for example
        `1e-3` for seconds. The layers' own `dt` only says what the unit of their `tau`
        is.
    - `method`: how those who read the graph take a step, see [`etrace.nir.load`][].

    **Raises:** ValueError with the path of the layer, if it has no exact counterpart or
    its input does not fit.
    """
    clock, shape = clock_of(dt, method), getattr(example, "shape", None)
    if shape is None:
        raise TypeError(
            f"example is {kind_of(example)}; expected an array: an input of one "
            "example, of which only the shape matters."
        )
    shape = tuple(shape)
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(shape)})}
    for path, layer in _layers(network, ""):
        try:
            found = _nodes(layer, shape, clock)
            first, *_ = found.values()
            if shape != (expected := _shape(first.input_type)):
                raise ValueError(f"its input is of shape {shape}; expected {expected}.")
        except ValueError as error:
            kind = getattr(layer, "__name__", type(layer).__name__)
            raise ValueError(f"{path or 'network'}, {kind}: {error}") from None
        name = re.sub(r"\W+", "_", path).strip("_") or "layer"
        nodes |= {name + suffix: node for suffix, node in found.items()}
        *_, last = found.values()
        shape = _shape(last.output_type)
    nodes["output"] = nir.Output({"output": np.array(shape)})
    return nir.NIRGraph(nodes, list(zip(nodes, list(nodes)[1:])))


def _layers(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All layers and their paths, those of a network in its place."""
    if not isinstance(layer, nn.RNN):
        yield path, layer
        return
    parts = {f"cells[{i}]": cell for i, cell in enumerate(layer.cells)}
    if layer.readout is not None:
        parts["readout"] = layer.readout
    for name, part in parts.items():
        yield from _layers(part, f"{path}.{name}".lstrip("."))


def _shape(declared: dict[str, Any]) -> Shape:
    """What a node says that flows in or out."""
    (shape,) = declared.values()
    return tuple(map(int, shape))


def _nodes(layer: Any, shape: Shape, clock: Clock) -> dict[str, nir.NIRNode]:
    """The nodes of a layer, by what follows its name in theirs."""
    if isinstance(layer, nn.Recurrent):
        return _recurrent(layer, clock)
    if isinstance(layer, nn.AbstractNeuron):
        node, bias = node_of(layer, clock)
        if bias is not None:
            raise ValueError(
                "its Scale has a bias; expected none outside of etrace.nn.Recurrent. "
                "An equinox.nn.Linear before it may have one."
            )
        return {"": node}
    if isinstance(layer, eqx.nn.Linear):
        if "scalar" in (layer.in_features, layer.out_features):
            raise ValueError("it takes or gives scalars; expected vectors.")
        return {"": linear_node(layer.weight, layer.bias)}
    if isinstance(layer, eqx.nn.Conv):
        return {"": conv_node(layer, shape)}
    if isinstance(layer, Scale) and layer.bias is None:
        return {"": nir.Scale(full(value(layer.scale), layer.shape))}
    if layer is jnp.ravel:
        return {"": nir.Flatten({"input": np.array(shape)}, start_dim=0)}
    raise ValueError(
        "it has no counterpart in NIR. Supported are etrace.nn.RNN, Recurrent, IF, "
        "LIF, CurrentLIF, LeakyIntegrator and Synaptic, equinox.nn.Linear, Conv1d and "
        "Conv2d, jax.numpy.ravel, and etrace.nir.Scale without a bias."
    )


def _recurrent(layer: nn.Recurrent, clock: Clock) -> dict[str, nir.NIRNode]:
    neuron, bias = node_of(layer.neuron, clock)
    shape = np.array(layer.neuron.shape)
    nodes = {
        "input": nir.Input({"input": shape}),
        "neuron": neuron,
        "recurrent": linear_node(layer.connections()),
        "output": nir.Output({"output": shape}),
    }
    edges = [("input", "neuron"), ("neuron", "output")]
    edges += [("neuron", "recurrent"), ("recurrent", "neuron")]
    return {"_weight": linear_node(layer.weight, bias), "": nir.NIRGraph(nodes, edges)}
