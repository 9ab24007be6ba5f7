"""The operations that mix elements with weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .mixing import mixing, standard, standard_marked
from .movement import matrix, vector
from .operations import Operation, Shape
from .tape import Tape, Value


@jax.custom_vjp
def _custom_product(x, w):
    return w @ x


_custom_product.defvjp(
    lambda x, w: (w @ x, (x, w)), lambda r, g: (g @ r[1], jnp.outer(g, r[0]))
)


def _of_rows(c: int, s: Shape) -> Shape:
    return (s[-1], (2, 3)[c % 2])


def _convolve(c, x, w, groups=1):
    dims = ("NCH", "OIH", "NCH")
    pad = [(1, 1)] if c % 2 else [(1, 0)]
    return lax.conv_general_dilated(
        x[None], w, (1,), pad, dimension_numbers=dims, feature_group_count=groups
    )[0]


def _two_products(c, x, w):
    return lax.scan(lambda h, _: (jnp.tanh(w @ h), None), x, None, length=2)[0]


def _two_products_marked(t: Tape, c: int, x: Value, w: Value) -> Value:
    for _ in range(2):
        x = t.e(jnp.tanh, t.m(lambda x, w: w @ x, x, w))
    return x


def _branch_weight_marked(t: Tape, c: int, x: Value, i: Value, w: Value) -> Value:
    product = t.m(lambda x, w: w @ x, x, w)
    return t.e(lambda i, a, x: jnp.where(i > 0, a, 0.5 * x), i, product, x)


def _hand_made(c, x, w):
    return jnp.sum(w * x[None], axis=1)


def _hand_made_marked(t: Tape, c: int, x: Value, w: Value) -> Value:
    wide = t.x(lambda x: x[None], x)
    return t.m(lambda z: jnp.sum(z, axis=1), t.e(lambda x, w: w * x, wide, w))


def _normed_product(c, x, w):
    return standard(w @ x)


def _normed_product_marked(t: Tape, c: int, x: Value, w: Value) -> Value:
    return standard_marked(t, c, t.m(lambda x, w: w @ x, x, w))


def _mask(w):
    return (np.arange(w.size).reshape(w.shape) % 3 > 0).astype(float)


def _outer(x, y):
    return jnp.einsum("i,j->ij", x, y)


PRODUCTS: dict[str, Operation] = {
    "dense": mixing(
        lambda c, x, w: w @ x, 1, vector, weight=lambda c, s: ((3, 2, 6)[c % 3], s[0])
    ),
    "dense_rows": mixing(lambda c, x, w: x @ w, 1, matrix, weight=_of_rows),
    "dense_columns": mixing(
        lambda c, x, w: w @ x, 1, matrix, weight=lambda c, s: ((2, 3)[c % 2], s[0])
    ),
    "masked_dense": mixing(
        lambda c, x, w: (w * _mask(w)) @ x,
        1,
        vector,
        weight=lambda c, s: (3, s[0]),
        whole=True,
    ),
    "low_rank": mixing(
        lambda c, x, w: (w @ w.T) @ x, 1, vector, weight=lambda c, s: (s[0], 2)
    ),
    "positive": mixing(
        lambda c, x, w: jax.nn.softmax(w, axis=1) @ x,
        1,
        vector,
        weight=lambda c, s: (3, s[0]),
    ),
    "batched": mixing(
        lambda c, x, w: jnp.einsum("cp,cpq->cq", x, w),
        1,
        matrix,
        weight=lambda c, s: (*s, 3),
    ),
    "vmapped_dense": mixing(
        lambda c, x, w: jax.vmap(lambda r: jnp.tanh(w @ r))(x),
        1,
        matrix,
        weight=lambda c, s: (3, s[1]),
        marked=lambda t, c, x, w: t.e(jnp.tanh, t.m(lambda x, w: x @ w.T, x, w)),
    ),
    "conv": mixing(_convolve, 1, matrix, weight=lambda c, s: (2, s[0], 2)),
    "depthwise": mixing(
        lambda c, x, w: _convolve(c, x, w, x.shape[0]),
        1,
        matrix,
        weight=lambda c, s: (s[0], 1, 2),
        whole=True,
    ),
    "embedding": mixing(
        lambda c, i, w: w[i], 0, index=True, weight=lambda c: (3, (3, 2)[c % 2])
    ),
    "row": mixing(
        lambda c, i, w: lax.dynamic_index_in_dim(w, i, keepdims=False),
        0,
        index=True,
        weight=lambda c: (3, 3),
    ),
    "one_hot": mixing(
        lambda c, i, w: jax.nn.one_hot(i, 3, dtype=w.dtype) @ w,
        0,
        index=True,
        weight=lambda c: (3, 3),
    ),
    "custom_product": mixing(
        lambda c, x, w: _custom_product(x, w), 1, vector, weight=lambda c, s: (3, s[0])
    ),
    "two_products": mixing(
        _two_products,
        1,
        vector,
        weight=lambda c, s: (s[0], s[0]),
        marked=_two_products_marked,
    ),
    "branch_weight": mixing(
        lambda c, x, i, w: lax.cond(
            i > 0, lambda x, w: w @ x, lambda x, w: 0.5 * x, x, w
        ),
        1,
        vector,
        index=True,
        weight=lambda c, s: (s[0], s[0]),
        marked=_branch_weight_marked,
    ),
    "hand_made": mixing(
        _hand_made, 1, vector, weight=lambda c, s: (3, s[0]), marked=_hand_made_marked
    ),
    "normed_product": mixing(
        _normed_product,
        1,
        vector,
        weight=lambda c, s: (3, s[0]),
        marked=_normed_product_marked,
    ),
    "bilinear": mixing(
        lambda c, x, y, w: jnp.tensordot(w, _outer(x, y), 2),
        2,
        vector,
        weight=lambda c, x, y: (2, x[0], y[0]),
        marked=lambda t, c, x, y, w: t.m(
            lambda xy, w: jnp.tensordot(w, xy, 2), t.m(_outer, x, y), w
        ),
    ),
}
