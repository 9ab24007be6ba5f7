r"""The factor of a trace that belongs to the neurons, over a window.

    ε_f,t = α D_t ε_f,t-1 + (1 - α) f_t

and what it makes of the signals of a step, see `_factored_rule`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._program import take
from .._window import Window
from ._factored import Factors


class Postsynaptic:
    """ε_f of trace `t`, with decay α.

    Within a step it is [batch, components, n], with the n elements of a site in a row;
    what its group knows is brought there, [..., P] to [..., n], one step at a time.
    """

    def __init__(self, window: Window, t: int, decay: float):
        self.window = window
        self.t = t
        self.decay = decay
        self.positions = window.graph.traces[t].positions

    def deltas(
        self, start: Factors, boundary: Sequence[Array], now: Array | None
    ) -> Array:
        """δ_t = (α B_t · ε_f,t-1 + (1 - α) g_t) / (1 - α^t), [k, batch, b, p, o].

        `now` is g_t, the signals of the exits at the site, or None for zero.
        """
        f, motion = self._begin(start)
        b = self.window.of_components(self.t, boundary, 1)
        none = jnp.zeros((*self.window.size, 1), f.dtype)
        g = none if now is None else now.reshape(*self.window.size, self.positions.size)
        count = jnp.arange(1, self.window.length + 1, dtype=jnp.int32)
        scale = correction(start.steps[None] + count[:, None], self.decay, f.dtype)

        def step(f: Array, at_t: tuple) -> tuple[Array, Array]:
            motion, b, g, scale = at_t
            past = total(self._own(b, f) * f)
            new = self.decay * past + (1 - self.decay) * g.astype(past.dtype)
            return self._moved(f, motion), scale[:, None].astype(new.dtype) * new

        result = _scan(step, f, (motion, b, g, scale))[1]
        return result.reshape(*self.window.size, *self.positions.shape)

    def last(self, start: Factors) -> Array:
        """ε_f after the window, stored as it was."""
        f, motion = self._begin(start)
        step = lambda f, motion: (self._moved(f, motion), None)  # noqa: E731
        return _scan(step, f, motion)[0].reshape(start.f.shape).astype(start.f.dtype)

    def _begin(self, start: Factors) -> tuple[Array, tuple[Array, Array]]:
        """ε_f before the window, and what moves it: D and f."""
        d = self.window.of_components(self.t, self.window.jacobian, 2)
        new = self.window.immediate(self.t)[0]
        new = new.reshape(*new.shape[:3], self.positions.size)
        f = start.f.reshape(*new.shape[1:]).astype(new.dtype)
        return f, (d, new)

    def _moved(self, f: Array, motion: tuple[Array, Array]) -> Array:
        d, new = self._own(motion[0], f), motion[1]
        if not f.shape[1]:
            return f
        moved = jnp.stack([total(row * f) for row in jnp.moveaxis(d, 1, 0)], axis=1)
        return self.decay * moved + (1 - self.decay) * new

    def _own(self, values: Array, f: Array) -> Array:
        own = take(values, self.positions.reshape(-1))
        return own.astype(f.dtype) if jnp.iscomplexobj(f) else own


def correction(steps: Array, decay: float, dtype: Any) -> Array:
    """1 / (1 - α^steps), by the sum of the weights ε_f gave to what it has seen.

    Real, of the precision of `dtype`.
    """
    weights = 1 - jnp.asarray(decay, float) ** steps.astype(float)
    result = 1 / jnp.where(steps == 0, jnp.ones_like(weights), weights)
    return result.astype(jnp.finfo(dtype).dtype)


def total(x: Array) -> Array:
    """The sum over components, which are few, [batch, components, ...]."""
    parts = [lax.index_in_dim(x, i, 1, keepdims=False) for i in range(x.shape[1])]
    zero = jnp.zeros((len(x), *x.shape[2:]), x.dtype)
    return sum(parts[1:], parts[0]) if parts else zero


def _scan(step: Callable, start: Array, xs: PyTree) -> tuple[Array, Any]:
    """Over time; one step is not compiled as a loop."""
    return lax.scan(step, start, xs, unroll=len(jax.tree.leaves(xs)[0]) == 1)
