"""A sequence window by window, in one `lax.scan`."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from ._check_sequence import Sequence


def over_windows(step: Callable, carry: PyTree, sequence: Sequence, window: int):
    """Scans `step(carry, part) -> (carry, result)` over the windows of a sequence.

    Returns the carry and a list of stacked results: of the full windows, then of the
    ragged one.
    """
    whole, rest = divmod(sequence.length, window)
    results = []
    if whole == 1:
        carry, result = step(carry, sequence.part(0, window))
        results.append(jax.tree.map(lambda x: x[None], result))
    elif whole:

        def numbered(carry, i):
            # Not a reshaped sequence, which would be copied.
            cut = lambda x: lax.dynamic_slice_in_dim(x, i * window, window)  # noqa: E731
            return step(carry, jax.tree.map(cut, sequence))

        carry, result = lax.scan(numbered, carry, jnp.arange(whole))
        results.append(result)
    if rest:
        carry, result = step(carry, sequence.part(whole * window, sequence.length))
        results.append(jax.tree.map(lambda x: x[None], result))
    return carry, results


def along_time(results: Iterable[PyTree]) -> PyTree:
    """Joins stacked results [windows, window, ...] along time."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    return jax.tree.map(lambda *xs: jnp.concatenate([*map(flat, xs)]), *results)
