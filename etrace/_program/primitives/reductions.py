"""Sums, searches, sorting, windows, and linear algebra on the last axes."""

import math
from collections.abc import Callable, Iterable

import numpy as np

from ..blocks import Axes, Blocks
from ..ir import Equation
from ..labels import LABEL
from ..primitive import Primitive, Rewritten, Zeros


def _along(equation: Equation, mixed: Iterable[int]) -> Axes:
    """All axes but some, of operations that keep the shape."""
    return [(d, d) for d in equation.inputs[0].axes_but(mixed)]


def _kept(equation: Equation, j: int) -> Axes:
    removed = equation.params["axes"]
    return [(d, n) for n, d in enumerate(equation.inputs[0].axes_but(removed))]


def _accumulated(equation: Equation, j: int) -> Axes:
    return _along(equation, [equation.params["axis"]])


def _sorted(equation: Equation, j: int) -> Axes:
    return _along(equation, [equation.params["dimension"]])


def _leading(*last: int) -> Callable[[Equation, int], Axes]:
    """Operations on the last axes, so many of each operand."""

    def find(equation: Equation, j: int) -> Axes:
        return [(d, d) for d in range(len(equation.inputs[j].shape) - last[j])]

    return find


def _top_k(equation: Equation, j: int) -> Axes:
    rank = len(equation.inputs[0].shape)
    return _along(equation, [equation.params.get("axis", rank - 1) % rank])


def _fft(equation: Equation, j: int) -> Axes:
    return _leading(len(equation.params["fft_lengths"]))(equation, j)


def _windows(equation: Equation, j: int, known: Callable) -> Blocks | None:
    """Of windows that do not overlap, such as those of pooling: each is one block.

    Along an axis where they do, nothing stays apart.
    """
    (operand,), (out,) = equation.inputs, equation.outputs
    params = equation.params
    along = zip(
        operand.shape,
        out.shape,
        *(params[name] for name in ("window_dimensions", "window_strides", "padding")),
        *(params[name] for name in ("base_dilation", "window_dilation")),
        strict=True,
    )
    found = [_windows_along(*axis) for axis in along]
    count = math.prod(n for n, _, _ in found)
    if count == 1:
        return None
    own, results = np.zeros(operand.shape, LABEL), np.zeros(out.shape, LABEL)
    read = np.ones(operand.shape, bool)
    for d, (n, of_operand, of_result) in enumerate(found):
        side = [-1 if e == d else 1 for e in range(len(found))]
        own = own * n + of_operand.reshape(side)
        read &= of_operand.reshape(side) >= 0
        results = results * n + of_result.reshape(side)
    # What lies in no window is counted to a block of its own.
    return Blocks(count + 1, np.where(read, own, count).astype(LABEL), (results,))


def _windows_along(
    size: int,
    windows: int,
    width: int,
    stride: int,
    padding: tuple[int, int],
    base: int,
    dilation: int,
) -> tuple[int, np.ndarray, np.ndarray]:
    """Along one axis: the number of blocks, and that of each element and each window;
    -1 for elements in no window."""
    if max(base, dilation) > 1 and (width > 1 or base > 1) or width > stride:
        return 1, np.zeros(size, LABEL), np.zeros(windows, LABEL)
    window, place = np.divmod(np.arange(size) + padding[0], stride)
    inside = (place < width) & (window >= 0) & (window < windows)
    own = np.where(inside, window, -1).astype(LABEL)
    return windows, own, np.arange(windows, dtype=LABEL)


def _named(
    names: str, axes: Callable[[Equation, int], Axes], **known
) -> list[Primitive]:
    return [Primitive(name, axes=axes, **known) for name in names.split()]


MAXIMUM, MINIMUM = _named("reduce_max reduce_min", _kept, rewritten=Rewritten.EXTREMUM)

REDUCTIONS = (
    *_named("reduce_sum", _kept, zeros=Zeros.PRODUCT),
    *(MAXIMUM, MINIMUM),
    *_named("reduce_prod reduce_and reduce_or reduce_xor argmax argmin", _kept),
    *_named("cumsum", _accumulated, zeros=Zeros.PRODUCT),
    *_named("cumprod cummax cummin cumlogsumexp", _accumulated),
    *_named("sort", _sorted),
    *_named("top_k", _top_k),
    *_named("fft", _fft),
    *(
        Primitive(f"reduce_window_{of}", blocks=_windows)
        for of in ("sum", "max", "min")
    ),
    *_named(
        "cholesky eig eigh geqrf hessenberg lu qr schur svd tridiagonal", _leading(2)
    ),
    *_named("cholesky_update householder_product", _leading(2, 1)),
    *_named("triangular_solve", _leading(2, 2)),
    *_named("tridiagonal_solve", _leading(1, 1, 1, 2)),
)
