"""The axes a call has, and those that the library works with.

Inside, every array has a time axis and a batch axis. A user's arrays have those that
the call has: none, a batch axis (`batched=True`), a time axis (`MultiStepData`), both.
"""

import dataclasses
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Axes:
    """Of one call: `length` is None for a call of one step without a time axis."""

    batched: bool
    length: int | None

    def add_to_inputs(self, inputs: PyTree, multi: PyTree) -> PyTree:
        """Inputs as [k, batch, ...] where `multi`, as [batch, ...] elsewhere."""
        if self.batched:
            return inputs
        add = lambda x, m: jnp.expand_dims(x, int(m))  # noqa: E731
        return jax.tree.map(add, inputs, multi)

    def drop_from_inputs(self, leaves: Sequence[Array], multi: Sequence[bool]):
        """The inverse, for a list of leaves."""
        if self.batched:
            return list(leaves)
        return [jnp.squeeze(x, int(m)) for x, m in zip(leaves, multi, strict=True)]

    def add_to_state(self, state: PyTree) -> PyTree:
        """A state, or its cotangents, as [batch, ...]."""
        return state if self.batched else _expanded(state, (0,))

    def drop_from_state(self, state: PyTree) -> PyTree:
        return state if self.batched else jax.tree.map(lambda x: x[0], state)

    def add_to_outputs(self, outputs: PyTree) -> PyTree:
        """Outputs, or their cotangents, as [k, batch, ...]."""
        return _expanded(outputs, self._missing)

    def drop_from_outputs(self, outputs: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.squeeze(x, self._missing), outputs)

    @property
    def _missing(self) -> tuple[int, ...]:
        return (0,) * (self.length is None) + (1,) * (not self.batched)


def _expanded(tree: PyTree, axes: tuple[int, ...]) -> PyTree:
    """`expand_dims` that lets the cotangents of integers (float0) pass."""
    is_none = lambda x: x.dtype == jax.dtypes.float0  # noqa: E731
    return jax.tree.map(lambda x: x if is_none(x) else jnp.expand_dims(x, axes), tree)


def examples_in(state: PyTree, inputs: PyTree = (), multi: Sequence[bool] = ()) -> int:
    """The number of examples, of a state `[batch, ...]` and of inputs that have a time
    axis in front where `multi`. One if there is neither."""
    for x in jax.tree.leaves(state):
        return x.shape[0]
    for x, m in zip(jax.tree.leaves(inputs), multi):
        return x.shape[int(m)]
    return 1


def batch_size(leaves: Sequence[Array], axes: Sequence[int]) -> int:
    """That of leaves with so many axes in front, the batch being the last of them.

    **Raises:** ValueError if there is no batch axis, or more than one size.
    """
    sizes = set()
    for x, n in zip(leaves, axes, strict=True):
        if x.ndim < n:
            raise ValueError(
                f"batched=True, but an input has shape {x.shape}: expected a batch "
                "axis at the front (behind the time axis of MultiStepData)."
            )
        sizes.add(x.shape[n - 1])
    if len(sizes) != 1:
        raise ValueError(
            f"batched=True, but the inputs have batch sizes {sorted(sizes)}; expected "
            "one batch size for all, at the front (behind the time axis of "
            "MultiStepData)."
        )
    return sizes.pop()


def repeat_over_batch(
    tree: PyTree, batch: int, raw_keys: Collection[int] = ()
) -> PyTree:
    """The same state for every example; PRNG keys are split.

    `raw_keys` are the leaves that hold keys as plain numbers, [..., 2].
    """

    def split(keys: Array) -> Array:
        flat = keys.reshape(-1)
        several = jax.vmap(lambda k: jax.random.split(k, batch), out_axes=1)(flat)
        return several.reshape(batch, *keys.shape)

    def one(n: int, x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return split(x)
        if n in raw_keys:
            return jax.random.key_data(split(jax.random.wrap_key_data(x)))
        return jnp.broadcast_to(x, (batch, *x.shape))

    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([one(n, x) for n, x in enumerate(leaves)])
