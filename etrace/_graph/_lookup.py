"""Analyses every model and shape once."""

import functools
import hashlib

import equinox as eqx
import jax
import numpy as np

from .._model import Call, split_model
from ._graph import Graph, analyse
from ._options import GraphOptions
from ._primitives import concrete
from ._report import untraced
from ._where import warn


class UntracedParameterWarning(UserWarning):
    """A parameter that reaches the state is left without a trace.

    It keeps its exact instantaneous gradient; what it did in the past is not credited.
    """


class _Known:
    """A constant array by value, so that it can key a cache."""

    def __init__(self, value: np.ndarray):
        self.value = value
        digest = hashlib.sha256(value.tobytes()).digest()  # it may be large
        self.key = (value.shape, value.dtype.str, digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def graph_of(
    call: Call,
    model: eqx.Module,
    options: GraphOptions,
) -> Graph:
    """The graph of `model`'s step; warns if it leaves a parameter untraced."""
    _, consts, _ = split_model(model)
    known = tuple(map(_known, jax.tree.leaves(consts)))
    try:
        hash(call)
    except TypeError:  # a static field that cannot be hashed
        return _analyse.__wrapped__(call, known, options)
    return _analyse(call, known, options)


def _known(x) -> _Known | None:
    value = concrete(x)
    return None if value is None else _Known(value)


@functools.lru_cache(maxsize=256)
def _analyse(
    call: Call,
    known: tuple[_Known | None, ...],
    options: GraphOptions,
) -> Graph:
    values = tuple(None if k is None else k.value for k in known)
    graph = analyse(call, values, options)
    message = untraced(graph)
    if message:
        warn(message, UntracedParameterWarning)
    return graph
