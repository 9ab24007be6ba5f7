"""One step function with its state stored in several ways."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .programs import Program, Spec

Leaves = list[Any]
Storage = tuple[Callable[[Leaves], Leaves], Callable[[Leaves], Leaves]]


class Stored(eqx.Module):
    """A program whose leaves are stored as `encode` says, with a clock and a leaf that
    nothing reads beside them if there is to be `company`."""

    program: Program
    encode: Callable[[Leaves], Leaves] = eqx.field(static=True)
    decode: Callable[[Leaves], Leaves] = eqx.field(static=True)
    company: bool = eqx.field(static=True)

    def init_state(self) -> Any:
        *leaves, counter = self.program.init_state()
        beside = (jnp.zeros(()), jnp.ones(3)) if self.company else ()
        return self.encode(leaves), counter, beside

    def __call__(self, state: Any, x: Any, i: Any) -> tuple[Any, Any]:
        stored, counter, beside = state
        outputs, new = self.program((*self.decode(stored), counter), x, i)
        *leaves, counter = new
        if self.company:
            beside = (beside[0] + 1, beside[1])
        return outputs, (self.encode(leaves), counter, beside)


def storages(spec: Spec) -> dict[str, Storage]:
    """The ways to store the leaves of a spec, by name."""
    shapes = spec.leaves
    sizes = [int(np.prod(s)) for s in shapes]
    ends = np.cumsum(sizes)[:-1]
    order = np.random.default_rng(spec.seed).permutation(sum(sizes))

    def shaped(parts: Any) -> Leaves:
        return [p.reshape(s) for p, s in zip(parts, shapes, strict=True)]

    def vector(x: Leaves) -> Any:
        return jnp.concatenate([jnp.ravel(leaf) for leaf in x])

    result: dict[str, Storage] = {
        "as a vector": (
            lambda x: [vector(x)],
            lambda x: shaped(jnp.split(x[0], ends)),
        ),
        "in another order": (
            lambda x: [vector(x)[order]],
            lambda x: shaped(jnp.split(x[0][np.argsort(order)], ends)),
        ),
        "transposed": (
            lambda x: [leaf.T for leaf in x],
            lambda x: [leaf.T for leaf in x],
        ),
        "row by row": (
            lambda x: [list(leaf) for leaf in x],
            lambda x: [jnp.stack(rows) for rows in x],
        ),
    }
    if len(shapes) > 1 and len({*shapes}) == 1:
        result["stacked"] = lambda x: [jnp.stack(x)], lambda x: list(x[0])
        result["side by side"] = (
            lambda x: [jnp.stack(x, axis=-1)],
            lambda x: list(jnp.moveaxis(x[0], -1, 0)),
        )
    return result
