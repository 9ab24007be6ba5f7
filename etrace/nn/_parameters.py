"""What neurons and synapses are made with: constants, or parameters that are trained.

A number or a NumPy array is a constant. It is no leaf of the model, so neither an
optimiser nor a gradient sees it. A JAX array is a parameter, as everywhere in Equinox.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

#: What a constructor takes for a quantity of a neuron.
Quantity: TypeAlias = float | int | Sequence[float] | np.ndarray | np.generic | Array
#: `size` of a layer: a number of neurons, or a shape.
Size: TypeAlias = int | Sequence[int]
Shape: TypeAlias = tuple[int, ...]


@jax.tree_util.register_static
class Fixed:
    """A constant, a number or one per neuron: no leaf of a pytree, and hashable.

    In double precision; it takes the dtype of the state it meets.
    """

    value: np.ndarray

    def __init__(self, value: Any):
        self.value = np.array(value, np.float64)
        self.value.flags.writeable = False
        self._hash = hash((self.value.shape, self.value.tobytes()))

    def __eq__(self, other: Any) -> bool:
        return self is other or (
            isinstance(other, Fixed) and np.array_equal(self.value, other.value)
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        shape = ",".join(map(str, self.value.shape))
        return f"Fixed({f'f64[{shape}]' if shape else float(self.value)})"


class Positive(eqx.Module):
    """A positive parameter, kept as its logarithm: training cannot take it below zero,
    and a step of an optimiser is relative to its size, whatever its unit."""

    log: Float[Array, "..."]


#: A quantity, and a quantity that is positive.
Real: TypeAlias = Fixed | Float[Array, "..."]
PositiveReal: TypeAlias = Fixed | Positive


def real(name: str, value: Any, shape: Shape, dtype: Any) -> Real:
    """A quantity that may have either sign, for neurons of this shape."""
    if isinstance(value, jax.Array):
        _check_broadcast(name, value.shape, shape)
        return value.astype(dtype)
    constant = _constant(name, value)
    _check_broadcast(name, constant.shape, shape)
    return Fixed(constant)


def positive(name: str, value: Any, shape: Shape, dtype: Any) -> PositiveReal:
    """A quantity that is positive, such as a time constant."""
    traced = isinstance(value, Tracer)
    if not traced and np.any(_constant(name, value) <= 0):
        raise ValueError(f"{name} is {value!r}; expected it to be positive.")
    checked = real(name, value, shape, dtype)
    return checked if isinstance(checked, Fixed) else Positive(jnp.log(checked))


def value_of(quantity: Real | PositiveReal, dtype: Any) -> Array:
    """The value now, of the dtype of the state."""
    if isinstance(quantity, Fixed):
        return jnp.asarray(quantity.value, dtype)
    return jnp.exp(quantity.log) if isinstance(quantity, Positive) else quantity


def decay(tau: PositiveReal, dt: float, dtype: Any) -> Array:
    """exp(-dt / τ): what is left after a step."""
    if isinstance(tau, Fixed):
        return jnp.asarray(np.exp(-dt / tau.value), dtype)
    return jnp.exp(-dt * jnp.exp(-tau.log))


def rate(tau: PositiveReal, dt: float, dtype: Any) -> Array:
    """dt / τ: Euler's share of a step."""
    if isinstance(tau, Fixed):
        return jnp.asarray(dt / tau.value, dtype)
    return dt * jnp.exp(-tau.log)


def shape_of(size: Any) -> Shape:
    """The shape of a layer, of its size."""
    try:
        sizes = tuple(map(operator.index, size if np.iterable(size) else (size,)))
    except TypeError:
        raise TypeError(
            f"size is {size!r}; expected the number of neurons, or a shape."
        ) from None
    if any(n < 1 for n in sizes):
        raise ValueError(f"size is {size!r}; expected positive numbers.")
    return sizes


def dtype_of(dtype: Any) -> np.dtype:
    """A floating-point dtype; JAX's default one for None."""
    found = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    if not jnp.issubdtype(found, jnp.floating):
        raise TypeError(
            f"dtype is {found}; expected a floating-point dtype, such as jnp.float32."
        )
    return found


def number(name: str, value: Any, *, low: float = 0.0) -> float:
    """A number greater than `low`, that is no parameter."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {value!r}; expected a number.")
    if not (value > low and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; expected a number above {low:g}.")
    return float(value)


def choice(name: str, value: Any, among: Sequence[str]) -> Any:
    """One of a few words."""
    if value not in among:
        words = ", ".join(f'"{word}"' for word in among)
        raise ValueError(f"{name} is {value!r}; expected one of {words}.")
    return value


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Raises unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} is of type {type(value).__name__}; expected one such as "
            f"etrace.nn.{example}."
        )


def check_input(x: Any, shape: Shape, layer: Any) -> None:
    """Raises unless `x` has a number for each neuron of the layer."""
    if jnp.shape(x) != shape:
        raise ValueError(
            f"x has the shape {jnp.shape(x)}; expected {shape}, one number for each "
            f"neuron of the {type(layer).__name__}. Layers are written for one example:"
            " use jax.vmap, or batched=True of a learning rule, for a batch."
        )


def _constant(name: str, value: Any) -> np.ndarray:
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        found = None
    if found is None or isinstance(value, bool | str):
        raise TypeError(
            f"{name} is {value!r}; expected a number or an array of numbers: of JAX "
            "to train it, of NumPy for a constant."
        )
    if not np.all(np.isfinite(found)):
        raise ValueError(f"{name} is {value!r}; expected finite numbers.")
    return found


def _check_broadcast(name: str, shape: Shape, to: Shape) -> None:
    same_rank = len(shape) == len(to)
    if shape and not (same_rank and all(a in (1, b) for a, b in zip(shape, to))):
        raise ValueError(
            f"{name} has the shape {shape}; expected one number, or one for each "
            f"neuron: the shape {to}, where axes may have length 1."
        )
