"""From a graph to a network."""

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import nir
import numpy as np

from .. import nn
from .._model import kind_of
from ..nn._parameters import Shape, dtype_of
from ._chain import Step, chain
from ._clock import Method, clock_of
from ._neurons import Options, neuron_of, quantity
from ._scale import Scale
from ._weights import check_weight, conv_of, flatten_of, linear_of


def load(
    graph: Any,
    *,
    dt: float,
    method: Method = "euler",
    spike: nn.AbstractSurrogate = nn.Arctan(),
    detach_reset: bool = False,
    dtype: Any = None,
) -> nn.RNN:
    r"""A network that takes the steps of a NIR graph.

    NIR's equations are in continuous time. In a step each variable moves towards what
    drives it by the share $m$, the synaptic current before the membrane,

    $$ i_t = i_{t-1} + m_{\text{syn}}\, (w_{\text{in}} x_t - i_{t-1}), \qquad
       \hat v_t = v_{t-1} + m\, (v_{\text{leak}} - v_{t-1} + R\, i_t), $$

    then $z_t = 1$ and $v_t = v_{\text{reset}}$ where $\hat v_t > v_{\text{threshold}}$.
    Without a synaptic current, $x_t$ takes the place of $i_t$; IF adds $dt\, R\, x_t$.
    Membranes begin at $v_{\text{leak}}$, those of IF at zero. Feedback is that of the
    outputs one step before.

    Weights become parameters, and the quantities of neurons constants. What of $R$ and
    $w_{\text{in}}$ is not the gain of a layer of `etrace.nn` goes into an
    [`etrace.nir.Scale`][] before it. A Linear or Affine node and the neurons with
    feedback behind it become one [`etrace.nn.Recurrent`][], without self-connections if
    the feedback's diagonal is zero.

    **Arguments:**

    - `graph`: a `nir.NIRGraph`, or the path of a file that `nir.write` has written.
    - `dt`: the length of a step, in the unit of the graph's time constants.
    - `method`: how a step is taken: by Euler's method, $m = dt / \tau$, or
        `"exponential"`, $m = 1 - e^{-dt / \tau}$, exact for a drive that is constant
        during the step.
    - `spike`, `detach_reset`: of all neurons, as for [`etrace.nn.LIF`][]. They are no
        part of a graph.
    - `dtype`: of parameters and states, JAX's default float if None.

    **Raises:** ValueError with the name of the node, if it has no counterpart or its
    parameters do not fit; ValueError if the graph is no chain of layers; TypeError if
    `graph` is neither a graph nor a path.

    ??? cite "Reference"

        Pedersen et al., Neuromorphic intermediate representation: a unified instruction
        set for interoperable brain-inspired computing, Nat. Commun. 15:8122 (2024).
    """
    if isinstance(graph, str | os.PathLike):
        # Shapes are checked here, for more graphs than nir does.
        graph = nir.read(os.fspath(graph), type_check=False)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(
            f"graph is {kind_of(graph)}; expected a nir.NIRGraph, or the path of a "
            "file that nir.write has written."
        )
    firing = nn.FiringOptions(reset="hard", spike=spike, detach_reset=detach_reset)
    options = Options(clock_of(dt, method), firing, dtype_of(dtype))
    layers: list[Any] = []
    shape = None
    for step in chain(graph):
        try:
            if isinstance(step.node, nir.Input | nir.Output):
                shape = _declared(step.node, shape)
            else:
                assert shape is not None  # a chain begins with an Input
                layers, shape = _with(step, layers, shape, options)
        except ValueError as error:
            kind = type(step.node).__name__
            raise ValueError(f"node {step.path!r}, {kind}: {error}") from None
    return nn.RNN(layers)


def _declared(node: nir.Input | nir.Output, shape: Shape | None) -> Shape:
    """The shape that flows into the node, or, if none is known yet, its own."""
    (declared,) = node.input_type.values()
    declared = shape if declared is None else tuple(map(int, declared))
    if declared is None or shape not in (None, declared):
        raise ValueError(f"its shape is {declared}; expected {shape or 'a shape'}.")
    return declared


def _with(
    step: Step, layers: list[Any], shape: Shape, options: Options
) -> tuple[list[Any], Shape]:
    """The layers with those of one more node, and the shape that flows out."""
    if step.feedback is not None:
        before = layers[-1] if layers else None
        return [*layers[:-1], _recurrent(before, step, shape, options)], shape
    layer = _layer(step.node, shape, options)
    if not hasattr(layer, "init_state"):
        x = jax.ShapeDtypeStruct(shape, options.dtype)
        shape = jax.eval_shape(layer, x).shape
    return [*layers, layer], shape


def _layer(node: nir.NIRNode, shape: Shape, options: Options) -> Any:
    dtype = options.dtype
    match node:
        case nir.Affine() | nir.Linear():
            return linear_of(node, shape, dtype)
        case nir.Conv1d() | nir.Conv2d():
            return conv_of(node, shape, dtype)
        case nir.Flatten():
            return flatten_of(node, shape)
        case nir.Scale():
            scale = jnp.asarray(quantity(node, "scale", shape), dtype)
            return Scale(shape, scale, dtype=dtype)
        case nir.IF() | nir.LI() | nir.LIF() | nir.CubaLI() | nir.CubaLIF():
            return neuron_of(node, shape, options)
    raise ValueError(
        "it has no counterpart in etrace.nn. Supported are Linear, Affine, Conv1d, "
        "Conv2d, Flatten, Scale, IF, LIF, CubaLIF, LI and CubaLI."
    )


def _recurrent(before: Any, step: Step, shape: Shape, options: Options) -> nn.Recurrent:
    """The layer before, and neurons with feedback, as one."""
    if not isinstance(before, eqx.nn.Linear):
        raise ValueError(
            "it has feedback; expected its input weights before it, a Linear or Affine "
            "node."
        )
    (n,) = shape
    feedback: Any = step.feedback
    check_weight(feedback.weight, (n, n))
    recurrent = linear_of(feedback, shape, options.dtype)
    biases = [b for b in (before.bias, recurrent.bias) if b is not None]
    bias = sum(biases[1:], start=biases[0]) if biases else None
    return nn.Recurrent(
        int(before.in_features),
        neuron_of(step.node, shape, options, bias),
        self_connections=bool(np.any(np.diag(recurrent.weight))),
        weight_init=lambda *_: before.weight,
        recurrent_init=lambda *_: recurrent.weight,
        key=jax.random.key(0),
    )
