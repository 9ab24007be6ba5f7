"""Per-parameter traces: [batch, components, b, p, o, c], the layout of a site's
canonical form with the components of its group in front.

The arithmetic is done in the wider of the stored and the signals' precision, so that a
bfloat16 trace is rounded once a window.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def advance(trace: Array, d: Array, f: Array, x: Array) -> Array:
    """d ε + Σ_k f_k ⊗ x_k.

    d is [batch, components, components, b, p, o], f [k, batch, components, b, p, o]
    and x [k, batch, b, p, c].
    """
    components = range(trace.shape[1])
    if not components:
        return trace
    dtype = _working(trace, f)
    old = trace.astype(dtype)
    rows = [
        sum(d[:, i, j, ..., None].astype(dtype) * old[:, j] for j in components)
        for i in components
    ]
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
    dtype = _working(trace, a)

    def add(total, example):
        a, e = example
        product = a[..., None].astype(dtype) * e.astype(dtype)
        return total + jnp.sum(product, axis=(0, 2)), None

    _, _, b, _, o, c = trace.shape
    total, _ = lax.scan(add, jnp.zeros((b, o, c), dtype), (a, trace))
    return total


def outer_sum(g: Array, x: Array) -> Array:
    """Σ g ⊗ x over time, batch and p: [b, o, c]."""
    dtype = wider(g, x)
    return jnp.einsum("kBbpo,kBbpc->boc", g.astype(dtype), x.astype(dtype))


def wider(*arrays: Array) -> Any:
    """The dtype that holds them all, also where promotion is forbidden."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)


def _working(trace: Array, signal: Array) -> Any:
    """The dtype to compute in: the wider one; real if the trace is."""
    dtype = wider(trace, signal)
    return dtype if jnp.iscomplexobj(trace) else jnp.finfo(dtype).dtype


def _as(x: Array, dtype: Any) -> Array:
    """Casts; to a real dtype by taking the real part.

    With a real weight w and a complex f, dh = Re(f x dw) = Re(f x) dw.
    """
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = jnp.real(x)
    return x.astype(dtype)
