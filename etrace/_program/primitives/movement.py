"""Operations that copy elements to other places.

What they give is computed with NumPy: XLA takes long to compile each.
"""

from collections.abc import Callable

import numpy as np

from ..ir import Equation
from ..primitive import Kind, Primitive

_Moved = tuple[np.ndarray, ...]


def _broadcast(equation: Equation, x: np.ndarray) -> _Moved:
    shape = [1] * len(equation.params["shape"])
    for d, n in zip(equation.params["broadcast_dimensions"], x.shape):
        shape[d] = n
    return (np.broadcast_to(x.reshape(shape), equation.params["shape"]),)


def _slice(equation: Equation, x: np.ndarray) -> _Moved:
    params = equation.params
    strides = params["strides"] or (1,) * x.ndim
    limits = params["start_indices"], params["limit_indices"], strides
    return (x[tuple(slice(*along) for along in zip(*limits))],)


def _shaped(equation: Equation, x: np.ndarray) -> _Moved:
    return (x.reshape(equation.outputs[0].shape),)


def _reshape(equation: Equation, x: np.ndarray) -> _Moved:
    order = equation.params.get("dimensions")
    return _shaped(equation, x if order is None else x.transpose(order))


def _moving(name: str, move: Callable[..., _Moved] | None = None) -> Primitive:
    return Primitive(name, Kind.MOVEMENT, move=move)


BROADCAST = _moving("broadcast_in_dim", _broadcast)
CONCATENATE = _moving(
    "concatenate", lambda e, *xs: (np.concatenate(xs, e.params["dimension"]),)
)
RESHAPE = _moving("reshape", _reshape)
SQUEEZE = _moving("squeeze", _shaped)

MOVEMENT = (
    *(BROADCAST, CONCATENATE, RESHAPE, SQUEEZE),
    _moving("expand_dims", _shaped),
    _moving("rev", lambda e, x: (np.flip(x, e.params["dimensions"]),)),
    _moving("slice", _slice),
    _moving("transpose", lambda e, x: (x.transpose(e.params["permutation"]),)),
    *map(_moving, "pad split stack tile unstack".split()),
)
