"""Analyses every model and shape once."""

import copyreg
import dataclasses
import functools
import hashlib
import weakref
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .._model import BatchAxis, Call, Spec, is_array, split_model
from .._program.operations import concrete
from .._program.source import warn
from .graph import Graph, analyse, of_graph
from .options import GraphOptions
from .report import silent, untraced


class UntracedParameterWarning(UserWarning):
    """A parameter that reaches the state is left without a trace, or acts by a function
    whose derivative is not linear (one that clips what comes back).

    It keeps its exact instantaneous gradient; what it did in the past is not credited,
    or not as by backpropagation through time.
    """


class LostCreditWarning(UserWarning):
    """Parameters are traced, but no signal reaches the state that their traces are of.

    In single-step mode signals come from the outputs of the same step. Here none reads
    that state, only what other parts of the state remember does: what the parameters
    did in the past is not credited.
    """


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step by all that its graph depends on, so that it can key a cache."""

    structure: Any
    leaves: tuple[Hashable, ...]
    hidden_filter: Any
    inputs: Spec
    options: GraphOptions
    axis: BatchAxis | None
    model: eqx.Module = dataclasses.field(compare=False)


def _kept(leaf: Any) -> Hashable:
    """What a graph depends on of a leaf of the model: of a parameter its shape, of a
    constant its value."""
    if not is_array(leaf):
        return type(leaf), leaf
    value = None if eqx.is_inexact_array(leaf) else digest(leaf)
    return leaf.shape, leaf.dtype, value


def digest(array: Any) -> bytes | None:
    """Of a value that may be large, if it is known; not again for an array that cannot
    change."""
    known = _digests.get(id(array))
    if known is not None and known[0]() is array:
        return known[1]
    value = concrete(array)
    if value is None:
        return None
    found = hashlib.sha256(value.tobytes()).digest()
    if isinstance(array, jax.Array):
        gone = lambda _, key=id(array): _digests.pop(key, None)  # noqa: E731
        _digests[id(array)] = weakref.ref(array, gone), found
    return found


_digests: dict[int, tuple[weakref.ref, bytes]] = {}


def graph_of(
    model: eqx.Module,
    hidden_filter: Any,
    inputs: PyTree,
    options: GraphOptions,
    axis: BatchAxis | None = None,
) -> Graph:
    """The graph of `model`'s step with such inputs (shapes and dtypes of one example);
    warns if it leaves a parameter untraced."""
    leaves, structure = jax.tree.flatten(model)
    kept = tuple(map(_kept, leaves))
    step = _Step(structure, kept, hidden_filter, Spec.of(inputs), options, axis, model)
    try:
        hash(step)
    except TypeError:  # a static field that cannot be hashed
        return _analyse.__wrapped__(step)
    return _analyse(step)


@functools.lru_cache(maxsize=256)
def _analyse(step: _Step) -> Graph:
    model = vars(step).pop("model")  # the cache shall not keep it
    call = Call.of(model, step.hidden_filter, step.inputs.tree(), step.axis)
    _, consts, _ = split_model(model)
    constants = tuple(map(concrete, jax.tree.leaves(consts)))
    graph = graph_of_call(call, constants, step.options)
    message = untraced(graph)
    if message:
        warn(message, UntracedParameterWarning)
    return graph


def graph_of_call(
    call: Call, constants: tuple[np.ndarray | None, ...], options: GraphOptions
) -> Graph:
    """The graph that `analyse` would find: one that is there already, if any is.

    Graphs are compared by identity, and one that was pickled is to be the same again.
    """
    values = tuple(c if c is None else digest(c) for c in constants)
    kinds = tuple(map(type, call.static.leaves))  # 1 and 1.0 are equal
    key = call, kinds, values, options
    try:
        known = _graphs.get(key)
    except TypeError:  # a static field that cannot be hashed
        return analyse(call, constants, options)
    if known is None:
        known = _graphs[key] = analyse(call, constants, options)
    return known


_graphs: weakref.WeakValueDictionary[Hashable, Graph] = weakref.WeakValueDictionary()


def forget() -> None:
    """Drops all graphs, so that every model is analysed again."""
    _analyse.cache_clear()
    _graphs.clear()


def _described(graph: Graph) -> tuple[Any, ...]:
    """A graph is pickled as what it is the graph of."""
    return graph_of_call, (graph.call, graph.constants, graph.options)


copyreg.pickle(Graph, _described)


@of_graph
def warn_of_unheard(graph: Graph, groups: tuple[int, ...], name: str) -> None:
    """Warns, once, that no signal of the rule of this name reaches these groups."""
    if groups:
        warn(f"{name}: {silent(graph, groups)}", LostCreditWarning)
