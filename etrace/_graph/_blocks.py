"""What a mixing operation keeps apart.

A sum over one axis, a product with batch dimensions, a sort of every row: positions
talk to each other there, but not across the other axes. Elements of one operand and of
the results fall into *blocks*; an element of a result depends on the elements of its
own block alone. An operation of which nothing is known is one block.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ._partition import LABEL
from ._program import Equation

# Pairs of an axis of the operand and the axis of every result that runs along it.
Axes = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The block of each element of an operand, and of each result."""

    count: int
    operand: np.ndarray
    results: tuple[np.ndarray, ...]

    def to_operand(self, of_blocks: np.ndarray) -> np.ndarray:
        """Something of each block, at the elements of the operand."""
        return np.asarray(of_blocks[self.operand])

    def to_results(self, of_blocks: np.ndarray) -> list[np.ndarray]:
        """Something of each block, at the elements of the results."""
        return [np.asarray(of_blocks[r]) for r in self.results]


def find_blocks(equation: Equation, j: int, known: Callable) -> Blocks | None:
    """The blocks of operand j; None if all is one block.

    `known` gives the value of an operand that follows from constants alone, or None.
    """
    if equation.name == "scatter-add" and j == 2:
        return _summands(equation, known)
    if equation.name in _WINDOWS:
        return _windows(equation)
    axes, shape = _carried(equation, j), equation.inputs[j].shape
    sizes = [shape[a] for a, _ in axes]
    if math.prod(sizes) == 1 and len(axes) < max(len(shape), 1):
        return None
    return Blocks(
        math.prod(sizes),
        _numbers(sizes, [a for a, _ in axes], shape),
        tuple(_numbers(sizes, [b for _, b in axes], v.shape) for v in equation.outputs),
    )


def first_labels(labels: np.ndarray, blocks: Blocks) -> np.ndarray:
    """One of the labels in each block, -1 where there is none."""
    none = np.iinfo(LABEL).max
    low = np.full(blocks.count, none, LABEL)
    set_ = labels >= 0
    np.minimum.at(low, blocks.operand[set_], labels[set_])
    return np.where(low == none, -1, low)


def _numbers(sizes: Sequence[int], axes: Sequence[int], shape: tuple[int, ...]):
    """The number of the block at each element, [*shape]."""
    order = np.argsort(axes)
    numbers = np.arange(math.prod(sizes), dtype=LABEL).reshape(sizes).transpose(order)
    kept = [n if d in axes else 1 for d, n in enumerate(shape)]
    return np.broadcast_to(numbers.reshape(kept), shape)


def _summands(equation: Equation, known: Callable) -> Blocks | None:
    """Of a sum by known indices: each summand goes to one place."""
    base, indices, summands = equation.inputs
    at = known(indices)
    if at is None:
        return None

    def add(x):
        return equation.fun(jnp.zeros(base.shape), jnp.asarray(at), x)[0]

    # The sum is linear, and takes every summand to one place or to none: where to, its
    # transpose says. In digits that any dtype holds.
    with jax.ensure_compile_time_eval():
        like = jax.ShapeDtypeStruct(summands.shape, jnp.zeros(()).dtype)
        back = jax.linear_transpose(add, like)
        numbers = np.arange(1, base.size + 1, dtype=LABEL).reshape(base.shape)
        digits = [numbers % _DIGIT, numbers // _DIGIT]
        low, high = (np.asarray(back(jnp.asarray(d, like.dtype))[0]) for d in digits)
    # What is dropped is counted to a block of its own.
    to = high.astype(LABEL) * _DIGIT + low.astype(LABEL)
    return Blocks(base.size + 1, to, (numbers,))


_DIGIT = 2**12


_WINDOWS = ("reduce_window_sum", "reduce_window_max", "reduce_window_min")


def _windows(equation: Equation) -> Blocks | None:
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


def _carried(equation: Equation, j: int) -> Axes:
    """Axes of operand j along which nothing is mixed."""
    find = _AXES.get(equation.name)
    if find is not None:
        return find(equation, j)
    if equation.name.startswith(("reduce_", "arg")) and "axes" in equation.params:
        return _kept(equation, equation.params["axes"])
    return ()


def _along(equation: Equation, mixed: Iterable[int]) -> Axes:
    """All axes but some, of operations that keep the shape."""
    return [(d, d) for d in equation.inputs[0].axes_but(mixed)]


def _kept(equation: Equation, removed: Sequence[int]) -> Axes:
    return [(d, n) for n, d in enumerate(equation.inputs[0].axes_but(removed))]


def _dot_general(equation: Equation, j: int) -> Axes:
    contracted, batch = equation.params["dimension_numbers"]
    operands = zip(equation.inputs, contracted, batch)
    free = [v.axes_but(*used) for v, *used in operands]
    # The result has the batch dimensions, those of the left and those of the right.
    first = len(batch[0]) + (len(free[0]) if j else 0)
    own = [(d, first + n) for n, d in enumerate(free[j])]
    return [*((d, n) for n, d in enumerate(batch[j])), *own]


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


def _gather(equation: Equation, j: int) -> Axes:
    if j != 0:
        return ()
    numbers = equation.params["dimension_numbers"]
    operand, sizes = equation.inputs[0], equation.params["slice_sizes"]
    gone = numbers.collapsed_slice_dims, numbers.operand_batching_dims
    window = operand.axes_but(*gone)
    pairs = zip(window, sorted(numbers.offset_dims))
    whole = [(d, b) for d, b in pairs if sizes[d] == operand.shape[d]]
    rows = equation.outputs[0].axes_but(numbers.offset_dims)
    batch = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims)
    return [*whole, *((d, rows[n]) for d, n in batch)]


def _dynamic_slice(equation: Equation, j: int) -> Axes:
    operand, out = equation.inputs[0], equation.outputs[0]
    pairs = enumerate(zip(operand.shape, out.shape))
    return [(d, d) for d, (a, b) in pairs if a == b] if j == 0 else ()


def _dynamic_update_slice(equation: Equation, j: int) -> Axes:
    out = equation.outputs[0]
    if j > 1:
        return ()
    pairs = enumerate(zip(equation.inputs[j].shape, out.shape))
    return [(d, d) for d, (a, b) in pairs if a == b]


def _scatter(equation: Equation, j: int) -> Axes:
    """What stays of an operand stays in its place."""
    return _along(equation, ()) if j == 0 else _scattered(equation) if j == 2 else ()


def _scattered(equation: Equation) -> Axes:
    numbers = equation.params["dimension_numbers"]
    out, updates = equation.outputs[0], equation.inputs[2]
    gone = numbers.inserted_window_dims, numbers.operand_batching_dims
    window = out.axes_but(*gone)
    pairs = zip(sorted(numbers.update_window_dims), window)
    return [(a, b) for a, b in pairs if updates.shape[a] == out.shape[b]]


_AXES: dict[str, Callable[[Equation, int], Axes]] = {
    "dot_general": _dot_general,
    "sort": lambda e, j: _along(e, [e.params["dimension"]]),
    "top_k": _top_k,
    "fft": _fft,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
        lambda e, j: _along(e, [e.params["axis"]]),
    ),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max"),
        _scatter,
    ),
    # Linear algebra, on the last axes: of one matrix, and of several operands.
    **dict.fromkeys(
        """
        cholesky eig eigh geqrf hessenberg lu qr schur svd tridiagonal
        """.split(),
        _leading(2),
    ),
    "cholesky_update": _leading(2, 1),
    "householder_product": _leading(2, 1),
    "triangular_solve": _leading(2, 2),
    "tridiagonal_solve": _leading(1, 1, 1, 2),
}
