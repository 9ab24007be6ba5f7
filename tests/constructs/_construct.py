"""A construct, and the model it stands in."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

N, IN, OUT, STEPS = 4, 3, 2, 5


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return 0.5 * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Step(eqx.Module):
    """A step made of named weights and a function of them, with a linear read-out."""

    weights: dict[str, jax.Array]
    step: Callable = eqx.field(static=True)
    start: Callable = eqx.field(static=True)

    def init_state(self):
        return self.start()

    def __call__(self, state, x):
        seen, state = self.step(self.weights, state, x)
        seen = jnp.concatenate([jnp.real(s).reshape(-1) for s in jax.tree.leaves(seen)])
        return self.weights["readout"][:, : len(seen)] @ seen, state


@dataclasses.dataclass(frozen=True)
class Construct:
    """`step(weights, state, x) -> (what the read-out sees, state)`.

    - `weights`: their shapes, or arrays.
    - `state`: makes the first state.
    - `now`: the weights that are not traced, with a part of the reason given.
    - `same_as`: the same step, where JAX has no backward derivative of this one.
    """

    step: Callable
    weights: Mapping[str, Any]
    state: Callable[[], Any] = lambda: jnp.zeros(N)
    now: Mapping[str, str] = dataclasses.field(default_factory=dict)
    same_as: Callable | None = None

    def reference(self) -> Step:
        """A model that JAX can differentiate backwards."""
        step = self.same_as or self.step
        return dataclasses.replace(self, step=step).model()

    def model(self) -> Step:
        weights = {
            name: normal(*w, seed=n) if isinstance(w, tuple) else jnp.asarray(w)
            for n, (name, w) in enumerate(self.weights.items(), 1)
        }
        return Step(
            {**weights, "readout": normal(OUT, 64, seed=99)}, self.step, self.state
        )


def leaky(
    drive: Callable,
    weights: Mapping[str, Any],
    state: Callable[[], Any] = lambda: jnp.zeros(N),
    now: Mapping[str, str] = {},  # noqa: B006
    same_as: Callable | None = None,
) -> Construct:
    """Leaky neurons h' = σ(a) h + drive(weights, h, x), a for each of them."""

    def driven(drive: Callable) -> Callable:
        def step(w, h, x):
            h = jax.nn.sigmoid(w["a"]) * h + drive(w, h, x)
            return h, h

        return step

    weights = {**weights, "a": jax.eval_shape(state).shape}
    reference = driven(same_as) if same_as else None
    return Construct(driven(drive), weights, state, now, reference)
