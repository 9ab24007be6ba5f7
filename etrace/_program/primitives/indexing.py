"""Reading and writing at indices."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..blocks import Axes, Blocks, by_axes
from ..forms import LinearForm, size_of, untransposed
from ..ir import Equation
from ..labels import LABEL
from ..primitive import Primitive

# ------------------------------------------------------------------ what stays apart


def _gather_axes(equation: Equation, j: int) -> Axes:
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


def _slice_axes(equation: Equation, j: int) -> Axes:
    operand, out = equation.inputs[0], equation.outputs[0]
    pairs = enumerate(zip(operand.shape, out.shape))
    return [(d, d) for d, (a, b) in pairs if a == b] if j == 0 else ()


def _update_axes(equation: Equation, j: int) -> Axes:
    out = equation.outputs[0]
    if j > 1:
        return ()
    pairs = enumerate(zip(equation.inputs[j].shape, out.shape))
    return [(d, d) for d, (a, b) in pairs if a == b]


def _scatter_axes(equation: Equation, j: int) -> Axes:
    """What stays of an operand stays in its place."""
    if j == 0:
        return [(d, d) for d in range(len(equation.inputs[0].shape))]
    return _scattered(equation) if j == 2 else ()


def _scattered(equation: Equation) -> Axes:
    numbers = equation.params["dimension_numbers"]
    out, updates = equation.outputs[0], equation.inputs[2]
    gone = numbers.inserted_window_dims, numbers.operand_batching_dims
    window = out.axes_but(*gone)
    pairs = zip(sorted(numbers.update_window_dims), window)
    return [(a, b) for a, b in pairs if updates.shape[a] == out.shape[b]]


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


# -------------------------------------------------- rows of a table of weights


def _gather_form(equation: Equation, j: int) -> LinearForm | None:
    """Rows of a table, as a product with one-hot vectors."""
    numbers = equation.params["dimension_numbers"]
    weight, sizes = equation.inputs[0], equation.params["slice_sizes"]
    if j != 0 or numbers.operand_batching_dims:
        return None
    axes = tuple(sorted(numbers.start_index_map))
    pairs = enumerate(zip(sizes, weight.shape))
    if any(s != (1 if d in axes else n) for d, (s, n) in pairs):
        return None
    window = [d for d in range(len(sizes)) if d not in numbers.collapsed_slice_dims]
    pairs = zip(window, sorted(numbers.offset_dims))
    return _rows(equation, axes, [out for d, out in pairs if d not in axes])


def _slice_form(equation: Equation, j: int) -> LinearForm | None:
    weight, sizes = equation.inputs[0], equation.params["slice_sizes"]
    axes = tuple(d for d, (s, n) in enumerate(zip(sizes, weight.shape)) if s != n)
    if j != 0 or not axes or any(sizes[d] != 1 for d in axes):
        return None
    return _rows(equation, axes, [d for d in range(len(sizes)) if d not in axes])


def _rows(equation: Equation, axes: Sequence[int], row: Sequence[int]) -> LinearForm:
    """`axes` number the rows of the table; `row` are the output's dimensions along
    one."""
    weight, out = equation.inputs[0], equation.outputs[0]
    places = tuple(d for d in range(len(out.shape)) if d not in row)
    p, o, c = size_of(out, places), size_of(out, row), size_of(weight, axes)
    w_order = (*weight.axes_but(axes), *axes)
    shape = [n if d in axes else 1 for d, n in enumerate(weight.shape)]
    table = np.broadcast_to(np.arange(c).reshape(shape), weight.shape)
    table = table.astype(np.float32)

    def canonical(z):
        return z.transpose((*places, *row)).reshape(1, p, o)

    def local_input(w, *indices):
        # The operation itself says which row it takes where. What it fills in for rows
        # out of bounds does not move with the table.
        (taken,) = equation.fun(jnp.asarray(table), *indices)
        (moved,) = equation.fun(jnp.asarray(table + c), *indices)
        row = jnp.where(moved - taken == c, taken, -1).astype(jnp.int32)
        return jax.nn.one_hot(canonical(row)[:, :, 0], c, dtype=w.dtype)

    return LinearForm(
        (1, p, o, c),
        local_input,
        canonical,
        lambda w: untransposed(w, weight.shape, w_order),
    )


def _add_blocks(equation: Equation, j: int, known: Callable) -> Blocks | None:
    if j == 2:
        return _summands(equation, known)
    return by_axes(equation, j, _scatter_axes(equation, j))


def _scattering(name: str, **known) -> Primitive:
    return Primitive(name, axes=_scatter_axes, **known)


SCATTER_ADD = Primitive("scatter-add", blocks=_add_blocks)

INDEXING = (
    Primitive("gather", indices=slice(1, 2), axes=_gather_axes, form=_gather_form),
    Primitive(
        "dynamic_slice", indices=slice(1, None), axes=_slice_axes, form=_slice_form
    ),
    Primitive("dynamic_update_slice", indices=slice(2, None), axes=_update_axes),
    _scattering("scatter", indices=slice(1, 2)),
    SCATTER_ADD,
    *map(_scattering, ("scatter-mul", "scatter-min", "scatter-max")),
)
