r"""Traces in two factors: what a site reads, and how it acts on the state.

    ε ≈ ε_f ⊗ ε_x,   ε_x [batch, b, p, c],   ε_f [batch, components, b, p, o]

in the canonical form of a site, so that memory is O(inputs + outputs). A filter of x
may as well run backwards over the signal it is multiplied with: with
ε_x,t = α ε_x,t-1 + x_t and δ̃_t = δ_t + α δ̃_{t+1},

    Σ_t δ_t ⊗ ε_x,t = Σ_t δ̃_t ⊗ x_t + α δ̃_1 ⊗ ε_x,0

A whole window is two products: the first together with the gradient of "now".
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._analysis import Graph
from ._per_parameter import at_least_single, wider


class Factors(eqx.Module):
    """A trace in two factors, and the number of steps they have seen, [batch].

    The batch axis is missing where there is no batch.
    """

    x: Array
    f: Array
    steps: Array


def zeros(graph: Graph, t: int, batch: int | None, dtype: Any) -> Factors:
    """Trace t before the first step; complex factors keep their own dtype."""
    site, spec = graph.sites[graph.traces[t].site], graph.traces[t]
    b, p, o, c = site.form.sizes
    lead = () if batch is None else (batch,)
    f = site.equation.outputs[0].dtype
    return Factors(
        jnp.zeros((*lead, b, p, c), stored_dtype(input_dtype(graph, t), dtype)),
        jnp.zeros((*lead, len(spec.components), b, p, o), stored_dtype(f, dtype)),
        jnp.zeros(lead, jnp.int32),
    )


def input_zeros(graph: Graph, batch: int | None, dtype: Any) -> tuple[Array, ...]:
    """Traces of the inputs alone, per trace of the graph."""
    lead = () if batch is None else (batch,)
    result = []
    for t, spec in enumerate(graph.traces):
        b, p, _, c = graph.sites[spec.site].form.sizes
        own = stored_dtype(input_dtype(graph, t), dtype)
        result.append(jnp.zeros((*lead, b, p, c), own))
    return tuple(result)


def input_dtype(graph: Graph, t: int) -> Any:
    """The dtype of what the site of a trace reads."""
    site = graph.sites[graph.traces[t].site]
    if site.direct:
        return site.weight.dtype
    operands = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in site.equation.inputs]
    return jax.eval_shape(site.form.local_input, *operands).dtype


def stored_dtype(own: Any, asked: Any) -> Any:
    is_complex = jnp.issubdtype(own, jnp.complexfloating)
    return own if asked is None or is_complex else asked


def later(signal: Array, decay: float) -> Array:
    """δ̃_t = δ_t + α δ̃_{t+1} along the first axis."""
    return _scanned(signal, jnp.zeros_like(signal[0]), decay, reverse=True)


def earlier(x: Array, start: Array, decay: float) -> Array:
    """ε_t = α ε_{t-1} + x_t along the first axis."""
    return _scanned(x, start, decay, reverse=False)


def _scanned(x: Array, start: Array, decay: float, reverse: bool) -> Array:
    if decay == 0:
        return x
    dtype = at_least_single(wider(x, start))

    def step(kept, now):
        new = decay * kept + now.astype(dtype)
        return new, new

    start, unroll = start.astype(dtype), len(x) == 1
    return lax.scan(step, start, x, reverse=reverse, unroll=unroll)[1]


def last(x: Array, start: Array, decay: float) -> Array:
    """ε_k of `earlier`, stored as `start` is."""
    return earlier(x, start, decay)[-1].astype(start.dtype)


def outer(signal: Array, x: Array) -> Array:
    """Σ δ ⊗ x over all axes in front and over p, [b, o, c]."""
    dtype = at_least_single(wider(signal, x))
    lead = tuple(range(signal.ndim - 3))
    b, p = len(lead), len(lead) + 1
    numbers = (((*lead, p), (*lead, p)), ((b,), (b,)))
    signal, x = signal.astype(dtype), x.astype(dtype)
    if signal.shape[b] == 1:  # as matrices: otherwise XLA transposes them first
        signal, x = (a.reshape(-1, a.shape[-1]) for a in (signal, x))
        numbers = (((0,), (0,)), ((), ()))
        return lax.dot_general(signal, x, numbers, preferred_element_type=dtype)[None]
    return lax.dot_general(signal, x, numbers, preferred_element_type=dtype)
