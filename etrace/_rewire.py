"""A model whose constants change while its trace goes on: weights that are rewired.

A trace is of the *weight expression* φ(θ, c) where it meets data, ε = ∂h/∂φ, and goes
back to the parameters θ by the constants c of the moment, ε ∂φ/∂θ. Of a connection that
a mask has switched on it holds credit from before there was one. What the past is owed
is Σ_t ∂h/∂φ_t ∂φ_t/∂θ with the constants of each step, so that

    ε := ε (∂φ/∂θ)_then / (∂φ/∂θ)_now

at the change is exact wherever the two are proportional, number by number of φ. That is
1 for what is kept, and 0 for what has grown. What was pruned goes nowhere any more.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ._analysis import Graph, graph_of
from ._check import check_belongs
from ._model import Spec, split_model
from ._rule import Rule
from ._trace import Trace


def rewired(algorithm: Rule, trace: Trace, model: eqx.Module) -> Trace:
    """The trace of `algorithm`, for the same model with other constants."""
    check_belongs(algorithm.model, trace)
    check_belongs(model, trace, ignoring_constants=True)
    then = trace.graph
    inputs, options = then.call.inputs.tree(), algorithm._graph_options()
    graph = graph_of(model, algorithm.hidden_filter, inputs, options)
    specs = [Spec.of(algorithm.trace_spec(g, 1)) for g in (then, graph)]
    if specs[0] != specs[1] or not _alike(then, graph):
        raise ValueError(
            "model differs from that of the trace in more than the values of its "
            "constants: it has other traces, see print(algorithm.graph(*inputs)). "
            "Begin with a fresh state, init(...)."
        )
    data = trace.data
    if data is not None and not graph.options.follows_all:
        scales = _scales((then, algorithm.model), (graph, model))
        data = _scaled(algorithm, data, graph, scales)
    return dataclasses.replace(trace, data=data, graph=graph)


def _alike(then: Graph, now: Graph) -> bool:
    """Whether both graphs have the same traces of the same places."""
    return len(then.traces) == len(now.traces) and all(
        a.components == b.components
        and then.sites[a.site].edge == now.sites[b.site].edge
        and np.array_equal(a.positions, b.positions)
        for a, b in zip(then.traces, now.traces)
    )


def _scales(
    then: tuple[Graph, eqx.Module], now: tuple[Graph, eqx.Module]
) -> list[Array]:
    """By site, (∂φ/∂θ)_then / (∂φ/∂θ)_now [b, o, c]; 0 where either is.

    Both by two random changes of the parameters: what they say together of a number of
    φ they say of its whole row ∂φ/∂θ.
    """
    params, _, _ = split_model(now[1])
    leaves, treedef = jax.tree.flatten(params)
    result, wrong, probes = [], [], []
    for key in jax.random.split(jax.random.key(0)):
        keys = jax.random.split(key, len(leaves))
        tangent = treedef.unflatten(
            [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
        )
        probes.append([_pushed(*of, params, tangent) for of in (then, now)])
    for (a, b), (c, d) in zip(*(zip(*probe, strict=True) for probe in probes)):
        both = (a != 0) & (b != 0)
        scale = jnp.where(both, a / jnp.where(both, b, jnp.ones_like(b)), 0)
        close = jnp.abs(c - scale * d) <= _TOLERANCE * jnp.abs(c)
        wrong.append(jnp.any(both & ~close))
        # What is the same is not to be changed by rounding.
        result.append(jnp.where(a == b, jnp.ones_like(scale), scale))
    return _checked(result, wrong)


_TOLERANCE = 1e-3


def _checked(scales: list[Array], wrong: Sequence[Array]) -> list[Array]:
    message = (
        "model has other constants that change how parameters are combined to a "
        "weight, and not only which numbers of it there are (a mask) or how large: the "
        "trace cannot be moved. Begin with a fresh state, init(...)."
    )
    if not wrong:
        return scales
    failed = jnp.stack(wrong).any()
    if isinstance(failed, Tracer):
        return eqx.error_if(scales, failed, message)
    if failed:
        raise ValueError(message)
    return scales


def _pushed(graph: Graph, model: eqx.Module, params: PyTree, tangent: PyTree) -> list:
    """The change of every weight expression, in canonical form [b, o, c]."""
    _, consts, _ = split_model(model)
    values, pull = jax.vjp(lambda params: graph.weights(params, consts), params)
    # The transpose of a way back: derivatives of one's own may have no way forward.
    _, push = jax.vjp(pull, jax.tree.map(jnp.zeros_like, values))
    (changes,) = push((tangent,))
    pairs = zip(graph.sites, changes, strict=True)
    return [site.form.canonical_weight(x) for site, x in pairs]


def _scaled(algorithm: Rule, data: Any, graph: Graph, scales: Sequence[Array]) -> Any:
    """What a rule stores, at the sites whose scale is not 1."""
    changed = [isinstance(x, Tracer) or bool(jnp.any(x != 1)) for x in scales]
    if not any(changed):
        return data
    each = isinstance(data, tuple) and len(data) == len(graph.traces)
    lead, result = int(algorithm.batched), []
    for t, spec in enumerate(graph.traces):
        x: Any = data[t] if each else None
        if changed[spec.site] and not isinstance(x, tuple):
            # One number a parameter: [components, b, p, o, c].
            if not eqx.is_array(x) or x.ndim != lead + 5:
                raise ValueError(
                    f"{algorithm.name} keeps its trace in another form than a number "
                    "for each connection: the past of what has grown cannot be taken "
                    "out of it. Begin with a fresh state, init(...), or use RTRL or a "
                    "rule with one trace per parameter, such as DRTRL, EProp or OSTL."
                )
            b, o, c = scales[spec.site].shape
            scale = scales[spec.site].reshape((1,) * (lead + 1) + (b, 1, o, c))
            scale = scale.astype(x.dtype)
            x = jnp.where(scale == 0, jnp.zeros_like(x), x * scale)
        result.append(x)
    return tuple(result)
