"""Per-parameter traces: [batch, components, b, p, o, c], the layout of a site's
canonical form with the components of its group in front.

The arithmetic is done in the wider of the stored and the signals' precision, and at
least in float32, so that a bfloat16 trace is rounded once a window.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._analysis import Graph
from .._window import Window


def advance(trace: Array | None, d: Array, f: Array, x: Array) -> Array:
    """d ε + Σ_k f_k ⊗ x_k; from a zero trace if it is None.

    d is [batch, components, components, b, p, o], f [k, batch, components, b, p, o]
    and x [k, batch, b, p, c].
    """
    if trace is not None and not trace.size:
        return trace
    shape = (*f.shape[1:], x.shape[-1])
    if len(f) == 1 or math.prod(shape[1:]) < _SMALL:
        return _advance(trace, d, f, x)
    return lax.platform_dependent(trace, d, f, x, cpu=_by_blocks, default=_advance)


def held_once(
    graph: Graph, zeros: Sequence[Any], factored: Collection[int] = ()
) -> tuple[Any, ...]:
    """Zeros per trace; nothing for those that the first of their uses holds as well.

    Not where one is in another form, such as in factors.
    """
    held = (
        spec.uses[0] != t and not any(u in factored for u in spec.uses)
        for t, spec in enumerate(graph.traces)
    )
    return tuple(() if h else x for h, x in zip(held, zeros, strict=True))


def is_held(trace: Any) -> bool:
    """Whether another trace holds this one as well."""
    return isinstance(trace, tuple)


def added(
    t: int, data: Sequence[Any], moved: Sequence[Array], window: Window
) -> tuple[Array, Array]:
    """(f, x) of what all steps, and all uses that it holds, add to trace t."""
    uses = [u for u in window.graph.traces[t].uses if u == t or is_held(data[u])]
    f, x = [moved[u] for u in uses], [window.local_input(u) for u in uses]
    if len(uses) == 1:
        return f[0], x[0]
    return jnp.concatenate(f), jnp.concatenate(x)


def _advance(trace: Array | None, d: Array, f: Array, x: Array) -> Array:
    new = _outer(f, x)
    if trace is None:
        return new
    dtype = _working(trace, f)
    moved = _moved(d.astype(dtype)[..., None], _numbers(trace, dtype))
    return _stored(moved + _as(new, dtype), trace.dtype)


# On CPU a trace is advanced a few examples at a time, so that the product of a block is
# still in the cache when it is added to the trace, which is overwritten in place. The
# numbers are measured (2 cores, GRU-256): a product over many steps is better done for
# one example alone.
_SMALL = 2**14
_LONG, _EXAMPLES = 50, 4


def _by_blocks(trace: Array | None, d: Array, f: Array, x: Array) -> Array:
    batch = len(d)
    size = 1 if len(f) >= _LONG else math.gcd(batch, _EXAMPLES)

    def advance(i, result):
        def block(y, axis):
            return lax.dynamic_slice_in_dim(y, i * size, size, axis)

        old = None if trace is None else block(result, 0)
        new = _advance(old, block(d, 0), block(f, 1), block(x, 1))
        return lax.dynamic_update_slice_in_dim(result, new, i * size, 0)

    dtype = at_least_single(wider(f, x))
    zero = jnp.zeros((*f.shape[1:], x.shape[-1]), dtype)
    start = zero if trace is None else trace
    return lax.fori_loop(0, batch // size, advance, start)


def _outer(f: Array, x: Array) -> Array:
    """Σ_k f_k ⊗ x_k, [batch, components, b, p, o, c]."""
    dtype = at_least_single(wider(f, x))
    if len(f) == 1 or f.shape[-1] == x.shape[-1] == 1:
        each = f[..., None].astype(dtype) * x[:, :, None, :, :, None].astype(dtype)
        if len(f) == 1:
            return each[0]
        return _total(each)
    # [batch, b, p, components, o, c]. An einsum might change the order of the operands,
    # and XLA transpose what is as large as a trace.
    numbers = (((0,), (0,)), ((1, 3, 4), (1, 2, 3)))
    if f.dtype != x.dtype:
        f, x = f.astype(dtype), x.astype(dtype)
    product = lax.dot_general(f, x, numbers, preferred_element_type=dtype)
    return jnp.moveaxis(product, 3, 1)


def contract(a: Array, trace: Any) -> Array | None:
    """Σ a · ε over batch, components and p, [b, o, c]; None if the trace is zero, or
    held by another."""
    if trace is None or is_held(trace) or not trace.size:
        return None
    on_cpu = _contract
    if trace.shape[-1] == 1:
        on_cpu = _as_product
    elif math.prod(trace.shape[1:]) >= _SMALL:
        on_cpu = _by_examples
    return lax.platform_dependent(a, trace, cpu=on_cpu, default=_contract)


def _contract(a: Array, trace: Array) -> Array:
    a, trace = _both(a, trace)
    return jnp.sum(a[..., None] * trace, axis=(0, 1, 3))


def _both(a: Array, trace: Array) -> tuple[Array, Array]:
    dtype = _working(trace, a)
    return a.astype(dtype), _numbers(trace, dtype)


# The reduction that XLA makes of the whole expression on CPU is up to a hundred times
# slower than these.


def _as_product(a: Array, trace: Array) -> Array:
    """Of x = 1 alone. In rows: loops whose last axes have length one are slow, too."""
    a, trace = _both(a, trace)
    rows = len(trace) * trace.shape[1]
    total = _total(a.reshape(rows, -1) * trace.reshape(rows, -1))
    return jnp.sum(total.reshape(trace.shape[2:]), axis=1)


def _total(x: Array) -> Array:
    """The sum over the first axis; as a product, because XLA's reductions are slow on
    CPU."""
    total = jnp.ones(len(x), x.dtype) @ x.reshape(len(x), -1)
    return total.reshape(x.shape[1:])


def _by_examples(a: Array, trace: Array) -> Array:
    """One example, one component after the other."""

    batch, components, b, _, o, c = trace.shape
    start = jnp.zeros((b, o, c), _working(trace, a))

    def add(n, total):
        def one(y):
            i, s = n // components, n % components
            y = lax.dynamic_slice(y, (i, s, *(0,) * (y.ndim - 2)), (1, 1, *y.shape[2:]))
            return _numbers(y[0, 0], start.dtype)

        return total + jnp.sum(one(a)[..., None] * one(trace), axis=1)

    return lax.fori_loop(0, batch * components, add, start)


def _moved(d: Array, trace: Array) -> Array:
    """d ε, position by position."""
    if trace.shape[1] == 1:  # elementwise as it stands: XLA writes over the old trace
        return d[:, 0] * trace
    columns = [d[:, :, j] * trace[:, j : j + 1] for j in range(trace.shape[1])]
    return sum(columns[1:], columns[0])


# XLA has no bfloat16 arithmetic on most CPUs. It then turns whole arrays that a loop
# reads into float32 ones, where an element at a time is wanted. So a loop is given the
# bits of a bfloat16 trace, which are the upper half of those of a float32.


def packed(trace: Array) -> Array:
    """A bfloat16 trace as its bits; others as they are."""
    is_short = trace.dtype == jnp.bfloat16
    return lax.bitcast_convert_type(trace, jnp.uint16) if is_short else trace


def unpacked(trace: Array) -> Array:
    """The inverse of `packed`."""
    is_bits = trace.dtype == jnp.uint16
    return lax.bitcast_convert_type(trace, jnp.bfloat16) if is_bits else trace


def _numbers(trace: Array, dtype: Any) -> Array:
    if trace.dtype != jnp.uint16:
        return trace.astype(dtype)
    bits = trace.astype(jnp.uint32) << 16
    return lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


def _stored(values: Array, dtype: Any) -> Array:
    if dtype != jnp.uint16:
        return values.astype(dtype)
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    # To the nearest, of two equally near ones to the even one.
    rounded = bits + jnp.uint32(0x7FFF) + ((bits >> 16) & 1)
    # A NaN must not be rounded to infinity.
    rounded = jnp.where(jnp.isnan(values), jnp.uint32(0x7FC00000), rounded)
    return (rounded >> 16).astype(jnp.uint16)


def wider(*arrays: Array) -> Any:
    """The dtype that holds them all, also where promotion is forbidden."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)


def _working(trace: Array, signal: Array) -> Any:
    """The dtype to compute in: the wider one, in which sums are exact enough; real if
    the trace is."""
    dtype = signal.dtype if trace.dtype == jnp.uint16 else wider(trace, signal)
    dtype = at_least_single(dtype)
    return dtype if jnp.iscomplexobj(trace) else jnp.finfo(dtype).dtype


def at_least_single(dtype: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def _as(x: Array, dtype: Any) -> Array:
    """Casts; to a real dtype by taking the real part.

    With a real weight w and a complex f, dh = Re(f x dw) = Re(f x) dw.
    """
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = jnp.real(x)
    return x.astype(dtype)
