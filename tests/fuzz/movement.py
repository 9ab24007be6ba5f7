"""The operations that move elements."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .operations import Operation, Shape, same


def vector(*shapes: Shape) -> bool:
    return all(len(s) == 1 and s[0] > 1 for s in shapes)


def matrix(*shapes: Shape) -> bool:
    return all(len(s) == 2 and min(s) > 1 for s in shapes)


def array(*shapes: Shape) -> bool:
    return all(s != () and min(s) > 1 for s in shapes)


def few(*shapes: Shape) -> bool:
    """Small enough to be made larger."""
    return array(*shapes) and sum(int(np.prod(s)) for s in shapes) <= 6


def _order(c: int, n: int) -> np.ndarray:
    return np.random.default_rng(c).permutation(n)


def _update(c, x, y):
    part = y[tuple(slice(0, n - 1) for n in y.shape)]
    if y is x:
        # XLA on CPU writes over what it still has to read (JAX 0.10.2).
        inside = np.pad(np.ones(part.shape, bool), [(1, 0)] * x.ndim)
        return jnp.where(inside, jnp.pad(part, [(1, 0)] * x.ndim), x)
    return lax.dynamic_update_slice(x, part, (1,) * x.ndim)


def _concatenate(c, x, y):
    return jnp.concatenate([x, y], axis=0)


def _stack(c, x, y):
    stacked = jnp.stack([x, y])
    return stacked[c % 2] if c % 3 == 0 else stacked


def _masked(c, x, y):
    mask = np.arange(x.size).reshape(x.shape) % 2 == c % 2
    return jnp.where(mask, x, y)


def _with_weight_appended(c, x, w):
    return jnp.concatenate([x[1:], w])


def _unstacked(c, x):
    return jnp.unstack(x)[c % x.shape[0]]


def _rows_scanned(c, x):
    return lax.scan(lambda s, r: (s, r[::-1]), 0, x, reverse=c % 2 == 1)[1]


def _moving(fun: Callable[..., Any], *rest: Any, **options: Any) -> Operation:
    return Operation("movement", fun, *rest, **options)


MOVEMENT: dict[str, Operation] = {
    "flatten": _moving(lambda c, x: x.reshape(-1), 1, matrix),
    "reshape": _moving(lambda c, x: x.reshape(x.shape[::-1]), 1, matrix),
    "fold": _moving(lambda c, x: x.reshape(2, -1), 1, lambda s: s in ((6,), (4,))),
    "transpose": _moving(lambda c, x: x.T, 1, matrix),
    "slice": _moving(lambda c, x: x[c % 2 : x.shape[0] - 1 + c % 2], 1, array),
    "stride": _moving(lambda c, x: x[:: (-1) ** c * 2], 1, array),
    "pad": _moving(
        lambda c, x: jnp.pad(x[1:], [(c % 2, 1 - c % 2)] + [(0, 0)] * (x.ndim - 1)),
        1,
        array,
    ),
    "dilate": _moving(
        lambda c, x: lax.pad(x, 0.0, [(0, -1, 1)]), 1, lambda s: vector(s) and few(s)
    ),
    "rev": _moving(lambda c, x: x[::-1], 1, array),
    "roll": _moving(lambda c, x: jnp.roll(x, 1 + c % 2, axis=0), 1, array),
    "squeeze": _moving(lambda c, x: jnp.squeeze(x[None, :1], 0)[0], 1, array),
    "tile": _moving(lambda c, x: jnp.tile(x, 2), 1, lambda s: vector(s) and few(s)),
    "broadcast": _moving(
        lambda c, x: jnp.broadcast_to(x[None], (2, *x.shape)),
        1,
        lambda s: vector(s) and few(s),
    ),
    "fill": _moving(
        lambda c, x: jnp.broadcast_to(x, ((3,), (2, 3))[c % 2]), 1, lambda s: s == ()
    ),
    "permute": _moving(lambda c, x: x[_order(c, x.shape[0])], 1, array),
    "take_twice": _moving(lambda c, x: x[np.array([0, 0, 1])], 1, array),
    "take_one": _moving(lambda c, x: x[c % x.shape[0]], 1, array),
    "dynamic_slice": _moving(
        lambda c, x: lax.dynamic_slice_in_dim(x, 1, x.shape[0] - 1), 1, array
    ),
    "dynamic_take": _moving(
        lambda c, x: lax.dynamic_index_in_dim(x, c % 2, keepdims=False), 1, array
    ),
    "split": _moving(lambda c, x: jnp.split(x, [1])[c % 2], 1, array),
    "unstack": _moving(_unstacked, 1, matrix),
    "rows_scanned": _moving(_rows_scanned, 1, matrix),
    "repeat": _moving(
        lambda c, x: jnp.repeat(x, 2, axis=0), 1, lambda s: vector(s) and few(s)
    ),
    "update": _moving(_update, 2, lambda *s: same(*s) and array(*s)),
    "set_first": _moving(lambda c, x: x.at[0].set(0), 1, array),
    "set_last": _moving(
        lambda c, x, y: x.at[np.array([-1])].set(y[:1]),
        2,
        lambda *s: same(*s) and array(*s),
    ),
    "concatenate": _moving(_concatenate, 2, lambda x, y: few(x, y) and x[1:] == y[1:]),
    "stack": _moving(_stack, 2, lambda *s: same(*s) and vector(*s) and few(*s)),
    "select": _moving(_masked, 2, lambda *s: same(*s) and array(*s)),
    "append": _moving(_with_weight_appended, 1, vector, weight=lambda c, s: (1,)),
}
