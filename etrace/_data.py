"""Data tags: which arguments of a call hold one step, and which hold k."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


class SingleStepData(eqx.Module):
    """Marks data of a single step; in a call of k steps it is fed at each of them.

    **Arguments:**

    - `data`: a pytree of arrays without a time axis. With `batched=True` on the
        algorithm, each has a leading batch axis.

    Untagged data is single-step data.
    """

    data: PyTree


class MultiStepData(eqx.Module):
    """Marks data of k steps, with a leading time axis.

    **Arguments:**

    - `data`: a pytree of arrays of shape `(k, ...)`, or `(k, batch, ...)` with
        `batched=True` on the algorithm.

    Every `MultiStepData` of a call has the same k.
    """

    data: PyTree


Tag = SingleStepData | MultiStepData


def _is_tag(node: Any) -> bool:
    return isinstance(node, Tag)


def untag(
    inputs: tuple[Any, ...],
) -> tuple[tuple[Any, ...], tuple[Any, ...], int | None]:
    """Takes the tags off.

    Returns the plain inputs, a tree of the same structure that says which leaves have
    a time axis, and k (None if no argument is multi-step).
    """
    length: int | None = None
    first = ""
    plain: list[Any] = []
    multi: list[Any] = []
    nodes, treedef = jax.tree_util.tree_flatten_with_path(inputs, is_leaf=_is_tag)
    for path, node in nodes:
        name = describe(path)
        is_multi = isinstance(node, MultiStepData)
        data = node.data if isinstance(node, Tag) else node
        if any(map(_is_tag, jax.tree.leaves(data, is_leaf=_is_tag))):
            raise ValueError(
                f"{name} has a data tag inside a {type(node).__name__}. Tags do not "
                "nest: tag the outer pytree or the inner arrays, not both."
            )
        for leaf in jax.tree.leaves(data) if is_multi else ():
            if leaf.ndim == 0:
                raise ValueError(
                    f"{name} is MultiStepData but holds an array of shape (), which "
                    "has no time axis. Expected shape (k, ...): add a leading axis, or "
                    "tag it SingleStepData."
                )
            if length is None:
                length, first = leaf.shape[0], name
            elif leaf.shape[0] != length:
                raise ValueError(
                    f"{name} is MultiStepData of {leaf.shape[0]} steps, but {first} "
                    f"has {length}. Every MultiStepData of a call must have the same "
                    "leading length."
                )
        plain.append(data)
        multi.append(jax.tree.map(lambda _, flag=is_multi: flag, data))
    if length == 0:
        raise ValueError(f"{first} is MultiStepData of 0 steps; expected at least one.")
    return treedef.unflatten(plain), treedef.unflatten(multi), length


def as_arrays(tree: PyTree, name: str = "inputs") -> PyTree:
    """The inputs, tagged or not, with every leaf an array."""

    def as_array(leaf: Any) -> jax.Array:
        try:
            return jnp.asarray(leaf)
        except TypeError as error:
            raise TypeError(
                f"{name} hold {leaf!r} of type {type(leaf).__name__}, which is not an "
                "array; expected a pytree of arrays. Make anything else a field of the "
                "model."
            ) from error

    return jax.tree.map(as_array, tree)


def describe(path: tuple[Any, ...]) -> str:
    """A readable name for a place in the tuple of inputs."""
    if not path:
        return "the inputs"
    head, rest = path[0], path[1:]
    name = f"input {head.idx}" if hasattr(head, "idx") else f"input {head}"
    return name + jax.tree_util.keystr(rest)
