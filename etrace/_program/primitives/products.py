"""Products of data and weights."""

import math

import jax.numpy as jnp
from jax import lax

from ..blocks import Axes
from ..forms import LinearForm, size_of, untransposed
from ..ir import Equation
from ..primitive import Primitive, Zeros


def _dot_axes(equation: Equation, j: int) -> Axes:
    contracted, batch = equation.params["dimension_numbers"]
    operands = zip(equation.inputs, contracted, batch)
    free = [v.axes_but(*used) for v, *used in operands]
    # The result has the batch dimensions, those of the left and those of the right.
    first = len(batch[0]) + (len(free[0]) if j else 0)
    own = [(d, first + n) for n, d in enumerate(free[j])]
    return [*((d, n) for n, d in enumerate(batch[j])), *own]


def _dot_form(equation: Equation, j: int) -> LinearForm:
    (lc, rc), (lb, rb) = equation.params["dimension_numbers"]
    data, weight = equation.inputs[1 - j], equation.inputs[j]
    xc, wc, xb, wb = (lc, rc, lb, rb) if j == 1 else (rc, lc, rb, lb)
    x_free, w_free = data.axes_but(xb, xc), weight.axes_but(wb, wc)
    b = size_of(data, xb)
    p, o, c = size_of(data, x_free), size_of(weight, w_free), size_of(data, xc)
    x_order = (*xb, *x_free, *xc)
    w_order = (*wb, *w_free, *wc)

    def canonical(z):
        # The output's dimensions are (batch, free of the left, free of the right).
        return z.reshape(b, p, o) if j == 1 else z.reshape(b, o, p).transpose(0, 2, 1)

    return LinearForm(
        (b, p, o, c),
        lambda *xs: xs[1 - j].transpose(x_order).reshape(b, p, c),
        canonical,
        lambda w: untransposed(w, weight.shape, w_order),
    )


def _conv_form(equation: Equation, j: int) -> LinearForm | None:
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
        lambda w: untransposed(w, weight.shape, numbers.rhs_spec),
    )


DOT = Primitive(
    "dot_general",
    axes=_dot_axes,
    form=_dot_form,
    multiplies=True,
    linear_in_data=True,
    zeros=Zeros.PRODUCT,
)
CONV = Primitive(
    "conv_general_dilated",
    form=_conv_form,
    linear_in_data=True,
    zeros=Zeros.PRODUCT,
)

# `BCOO @ x`, which is written out.
SPARSE_DOT = Primitive("bcoo_dot_general")

PRODUCTS = (DOT, CONV, SPARSE_DOT)
