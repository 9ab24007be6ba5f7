"""How an operation is linear in a weight.

    z[b, p, o] = sum_c x[b, p, c] w[b, o, c]

with `b` shared by data and weight (batch dimensions, groups of a convolution), `p`
found in the data alone (pixels, tokens), `o` in the weight alone (output neurons) and
`c` contracted.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from .ir import Equation, Var
from .primitive import Primitive


@dataclasses.dataclass(frozen=True, eq=False)
class LinearForm:
    """The canonical form of one operation."""

    sizes: tuple[int, int, int, int]  # b, p, o, c
    local_input: Callable[..., jax.Array]  # operands of the equation -> x [b, p, c]
    canonical: Callable[[Any], Any]  # z, in its own shape -> [b, p, o]
    weight: Callable[[Any], Any]  # [b, o, c] -> the weight's own shape

    # Both ways only move elements about, so that their transposes move them back.

    def from_canonical(self, z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """[b, p, o] -> z in its own shape."""
        like = jax.ShapeDtypeStruct(shape, z.dtype)
        return jax.linear_transpose(self.canonical, like)(z)[0]

    @property
    def layout(self) -> np.ndarray:
        """The numbers of [b, o, c] in the weight's own shape."""
        b, _, o, c = self.sizes
        return np.asarray(self.weight(np.arange(b * o * c).reshape(b, o, c)))

    def canonical_weight(self, weight: jax.Array) -> jax.Array:
        """The weight in its own shape -> [b, o, c]."""
        b, _, o, c = self.sizes
        like = jax.ShapeDtypeStruct((b, o, c), weight.dtype)
        return jax.linear_transpose(self.weight, like)(weight)[0]


def of_form(form: LinearForm) -> Primitive:
    """The product that has this form, of a weight, its first operand, and data."""
    build = lambda equation, j: form if j == 0 else None  # noqa: E731
    return Primitive("product", form=build, multiplies=True)


def linear_form(equation: Equation, j: int) -> LinearForm | None:
    """The canonical form of an operation with operand j as the weight, or None."""
    build = equation.primitive.form
    return build(equation, j) if build else None


def size_of(var: Var, dims: Sequence[int]) -> int:
    return math.prod(var.shape[d] for d in dims)


def untransposed(w, shape: tuple[int, ...], order: Sequence[int]):
    """Undoes `transpose(order)` followed by any merging of dimensions."""
    moved = w.reshape([shape[d] for d in order])
    return moved.transpose(np.argsort(order))
