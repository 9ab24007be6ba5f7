"""What moves data, on NumPy arrays: XLA takes long to compile each such operation.

Each function takes the equation and its operands, and gives its results.
"""

from collections.abc import Callable

import numpy as np

from ._program import Equation

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
    order = equation.params.get("dimensions")
    if equation.name == "reshape" and order is not None:
        x = x.transpose(order)
    return (x.reshape(equation.outputs[0].shape),)


MOVED: dict[str, Callable[..., _Moved]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda e, *xs: (np.concatenate(xs, e.params["dimension"]),),
    "expand_dims": _shaped,
    "reshape": _shaped,
    "rev": lambda e, x: (np.flip(x, e.params["dimensions"]),),
    "slice": _slice,
    "squeeze": _shaped,
    "transpose": lambda e, x: (x.transpose(e.params["permutation"]),),
}
