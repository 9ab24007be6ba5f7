"""The operations that mix elements, without weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .movement import array, matrix, vector
from .operations import Operation, same
from .tape import Tape, Value


def constants(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape) / np.sqrt(shape[-1])


def standard(x):
    return (x - x.mean()) * lax.rsqrt(x.var() + 0.1)


def standard_marked(t: Tape, c: int, x: Value) -> Value:
    shift, spread = t.m(jnp.mean, x), t.m(jnp.var, x)
    return t.e(lambda x, m, v: (x - m) * lax.rsqrt(v + 0.1), x, shift, spread)


def _share_marked(t: Tape, c: int, x: Value) -> Value:
    total = t.m(lambda x: jnp.sum(x * x), x)
    return t.e(lambda x, s: x / (1 + s), x, total)


def _softmax_marked(t: Tape, c: int, x: Value) -> Value:
    e = t.e(lambda x, m: jnp.exp(x - m), x, t.stop(t.m(jnp.max, x)))
    return t.e(jnp.divide, e, t.m(jnp.sum, e))


def _log_softmax_marked(t: Tape, c: int, x: Value) -> Value:
    shifted = t.e(jnp.subtract, x, t.stop(t.m(jnp.max, x)))
    total = t.m(jnp.sum, t.e(jnp.exp, shifted))
    return t.e(lambda x, s: x - jnp.log(s), shifted, total)


def _centred_marked(t: Tape, c: int, x: Value) -> Value:
    return t.e(lambda x, m: x - 0.5 * m, x, t.m(lambda x: x.mean(0, keepdims=True), x))


def _winner_marked(t: Tape, c: int, x: Value) -> Value:
    where = t.m(lambda x: jnp.argmax(x.reshape(-1)), x)
    here = t.x(lambda i, n=x.size: jnp.arange(n) == i, where)
    here = t.x(lambda h, s=x.shape: h.reshape(s), here)
    return t.e(lambda h, x: jnp.where(h, x, 0.1 * x), here, x)


def _winner(c, x):
    here = jnp.arange(x.size) == jnp.argmax(x.reshape(-1))
    return jnp.where(here.reshape(x.shape), x, 0.1 * x)


def _branch_product(c, x, i):
    w = constants(x.shape[0], x.shape[0])
    return lax.cond(i > 0, lambda x: w @ x, lambda x: 0.3 * x, x)


def _branch_product_marked(t: Tape, c: int, x: Value, i: Value) -> Value:
    w = constants(x.shape[0], x.shape[0])
    cases = t.m(lambda x: w @ x, x), t.e(lambda x: 0.3 * x, x)
    return t.e(lambda i, a, b: jnp.where(i > 0, a, b), i, *cases)


def _data_cond(c, x, y):
    return lax.cond(
        jnp.sum(x) > 0, lambda x, y: jnp.sin(x), lambda x, y: x + 0.5 * y, x, y
    )


def _data_cond_marked(t: Tape, c: int, x: Value, y: Value) -> Value:
    test = t.m(lambda x: jnp.sum(x) > 0, x)
    cases = t.e(jnp.sin, x), t.e(lambda x, y: x + 0.5 * y, x, y)
    return t.e(lambda i, a, b: jnp.where(i, a, b), test, *cases)


def _factor(x):
    """As many steps as the data ask for."""
    start = jnp.sum(jnp.abs(x))
    s, n = lax.while_loop(
        lambda s: s[0] > 0.5, lambda s: (0.5 * s[0], s[1] + 1), (start, 0)
    )
    return s + n.astype(x.dtype) * 0.1


def _settled(c, x):
    """No gradient flows through the loop, which has none in reverse."""
    return x * _factor(lax.stop_gradient(x))


def _settled_marked(t: Tape, c: int, x: Value) -> Value:
    return t.e(jnp.multiply, x, t.m(_factor, t.stop(x)))


def _long_scan(c, x):
    return lax.scan(lambda h, _: (0.95 * jnp.sin(h), None), x, None, length=40)[0]


@jax.custom_vjp
def _blurred_gradient(x):
    return jnp.tanh(x)


_blurred_gradient.defvjp(
    lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2) + g.mean(),)
)


@jax.custom_jvp
def _pulled(x):
    return 0.7 * x


@_pulled.defjvp
def _pulled_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _pulled(x), 0.7 * dx - 0.2 * jnp.sum(dx)


def _attend(c, x):
    return jax.nn.softmax(x @ x.T) @ x


def _attend_marked(t: Tape, c: int, x: Value) -> Value:
    scores = t.m(lambda x, y: x @ y.T, x, x)
    highest = t.stop(t.m(lambda s: s.max(-1, keepdims=True), scores))
    e = t.e(lambda s, m: jnp.exp(s - m), scores, highest)
    total = t.m(lambda e: e.sum(-1, keepdims=True), e)
    return t.m(jnp.matmul, t.e(jnp.divide, e, total), x)


def mixing(fun: Callable[..., Any], *rest: Any, **options: Any) -> Operation:
    return Operation("mixing", fun, *rest, **options)


MIXING: dict[str, Operation] = {
    "constant_product": mixing(
        lambda c, x: constants((2, 3)[c % 2], x.shape[0]) @ x, 1, array
    ),
    "from_right": mixing(lambda c, x: x @ constants(x.shape[-1], 3), 1, array),
    "inner": mixing(
        lambda c, x, y: jnp.sum(x * y, axis=0),
        2,
        lambda *s: same(*s) and array(*s),
        marked=lambda t, c, x, y: t.m(
            lambda p: jnp.sum(p, axis=0), t.e(jnp.multiply, x, y)
        ),
    ),
    "dot": mixing(lambda c, x, y: x @ y, 2, lambda x, y: vector(x, y) and x == y),
    "product": mixing(
        lambda c, x, y: x @ y, 2, lambda x, y: matrix(x) and y[:1] == x[1:]
    ),
    "einsum": mixing(
        lambda c, x, y: jnp.einsum("i,j->ij", x, y),
        2,
        lambda x, y: vector(x, y) and x[0] * y[0] <= 6,
    ),
    "sum": mixing(lambda c, x: x.sum(c % x.ndim), 1, array),
    "mean": mixing(lambda c, x: x.mean(), 1, array),
    "largest": mixing(lambda c, x: x.max(c % x.ndim), 1, array),
    "smallest": mixing(lambda c, x: x.min(), 1, array),
    "prod": mixing(lambda c, x: jnp.prod(x, axis=0), 1, array),
    "logsumexp": mixing(lambda c, x: jax.nn.logsumexp(x), 1, array),
    "norm": mixing(
        lambda c, x: jnp.sqrt(0.1 + jnp.sum(x * x)),
        1,
        array,
        marked=lambda t, c, x: t.e(
            lambda s: jnp.sqrt(0.1 + s), t.m(jnp.sum, t.e(jnp.square, x))
        ),
    ),
    "cumsum": mixing(lambda c, x: jnp.cumsum(x, axis=0) * 0.5, 1, array),
    "cumprod": mixing(lambda c, x: jnp.cumprod(jnp.cos(x), axis=0), 1, array),
    "cummax": mixing(lambda c, x: lax.cummax(x, reverse=c % 2 == 1), 1, array),
    "cumlogsumexp": mixing(lambda c, x: 0.3 * lax.cumlogsumexp(x), 1, array),
    "sort": mixing(lambda c, x: jnp.sort(x, axis=0), 1, array),
    "top": mixing(lambda c, x: lax.top_k(x, 2)[0], 1, vector),
    "winner": mixing(_winner, 1, array, marked=_winner_marked),
    "softmax": mixing(
        lambda c, x: jax.nn.softmax(x, axis=tuple(range(x.ndim))),
        1,
        array,
        marked=_softmax_marked,
    ),
    "log_softmax": mixing(
        lambda c, x: 0.4 * jax.nn.log_softmax(x),
        1,
        vector,
        marked=lambda t, c, x: t.e(lambda x: 0.4 * x, _log_softmax_marked(t, c, x)),
    ),
    "layer_norm": mixing(lambda c, x: standard(x), 1, array, marked=standard_marked),
    "share": mixing(
        lambda c, x: x / (1 + jnp.sum(x * x)), 1, array, marked=_share_marked
    ),
    "centred": mixing(
        lambda c, x: x - 0.5 * x.mean(0, keepdims=True),
        1,
        array,
        marked=_centred_marked,
    ),
    "gather": mixing(lambda c, x, i: x[i], 1, array, index=True),
    "gather_some": mixing(
        lambda c, x, i: x[(jnp.arange(3, dtype=i.dtype) + i) % x.shape[0]],
        1,
        array,
        index=True,
    ),
    "slice_at": mixing(
        lambda c, x, i: lax.dynamic_slice_in_dim(x, i, 2), 1, array, index=True
    ),
    "update_at": mixing(
        lambda c, x, y, i: lax.dynamic_update_index_in_dim(x, y[0], i, 0),
        2,
        lambda *s: same(*s) and array(*s),
        index=True,
        marked=lambda t, c, x, y, i: t.m(
            lambda x, y, i: lax.dynamic_update_index_in_dim(x, y, i, 0),
            x,
            t.x(lambda y: y[0], y),
            i,
        ),
    ),
    "scatter": mixing(
        lambda c, x, i: x.at[i].add(0.5 * x[0]),
        1,
        array,
        index=True,
        marked=lambda t, c, x, i: t.m(
            lambda x, y, i: x.at[i].add(y),
            x,
            t.e(lambda y: 0.5 * y, t.x(lambda x: x[0], x)),
            i,
        ),
    ),
    "segments": mixing(
        lambda c, x: jax.ops.segment_sum(x, np.arange(x.shape[0]) // 2, 2), 1, array
    ),
    "sorted_take": mixing(lambda c, x: x[jnp.argsort(x)], 1, vector),
    "fourier": mixing(lambda c, x: jnp.fft.fft(x).real * 0.5, 1, vector),
    "window": mixing(
        lambda c, x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "SAME"),
        1,
        vector,
    ),
    "attend": mixing(_attend, 1, matrix, marked=_attend_marked),
    "branch_product": mixing(
        _branch_product, 1, vector, index=True, marked=_branch_product_marked
    ),
    "data_cond": mixing(
        _data_cond, 2, lambda *s: same(*s) and array(*s), marked=_data_cond_marked
    ),
    "settled": mixing(_settled, 1, array, marked=_settled_marked),
    "long_scan": mixing(_long_scan),
    "blurred_gradient": mixing(lambda c, x: _blurred_gradient(x), 1, array),
    "pulled": mixing(lambda c, x: _pulled(x), 1, array),
    "associative": mixing(
        lambda c, x: lax.map(lambda r: r @ constants(x.shape[1], 2), x), 1, matrix
    ),
    "triangular": mixing(
        lambda c, x: jax.scipy.linalg.solve_triangular(
            np.tril(constants(3, 3)) + 3 * np.eye(3), x, lower=True
        ),
        1,
        lambda s: s == (3,),
    ),
}
