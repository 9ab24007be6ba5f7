"""Per-parameter traces: [batch, components, b, p, o, c], the layout of a site's
canonical form with the components of its group in front.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._window import Window


def immediate(window: Window, t: int) -> tuple[Array, Array]:
    """f [k, batch, components, b, p, o] and x [k, batch, b, p, c] of trace t."""
    site = window.graph.traces[t].site
    return window.signals.immediate[t], window.signals.local_input[site]


def advance(trace: Array, d: Array, f: Array, x: Array) -> Array:
    """d ε + Σ_k f_k ⊗ x_k, with d [batch, components, components, b, p, o]."""
    components = range(trace.shape[1])
    dtype = trace.dtype
    rows = [
        sum((d[:, i, j, ..., None].astype(dtype) * trace[:, j] for j in components), 0)
        for i in components
    ]
    if not rows:
        return trace
    if f.shape[0] == 1:
        new = f[0, ..., None] * x[0, :, None, :, :, None]
    else:
        new = jnp.einsum("kBsbpo,kBbpc->Bsbpoc", f, x)
    return jnp.stack(rows, axis=1) + _as(new, dtype)


def contract(a: Array, trace: Array) -> Array:
    """Σ a · ε over batch, components and p: [b, o, c].

    One example after the other: the reduction over the batch that XLA makes of the
    whole expression on CPU is over a hundred times slower.
    """

    def add(total, example):
        a, e = example
        return total + jnp.sum(a[..., None].astype(e.dtype) * e, axis=(0, 2)), None

    _, _, b, _, o, c = trace.shape
    total, _ = lax.scan(add, jnp.zeros((b, o, c), trace.dtype), (a, trace))
    return total


def outer_sum(g: Array, x: Array) -> Array:
    """Σ g ⊗ x over time, batch and p: [b, o, c]."""
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(g):
        g = g.astype(x.dtype)
    return jnp.einsum("kBbpo,kBbpc->boc", g, x)


def load(stored: Sequence[Array], batched: bool) -> tuple[Array, ...]:
    """Traces in the dtype of the arithmetic, with a batch axis."""
    return tuple(e if batched else e[None] for e in stored)


def store(
    traces: Sequence[Array], like: Sequence[Array], batched: bool
) -> tuple[Array, ...]:
    return tuple(
        _as(e if batched else e[0], old.dtype)
        for e, old in zip(traces, like, strict=True)
    )


def _as(x: Array, dtype) -> Array:
    """Casts; to a real dtype by taking the real part.

    With a real weight w and a complex f, dh = Re(f x dw) = Re(f x) dw.
    """
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = jnp.real(x)
    return x.astype(dtype)
