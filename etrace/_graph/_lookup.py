"""Analyses every model and shape once."""

import functools
import hashlib
import weakref
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._model import Call, Spec, is_array, split_model
from ._graph import Graph, analyse
from ._options import GraphOptions
from ._primitives import concrete
from ._report import untraced
from ._where import warn


class UntracedParameterWarning(UserWarning):
    """A parameter that reaches the state is left without a trace.

    It keeps its exact instantaneous gradient; what it did in the past is not credited.
    """


class _Step:
    """A step by all that its graph depends on, so that it can key a cache."""

    def __init__(
        self,
        model: eqx.Module,
        hidden_filter: Any,
        inputs: PyTree,
        options: GraphOptions,
    ):
        self.model = model
        self.hidden_filter = hidden_filter
        self.inputs = inputs
        self.options = options
        leaves, structure = jax.tree.flatten(model)
        leaves = tuple(map(_kept, leaves))
        self.key = (structure, leaves, hidden_filter, Spec.of(inputs), options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _kept(leaf: Any) -> Hashable:
    """What a graph depends on of a leaf of the model: of a parameter its shape, of a
    constant its value."""
    if not is_array(leaf):
        return type(leaf), leaf
    value = None if eqx.is_inexact_array(leaf) else concrete(leaf)
    digest = None if value is None else _digest(leaf, value)
    return jnp.shape(leaf), leaf.dtype, digest


def _digest(array: Any, value: np.ndarray) -> bytes:
    """Of a value that may be large; not again for an array that cannot change."""
    immutable = isinstance(array, jax.Array)
    ref, digest = _digests.get(id(array), (None, b"")) if immutable else (None, b"")
    if ref is not None and ref() is array:
        return digest
    digest = hashlib.sha256(value.tobytes()).digest()
    if immutable:
        gone = lambda _, key=id(array): _digests.pop(key, None)  # noqa: E731
        _digests[id(array)] = weakref.ref(array, gone), digest
    return digest


_digests: dict[int, tuple[weakref.ref, bytes]] = {}


def graph_of(
    model: eqx.Module, hidden_filter: Any, inputs: PyTree, options: GraphOptions
) -> Graph:
    """The graph of `model`'s step with such inputs (shapes and dtypes of one example);
    warns if it leaves a parameter untraced."""
    step = _Step(model, hidden_filter, inputs, options)
    try:
        hash(step)
    except TypeError:  # a static field that cannot be hashed
        return _analyse.__wrapped__(step)
    return _analyse(step)


@functools.lru_cache(maxsize=256)
def _analyse(step: _Step) -> Graph:
    model = vars(step).pop("model")  # the cache shall not keep it
    call = Call.of(model, step.hidden_filter, step.inputs)
    _, consts, _ = split_model(model)
    graph = analyse(call, tuple(map(concrete, jax.tree.leaves(consts))), step.options)
    message = untraced(graph)
    if message:
        warn(message, UntracedParameterWarning)
    return graph
