"""Operations whose derivative is a matter of definition somewhere.

At ties, at the ends of a range, at a root of zero, behind a mask, in a branch that is
not taken. All take vectors `[SIZE]` and give one.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..helpers import spike

SIZE = 4
MASK = np.array([True, False, True, True])
ORDER = np.array([2, 0, 0, 3])

Operation = Callable[..., Any]


@jax.custom_vjp
def sloped(v, slope):
    """One slope for all neurons."""
    return (v > 0).astype(v.dtype)


sloped.defvjp(
    lambda v, k: (sloped(v, k), (v, k)),
    lambda r, g: (g / (1 + r[1] * jnp.abs(r[0])) ** 2, jnp.sum(g * jnp.tanh(r[0]))),
)


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@jax.custom_vjp
def indexing(x, table):
    return x * jnp.sum(table)


def _indexing_backwards(residuals, g):
    x, table = residuals
    total, _ = lax.scan(
        lambda c, i: (c + table[i], None), jnp.zeros((), x.dtype), jnp.arange(2)
    )
    return g * total, jnp.sum(g * x) * jnp.ones_like(table)


indexing.defvjp(lambda x, t: (indexing(x, t), (x, t)), _indexing_backwards)


def _like(x, value):
    with np.errstate(over="ignore"):  # -1e9 is infinite in half precision
        return np.asarray(value, x.dtype)


def _spread(x):
    return jnp.broadcast_to(x, (SIZE,))


def _guarded_root(x):
    return lax.cond(x[0] > 0, lambda x: x**0.5, jnp.sin, x)


def _switched(x, y):
    which = (jnp.nan_to_num(x[0], posinf=1.0, neginf=0.0) > 0).astype(int) + (
        y[1] > 0
    ).astype(int)
    return lax.switch(which, [jnp.log, lambda x: 1 / x, jnp.tanh], x)


def _weighted_branch(x, w):
    return lax.cond(x[0] > 0, lambda: jnp.sqrt(w * x), lambda: jnp.tanh(w + x))


def _root_of_a_weight(x, w):
    return lax.cond(x[0] > 0, lambda: jnp.sqrt(w) * x, lambda: w * x)


def _divided_in_a_branch(x, w):
    which = (x[0] > 0).astype(int) + (x[1] > 0).astype(int)
    return lax.switch(which, [lambda: x * w, lambda: x / w, lambda: w**x - 1 / w])


def _normalised_in_a_branch(x, w):
    scaled = lambda: (w / jnp.sqrt(jnp.sum(w * w))) @ x  # noqa: E731
    return lax.cond(x[0] > 0, scaled, lambda: w @ x)


def _nested(x):
    inner = lambda x: lax.cond(x[1] > 0, jnp.log, lambda x: x * x, x)  # noqa: E731
    return lax.cond(x[0] > 0, inner, lambda x: jnp.exp(-x), x)


def _rounds(n):
    def loop(x, y):
        move = lambda _, h: h + (y - jnp.tanh(h)) / n  # noqa: E731
        return lax.fori_loop(0, n, move, x)

    return loop


def _scan_with_branch(x, y):
    def move(h, u):
        h = lax.cond(u > 0, lambda h: h + jnp.sqrt(u), lambda h: h * 0.5, h)
        return h, h[0]

    h, firsts = lax.scan(move, x, y)
    return h + firsts


def _pooled(reducer, start):
    def pool(x):
        window = lax.reduce_window(x, _like(x, start), reducer, (2,), (2,), "VALID")
        return jnp.repeat(window, 2)

    return pool


def _overlapping(x):
    low = _like(x, -np.inf)
    return lax.reduce_window(x, low, lax.max, (2,), (1,), ((0, 1),))


def _checked(x):
    return eqx.error_if(x, jnp.any(x == 123.0), "never")


#: By name: the function, and how many operands it takes; "w" marks an operand that is
#: a weight `[SIZE]`, "W" one `[SIZE, SIZE]`.
OPERATIONS: dict[str, tuple[Operation, str]] = {
    "max": (lambda x: _spread(jnp.max(x)), "x"),
    "min": (lambda x: _spread(jnp.min(x)), "x"),
    "masked max": (lambda x: _spread(jnp.max(jnp.where(MASK, x, _like(x, -1e9)))), "x"),
    "lowest max": (
        lambda x: _spread(jnp.max(jnp.where(MASK, x, jnp.finfo(x.dtype).min))),
        "x",
    ),
    "largest inputs": (lambda x, w: jnp.max(w * x[:, None], axis=1), "xW"),
    "smallest inputs": (lambda x, w: jnp.min(w + x[:, None], axis=0), "xW"),
    "picked": (lambda x: _spread(x[jnp.argmax(x)]), "x"),
    "sorted": (jnp.sort, "x"),
    "winners": (lambda x: lax.top_k(x, 2)[0].repeat(2), "x"),
    "cumulative": (lambda x: lax.cummax(x), "x"),
    "product": (lambda x: _spread(jnp.prod(x)), "x"),
    "cumulative product": (lambda x: jnp.cumprod(x), "x"),
    "maximum": (jnp.maximum, "xx"),
    "minimum": (jnp.minimum, "xx"),
    "clip": (lambda x: jnp.clip(x, -1, 1), "x"),
    "relu": (jax.nn.relu, "x"),
    "relu6": (jax.nn.relu6, "x"),
    "abs": (jnp.abs, "x"),
    "sign": (lambda x: jnp.sign(x) * x, "x"),
    "root": (lambda x: jnp.sqrt(jnp.abs(x)), "x"),
    "norm": (lambda x: _spread(jnp.linalg.norm(x)), "x"),
    "power": (lambda x: jnp.abs(x) ** 1.5, "x"),
    "no power": (lambda x: x**0, "x"),
    "power of data": (lambda x, y: jnp.abs(x) ** jnp.abs(y), "xx"),
    "power of a weight": (lambda x, w: jnp.abs(x) ** w, "xw"),
    "reciprocal": (lambda x: 1 / x, "x"),
    "quotient": (lambda x, w: w / x, "xw"),
    "logarithm": (lambda x: jnp.log(jnp.abs(x)), "x"),
    "exponential": (jnp.exp, "x"),
    "logsumexp": (lambda x: _spread(jax.nn.logsumexp(x)), "x"),
    "logaddexp": (jnp.logaddexp, "xx"),
    "softplus": (jax.nn.softplus, "x"),
    "softmax": (jax.nn.softmax, "x"),
    "masked softmax": (
        lambda x: jax.nn.softmax(jnp.where(MASK, x, _like(x, -1e9))),
        "x",
    ),
    "softmax without": (lambda x: jax.nn.softmax(x, where=MASK), "x"),
    "sigmoid": (jax.nn.sigmoid, "x"),
    "tanh": (jnp.tanh, "x"),
    "arctan2": (jnp.arctan2, "xx"),
    "remainder": (lambda x: jnp.mod(x, 1.0), "x"),
    "floor": (lambda x: x - jnp.floor(x), "x"),
    "variance": (lambda x: _spread(jnp.var(x)), "x"),
    "deviation": (lambda x: _spread(jnp.std(x)), "x"),
    "where": (lambda x: jnp.where(x > 0, jnp.log(x), _like(x, 0)), "x"),
    "where twice": (
        lambda x: jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), _like(x, 0)),
        "x",
    ),
    "numbers only": (lambda x: jnp.nan_to_num(x), "x"),
    "mean of numbers": (lambda x: _spread(jnp.nanmean(x)), "x"),
    "root in a branch": (_guarded_root, "x"),
    "switched": (_switched, "xx"),
    "weight in a branch": (_weighted_branch, "xw"),
    "root of a weight": (_root_of_a_weight, "xw"),
    "divided in a branch": (_divided_in_a_branch, "xw"),
    "normalised in a branch": (_normalised_in_a_branch, "xW"),
    "branch in a branch": (_nested, "x"),
    "branch in a loop": (_scan_with_branch, "xx"),
    "short loop": (_rounds(3), "xx"),
    "long loop": (_rounds(40), "xx"),
    "spike": (spike, "x"),
    "one slope": (lambda x, w: sloped(x, w[0]), "xw"),
    "straight through": (straight_through, "x"),
    "indexing": (lambda x: indexing(x, jnp.asarray([0.2, 0.3], x.dtype)), "x"),
    "checked": (_checked, "x"),
    "held": (lambda x, y: lax.stop_gradient(x) * y + x, "xx"),
    "half held": (lambda x: x.at[:2].set(lax.stop_gradient(x[:2])), "x"),
    "integers": (lambda x: x * (x > jnp.round(x)).astype(int).astype(x.dtype), "x"),
    "compared": (lambda x, y: jnp.where(x > y, x, 0.5 * y), "xx"),
    "max pool": (_pooled(lax.max, -np.inf), "x"),
    "sum pool": (_pooled(lax.add, 0.0), "x"),
    "overlapping pool": (_overlapping, "x"),
    "written": (lambda x, y: x.at[1].set(y[0]), "xx"),
    "added": (lambda x, y: x.at[ORDER].add(y), "xx"),
    "largest written": (lambda x, y: x.at[ORDER].max(y), "xx"),
    "gathered": (lambda x: x[ORDER], "x"),
    "written somewhere": (
        lambda x, y: lax.dynamic_update_slice(
            x, y[:2], ((jnp.nan_to_num(x[0]) > 0).astype(int),)
        ),
        "xx",
    ),
    "segments": (lambda x: jax.ops.segment_max(x, ORDER, num_segments=SIZE), "x"),
    "dense": (lambda x, w: w @ x, "xW"),
    "gain": (lambda x, w: w * x, "xw"),
    "bias": (lambda x, w: w + x, "xw"),
    "sum": (lambda x, y: x + y, "xx"),
    "times": (lambda x, y: x * y, "xx"),
}
