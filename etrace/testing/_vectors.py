"""Pytrees of inexact arrays as real vectors, so that plain Jacobians can be taken."""

import functools
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

_T = TypeVar("_T")


def _real_dtype(dtype: np.dtype) -> np.dtype:
    return (
        np.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.complexfloating) else dtype
    )


def _components(leaf: Array) -> list[Array]:
    """A complex array is two real ones."""
    return [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]


def to_vector(tree: PyTree[Array]) -> Float[Array, " n"]:
    """All leaves, raveled and concatenated: `[n]`; a complex leaf gives its real part,
    then its imaginary part."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.zeros(0)
    dtype = functools.reduce(
        np.promote_types, (_real_dtype(leaf.dtype) for leaf in leaves)
    )
    parts = [
        jnp.ravel(part).astype(dtype) for leaf in leaves for part in _components(leaf)
    ]
    return jnp.concatenate(parts)


def from_vector(vector: Float[Array, " n"], like: _T) -> _T:
    """The inverse of `to_vector`, with the shapes and dtypes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    rebuilt, start = [], 0
    for leaf in leaves:
        parts = []
        for _ in _components(leaf):
            part = vector[start : start + leaf.size].reshape(leaf.shape)
            parts.append(part.astype(_real_dtype(leaf.dtype)))
            start += leaf.size
        rebuilt.append(jax.lax.complex(*parts) if len(parts) == 2 else parts[0])
    return jax.tree.unflatten(treedef, rebuilt)


def gradient_from_vector(vector: Float[Array, " n"], like: _T) -> _T:
    """A gradient in the coordinates of `to_vector`, as `jax.grad` would return it
    (conjugated if complex)."""
    return jax.tree.map(jnp.conj, from_vector(vector, like))


def rows(leaves: Sequence[Array]) -> int:
    """How many real numbers a position has in these leaves."""
    return sum(len(_components(leaf)) for leaf in leaves)


def gradient_distance(left: PyTree[Array], right: PyTree[Array]) -> float:
    """The norm of the difference of two gradients over the larger of their norms; zero
    if both vanish. Of arrays with values: not under `jax.jit`."""
    a, b = _complex_vector(left), _complex_vector(right)
    scale = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / (1 if scale == 0 else scale))


def _complex_vector(tree: PyTree[Array]) -> np.ndarray:
    leaves = [np.asarray(leaf, complex).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate([np.zeros(0), *leaves])
