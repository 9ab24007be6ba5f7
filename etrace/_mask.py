"""Steps that do not count: those where the mask is zero.

Zero times what is not finite is not zero, so nothing of a masked step is multiplied by
its weight: it is selected away, forwards and backwards.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ._check_sequence import Sequence
from ._step import is_inexact


def finite_inputs(sequence: Sequence) -> Sequence:
    """The sequence with zeros where inputs of masked steps are not finite.

    The state moves on through masked steps, and what a padded one makes of it would
    reach every gradient that the step is evaluated together with.
    """
    mask = sequence.mask
    if mask is None:
        return sequence

    def finite(x: Array) -> Array:
        if not is_inexact(x):
            return x
        return jnp.where(_counts(mask, x) | jnp.isfinite(x), x, jnp.zeros_like(x))

    inputs = jax.tree.map(finite, sequence.inputs)
    arrays = (sequence.targets, mask, sequence.modulator)
    return Sequence(inputs, *arrays, sequence.batched)


def held_where_masked(mask: Array, outputs: PyTree) -> PyTree:
    """The outputs, with no cotangent at masked steps: the derivative of their losses
    need not be finite."""

    def held(x: Array) -> Array:
        if not is_inexact(x):
            return x
        return jnp.where(_counts(mask, x), x, lax.stop_gradient(x))

    return jax.tree.map(held, outputs)


def weighted(mask: Array, x: Array) -> Array:
    """`x`, of steps or of steps and examples, times the mask."""
    rank = max(mask.ndim, x.ndim)
    mask, x = (a.reshape(a.shape + (1,) * (rank - a.ndim)) for a in (mask, x))
    product = mask.astype(x.dtype) * x
    return jnp.where(mask.astype(bool), product, jnp.zeros_like(product))


def _counts(mask: Array, x: Array) -> Array:
    """Where the mask is not zero, to be broadcast against `x`."""
    return mask.astype(bool).reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
