"""An initial state that is made of parameters, as a rule sees it: a site."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._observe import Observation, Site
from ._rule import support


def with_initial(
    seen: Sequence[Observation],
    initial: Float[Array, "H n"],
    traced: Float[Array, " n"],
    paths: Float[Array, " H"],
    leaves: Sequence[int],
) -> list[Observation]:
    """What sequences show if their first step begins with h_0(θ).

    There h_0 meets the state element by element: z = w at the first step and zero at
    all others, with the derivatives of the state before it, ∂h/∂z = D and ∂u/∂z = E.

    **Arguments:**

    - `seen`: sequences, of which the first is at hand.
    - `initial`, `traced`: ∂h_0/∂θ, and 1 for the parameters that have a trace.
    - `paths`: ∂L/∂h_0 at the first step, by every path.
    - `leaves`: of every number of h the state leaf, [H].
    """
    # A leaf that is read by the recurrence alone has no trace.
    stays = jnp.max(support([o.d for o in seen]), axis=0)
    same = np.equal.outer(leaves, leaves).astype(stays.dtype)
    stays = jnp.max(same * stays[None], axis=1)
    weight = stays[:, None] * initial * traced[None]
    return [_with_site(o, weight, paths @ initial) for o in seen]


def _with_site(o: Observation, weight: Array, now: Array) -> Observation:
    length, size, _ = o.d.shape
    first = jnp.asarray(np.arange(length) == 0, o.d.dtype)[:, None, None]
    x = first * jnp.eye(size, dtype=o.d.dtype)[None]
    own = Site(o.d, o.e, x, jnp.broadcast_to(weight, (length, *weight.shape)))
    full_w = None if o.full is None or o.full_w is None else (*o.full_w, o.full @ x)
    return dataclasses.replace(
        o,
        now=o.now.at[0].add(now),
        i=o.i + o.d @ x @ own.w,
        j=o.j + o.e @ x @ own.w,
        sites=(*o.sites, own),
        full_w=full_w,
        facts=dataclasses.replace(o.facts, elementwise=(*o.facts.elementwise, True)),
    )
