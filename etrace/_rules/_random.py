"""Rules that draw random signs, from a key that is kept with the trace.

A key is stored as plain numbers, so that a trace can be saved like any array.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._model import kind_of
from ._whole_step import WholeStepRule


class RandomRule(WholeStepRule):
    """A rule with a key."""

    key: Array  # the numbers of it
    key_kind: Any = eqx.field(static=True)

    def __init__(self, model: eqx.Module, *args: Any, key: Any, **options: Any):
        super().__init__(model, *args, **options)
        try:
            jax.random.split(key)  # refuses several keys, and other numbers
            self.key_kind = jax.random.key_impl(key)
            self.key = jax.random.key_data(key)
        except (TypeError, ValueError, AttributeError) as error:
            raise TypeError(
                f"key is {kind_of(key)}; expected one random key, such as "
                "jax.random.key(0)."
            ) from error

    def _first_keys(self, batch: int | None) -> Array:
        """The key of every example."""
        # A copy, because a driver writes over the state that it is given.
        return self.key.copy() if batch is None else self._split(self.key, batch)

    def _split(self, numbers: Array, n: int) -> Array:
        """n new keys."""
        return jax.random.key_data(jax.random.split(self._key(numbers), n))

    def _signs(self, numbers: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Independent signs, +1 or -1."""
        drawn = jax.random.rademacher(self._key(numbers), shape, jnp.int8)
        return drawn.astype(dtype)

    def _key(self, numbers: Array) -> Array:
        return jax.random.wrap_key_data(numbers, impl=self.key_kind)
