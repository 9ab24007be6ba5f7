"""Checks and initial values that the cells share."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

DType: TypeAlias = jax.typing.DTypeLike | None


def check_sizes(**sizes: Any) -> None:
    """Raises unless every size is a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} is {size!r}; expected a positive integer.")
        if size < 1:
            raise ValueError(f"{name} is {size}; expected a positive integer.")


def check_functions(**functions: Any) -> None:
    """Raises unless every argument can be called."""
    for name, value in functions.items():
        if not callable(value):
            raise TypeError(f"{name} is {value!r}; expected a function.")


def check_input(x: Any, shape: Sequence[int]) -> None:
    """Raises unless the input of a layer is one example of this shape."""
    if jnp.shape(x) != tuple(shape):
        raise ValueError(
            f"x has the shape {jnp.shape(x)}; expected {tuple(shape)}, one example. "
            "Layers are called as layer(state, x); for a batch use jax.vmap, or "
            "batched=True on the learning rule."
        )


def input_weight(
    key: PRNGKeyArray, outputs: int, inputs: int, dtype: Any
) -> Float[Array, "outputs inputs"]:
    """Normal with variance 1 / inputs: keeps the variance (LeCun et al. 1998)."""
    init = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0)
    return init(key, (outputs, inputs), dtype)


def recurrent_weight(
    key: PRNGKeyArray, gates: int, size: int, dtype: Any
) -> Float[Array, "outputs size"]:
    """Orthogonal matrices, one a gate: keep the state's norm (Saxe et al. 2014)."""
    # A QR decomposition is not to be had in half precision.
    wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    init = jax.nn.initializers.orthogonal()
    matrices = [init(k, (size, size), wide) for k in jax.random.split(key, gates)]
    return jnp.concatenate(matrices).astype(dtype)
