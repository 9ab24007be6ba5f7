"""Sites: the operations where a weight meets data.

Whatever the operation, it is brought to one form, linear in the weight,

    z[b, p, o] = sum_c x[b, p, c] w[b, o, c]

with `b` shared by data and weight (batch dimensions, groups of a convolution), `p`
found in the data alone (pixels, tokens), `o` in the weight alone (output neurons) and
`c` contracted. A weight used element by element (a bias, a gain, a decay) is traced at
the place where it is read, with x = 1.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._kinds import Kind
from ._primitives import Primitives
from ._program import Edge, Equation, Var


@dataclasses.dataclass(frozen=True, eq=False)
class LinearForm:
    """The canonical form of one operation, see the module's docstring."""

    sizes: tuple[int, int, int, int]  # b, p, o, c
    local_input: Callable[..., jax.Array]  # operands of the equation -> x [b, p, c]
    canonical: Callable[[Any], Any]  # z, in its own shape -> [b, p, o]
    weight: Callable[[Any], Any]  # [b, o, c] -> the weight's own shape

    # Both ways only move elements about, so that their transposes move them back.

    def from_canonical(self, z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """[b, p, o] -> z in its own shape."""
        like = jax.ShapeDtypeStruct(shape, z.dtype)
        return jax.linear_transpose(self.canonical, like)(z)[0]

    @property
    def layout(self) -> np.ndarray:
        """The numbers of [b, o, c] in the weight's own shape."""
        b, _, o, c = self.sizes
        return np.asarray(self.weight(np.arange(b * o * c).reshape(b, o, c)))

    def canonical_weight(self, weight: jax.Array) -> jax.Array:
        """The weight in its own shape -> [b, o, c]."""
        b, _, o, c = self.sizes
        like = jax.ShapeDtypeStruct((b, o, c), weight.dtype)
        return jax.linear_transpose(self.weight, like)(weight)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One place where a weight expression meets data.

    `direct` sites are perturbed where the weight is read, the others at the
    operation's output. Both have shape `shape`.
    """

    edge: Edge
    weight: Var
    equation: Equation
    shape: tuple[int, ...]
    form: LinearForm
    direct: bool
    elementwise: bool = False


def make_site(primitives: Primitives, edge: Edge) -> Site:
    """The site at `edge`; where the weight is read, if no other form is known."""
    i, j = edge
    equation = primitives.program.equations[i]
    weight = equation.inputs[j]
    if primitives.kinds[i] is Kind.ELEMENTWISE:
        shape = equation.outputs[0].shape
        form = _direct(weight, shape)
        return Site(edge, weight, equation, shape, form, direct=True, elementwise=True)
    if primitives.kinds[i] is Kind.MOVEMENT:
        form = _direct(weight, weight.shape)
        return Site(edge, weight, equation, weight.shape, form, direct=True)
    form = linear_form(equation, j)
    if form is None:
        form = _direct(weight, weight.shape)
        return Site(edge, weight, equation, weight.shape, form, direct=True)
    return Site(edge, weight, equation, equation.outputs[0].shape, form, direct=False)


def linear_form(equation: Equation, j: int) -> LinearForm | None:
    """The canonical form of an operation with operand j as the weight, or None."""
    build = _FORMS.get(equation.name)
    return build(equation, j) if build else None


def _direct(weight: Var, shape: tuple[int, ...]) -> LinearForm:
    """A weight used element by element, shared along the axes it is broadcast over."""
    full = weight.shape or (1,) * len(shape)
    own = [d for d, (a, b) in enumerate(zip(full, shape)) if a == b]
    shared = [d for d in range(len(shape)) if d not in own]
    b, p = (math.prod(shape[d] for d in dims) for dims in (own, shared))
    return LinearForm(
        (b, p, 1, 1),
        lambda *operands: jnp.ones((b, p, 1), weight.dtype),
        lambda z: z.transpose(own + shared).reshape(b, p, 1),
        lambda w: w.reshape(weight.shape),
    )


def _dot_general(equation: Equation, j: int) -> LinearForm:
    (lc, rc), (lb, rb) = equation.params["dimension_numbers"]
    data, weight = equation.inputs[1 - j], equation.inputs[j]
    xc, wc, xb, wb = (lc, rc, lb, rb) if j == 1 else (rc, lc, rb, lb)
    x_free, w_free = data.axes_but(xb, xc), weight.axes_but(wb, wc)
    b = _size(data, xb)
    p, o, c = _size(data, x_free), _size(weight, w_free), _size(data, xc)
    x_order = (*xb, *x_free, *xc)
    w_order = (*wb, *w_free, *wc)

    def canonical(z):
        # The output's dimensions are (batch, free of the left, free of the right).
        return z.reshape(b, p, o) if j == 1 else z.reshape(b, o, p).transpose(0, 2, 1)

    return LinearForm(
        (b, p, o, c),
        lambda *xs: xs[1 - j].transpose(x_order).reshape(b, p, c),
        canonical,
        lambda w: _untranspose(w, weight.shape, w_order),
    )


def _conv(equation: Equation, j: int) -> LinearForm | None:
    params = equation.params
    data, weight = equation.inputs
    groups = params["feature_group_count"]
    if j != 1 or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    out = equation.outputs[0]
    spatial = tuple(weight.shape[d] for d in numbers.rhs_spec[2:])
    features = weight.shape[numbers.rhs_spec[0]]
    # (batch, features, *space) of the output, whatever its own order
    z_order = numbers.out_spec
    places = (out.shape[z_order[0]], *(out.shape[d] for d in z_order[2:]))
    p, o = math.prod(places), features // groups
    c = weight.shape[numbers.rhs_spec[1]] * math.prod(spatial)

    def local_input(x, _):
        # [batch, features_in * prod(spatial), *space], features major
        patches = lax.conv_general_dilated_patches(
            x,
            spatial,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            dimension_numbers=numbers,
            precision=lax.Precision.HIGHEST,
        ).transpose(z_order)
        patches = jnp.moveaxis(patches, 1, -1).reshape(p, groups, c)
        return patches.transpose(1, 0, 2)

    def canonical(z):
        z = z.transpose(z_order)
        z = z.reshape(z.shape[0], groups, o, *z.shape[2:])
        order = (1, 0, *range(3, z.ndim), 2)
        return z.transpose(order).reshape(groups, p, o)

    return LinearForm(
        (groups, p, o, c),
        local_input,
        canonical,
        lambda w: _untranspose(w, weight.shape, numbers.rhs_spec),
    )


def _gather(equation: Equation, j: int) -> LinearForm | None:
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


def _dynamic_slice(equation: Equation, j: int) -> LinearForm | None:
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
    p, o, c = _size(out, places), _size(out, row), _size(weight, axes)
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
        lambda w: _untranspose(w, weight.shape, w_order),
    )


_FORMS: dict[str, Callable[[Equation, int], LinearForm | None]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "product": lambda equation, j: equation.params["form"] if j == 0 else None,
}


def _size(var: Var, dims: Sequence[int]) -> int:
    return math.prod(var.shape[d] for d in dims)


def _untranspose(w, shape: tuple[int, ...], order: Sequence[int]):
    """Undoes `transpose(order)` followed by any merging of dimensions."""
    moved = w.reshape([shape[d] for d in order])
    return moved.transpose(np.argsort(order))
