"""A model with data and the hand-made facts about it: what an oracle needs, as one
object."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from ._dense import dense_reference
from ._groups import StateGroup
from ._models import NetSpec, RandomNet
from ._oracles import LossFn, Window, bptt, over_batch, squared_error, truncated
from ._reference import rule_reference
from ._vectors import gradient_distance
from .rules import AbstractRule


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, a sequence, and what is known about them.

    - `model`, `loss_fn`, `inputs`, `targets`, `mask`: the arguments of the oracles; a
        mask is None or `[time]`.
    - `state`: the initial state, or None for the model's own.
    - `window`: one window length, or the length of every window.
    - `batch`: None, or the size of the second axis of inputs and targets, and the first
        axis of the state.
    - `groups`, `untraced`, `exact`: the hidden groups, the parameters without a trace,
        whether D-RTRL is BPTT.
    """

    model: Any
    loss_fn: LossFn
    inputs: Any
    targets: PyTree[Array]
    mask: Shaped[Array, " time"] | None
    state: PyTree[Array] | None
    window: Window
    batch: int | None
    groups: tuple[StateGroup, ...]
    untraced: PyTree[bool] = dataclasses.field(repr=False)
    exact: bool = False

    def _call(self, oracle: Any, options: Mapping[str, Any]) -> tuple[Any, ...]:
        oracle = oracle if self.batch is None else over_batch(oracle)
        options = {"mask": self.mask, "state": self.state, **options}
        return oracle(self.model, self.loss_fn, self.inputs, self.targets, **options)

    def bptt(self, **options: Any) -> tuple[Float[Array, ""], PyTree]:
        """[`etrace.testing.bptt`][] of this problem; keywords replace its parts. Summed
        over a batch."""
        return self._call(bptt, options)

    def truncated(self, **options: Any) -> tuple[Float[Array, ""], PyTree]:
        """[`etrace.testing.truncated`][] of this problem, by its windows."""
        return self._call(truncated, {"window": self.window, **options})

    def dense(self, **options: Any) -> tuple[Any, ...]:
        """[`etrace.testing.dense_reference`][] of this problem, by its windows."""
        facts = {
            "window": self.window,
            "groups": self.groups,
            "untraced": self.untraced,
        }
        return self._call(dense_reference, {**facts, **options})

    def reference(self, rule: AbstractRule, **options: Any) -> tuple[Any, ...]:
        """[`etrace.testing.rule_reference`][] of this problem, by its windows; `rule`
        is one of `etrace.testing.rules`."""
        facts = {
            "window": self.window,
            "groups": self.groups,
            "untraced": self.untraced,
            "rule": rule,
        }
        return self._call(rule_reference, {**facts, **options})

    def past_share(self) -> float:
        """How much of the single-step gradient the past makes up.

        The distance of the dense reference from the instantaneous gradient: where it
        vanishes, an agreement of gradients says nothing about a trace.
        """
        return float(gradient_distance(self.dense()[1], self.truncated(window=1)[1]))


def make_problem(
    spec: NetSpec,
    *,
    seed: int = 0,
    length: int = 5,
    batch: int | None = None,
    dtype: Any = None,
    mask: Any = None,
    window: Window = 1,
    random_state: bool = False,
) -> Problem:
    """A [`etrace.testing.Problem`][] around a [`etrace.testing.RandomNet`][], all
    numbers from a seed.

    **Arguments:**

    - `spec`: the model.
    - `length`, `batch`: the inputs are `[length, *shape]`, or `[length, batch,
        *shape]`.
    - `dtype`: of parameters, state and data, JAX's default float unless given.
    - `mask`: what the steps' losses are multiplied by, `[length]`.
    - `random_state`: whether the sequence starts from a random state instead of the
        model's own.
    """
    dtype = jnp.zeros(0).dtype if dtype is None else dtype
    model = RandomNet(spec, seed=seed, dtype=dtype)
    generator = np.random.default_rng([seed, 1])
    lead = (length,) if batch is None else (length, batch)

    def normal(shape: tuple[int, ...], dtype: Any = dtype) -> Array:
        return jnp.asarray(generator.normal(size=shape), dtype)

    if spec.input_shape == ():
        inputs: Any = jnp.asarray(generator.integers(0, 4, size=lead), jnp.int32)
    else:
        inputs = normal((*lead, *spec.input_shape))
    if spec.second_input:
        inputs = (inputs, normal((*lead, *spec.input_shape)))

    state = model.init_state()
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    example = jax.tree.map(lambda x: x[(0,) * len(lead)], arguments)
    outputs, _ = eqx.filter_eval_shape(model, state, *example)
    targets = jax.tree.map(lambda y: normal((*lead, *y.shape)), outputs)
    return Problem(
        model=model,
        loss_fn=squared_error,
        inputs=inputs,
        targets=targets,
        mask=None if mask is None else jnp.asarray(mask, dtype),
        state=_random_state(state, generator, batch) if random_state else None,
        window=window,
        batch=batch,
        groups=model.groups,
        untraced=model.untraced(),
        exact=model.exact,
    )


def _random_state(
    state: PyTree[Array], generator: np.random.Generator, batch: int | None
) -> PyTree[Array]:
    """Normal numbers for every inexact leaf; with a batch, a leading axis on all
    leaves."""
    lead = () if batch is None else (batch,)

    def draw(leaf: Array) -> Array:
        if not eqx.is_inexact_array(leaf):
            return jnp.broadcast_to(leaf, (*lead, *leaf.shape))
        return jnp.asarray(
            0.5 * generator.normal(size=(*lead, *leaf.shape)), leaf.dtype
        )

    return jax.tree.map(draw, state)
