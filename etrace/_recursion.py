"""The recursion backwards through a window, x_{t-1} = s_t + x_t D_t.

Matrices are over the few numbers of a position. They are kept as dictionaries of their
entries that may differ from zero, [k, batch, P] each, so that the loop over time is
elementwise and does nothing for the others.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

Entries = Mapping[tuple[int, int], Array]


def backwards(k: int, start: Entries, sources: Entries, jacobians: Entries) -> Entries:
    """x_0 … x_k from x_k: each entry is [k + 1, batch, P].

    `start` has every entry that x may have, [batch, P].
    """

    def step(x, now):
        sources, jacobians = now
        before = {}
        for row, column in x:
            terms = [
                x[row, i] * d
                for (i, j), d in jacobians.items()
                if j == column and (row, i) in x
            ]
            if (row, column) in sources:
                terms.append(sources[row, column])
            zero = jnp.zeros_like(x[row, column])
            before[row, column] = sum(terms[1:], terms[0]) if terms else zero
        return before, x

    xs = (sources, jacobians)
    # A loop of one step would be compiled as a loop.
    first, later = lax.scan(step, start, xs, length=k, reverse=True, unroll=k == 1)
    return {e: jnp.concatenate([first[e][None], later[e]]) for e in start}


def entries(matrices: Array, where: np.ndarray) -> Entries:
    """The entries [..., P] of matrices [..., S, S, P] that `where` admits."""
    pairs = np.argwhere(where).tolist()
    return {(i, j): matrices[..., i, j, :] for i, j in pairs}


def assembled(found: Entries, rows: int, columns: int) -> Array:
    """Matrices [..., rows, columns, P] from their entries."""
    zero = jnp.zeros_like(next(iter(found.values())))
    return jnp.stack(
        [
            jnp.stack([found.get((r, c), zero) for c in range(columns)], axis=-2)
            for r in range(rows)
        ],
        axis=-3,
    )


def reachable(coupled: np.ndarray) -> np.ndarray:
    """Which entries a product of such matrices, or of none, may have."""
    closure = coupled | np.eye(len(coupled), dtype=bool)
    for i in range(len(closure)):
        closure |= closure[:, i : i + 1] & closure[i : i + 1]
    return closure
