"""What the dense references share: the state as one vector a group, the step as a
function of vectors, reverse mode through a window."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._oracles import LossFn, as_state
from ._vectors import from_vector, rows, to_vector


@dataclasses.dataclass(frozen=True)
class StateGroup:
    """State leaves that talk to each other element by element.

    **Arguments:**

    - `leaves`: which of the state's inexact arrays, counted in the order of
        `jax.tree.leaves` (arrays of integers and keys are not counted). They have one
        size P; element p of each, flattened, belongs to position p. A complex array
        counts as two real ones, so S is the number of real arrays plus twice that of
        complex ones.
    """

    leaves: tuple[int, ...]


def hidden_leaves(state: PyTree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(state) if eqx.is_inexact_array(leaf)]


def read_groups(state: PyTree, groups: Sequence[StateGroup]) -> tuple[Array, ...]:
    """The state as one real vector `[S * P]` for every group."""
    hidden = hidden_leaves(state)
    return tuple(to_vector([hidden[i] for i in group.leaves]) for group in groups)


def leaf_numbers(state: PyTree, groups: Sequence[StateGroup]) -> tuple[int, ...]:
    """Of every number in `read_groups`, laid end to end, the leaf it is of."""
    hidden = hidden_leaves(state)
    leaves = [k for group in groups for k in group.leaves]
    return tuple(k for k in leaves for _ in range(rows([hidden[k]]) * hidden[k].size))


def write_groups(
    state: PyTree, groups: Sequence[StateGroup], vectors: Sequence[Array]
) -> PyTree:
    """`state` with its inexact leaves taken from `vectors`."""
    hidden = hidden_leaves(state)
    for group, vector in zip(groups, vectors, strict=True):
        new = from_vector(vector, [hidden[i] for i in group.leaves])
        for i, leaf in zip(group.leaves, new, strict=True):
            hidden[i] = leaf
    leaves, treedef = jax.tree.flatten(state)
    remaining = iter(hidden)
    leaves = [
        next(remaining) if eqx.is_inexact_array(leaf) else leaf for leaf in leaves
    ]
    return jax.tree.unflatten(treedef, leaves)


def check_groups(state: PyTree, groups: Sequence[StateGroup]) -> None:
    hidden = hidden_leaves(state)
    listed = sorted(i for group in groups for i in group.leaves)
    if listed != list(range(len(hidden))):
        raise ValueError(
            f"groups must list each of the state's {len(hidden)} inexact arrays "
            f"exactly once, got {listed}."
        )
    for group in groups:
        sizes = [hidden[i].size for i in group.leaves]
        if len(set(sizes)) != 1:
            raise ValueError(
                f"The leaves of a group must have one size, got {sizes} in {group}."
            )


class Task(eqx.Module):
    """Everything that stays the same from step to step."""

    model: Any
    loss_fn: LossFn
    groups: tuple[StateGroup, ...] = eqx.field(static=True)

    @property
    def parameters(self) -> PyTree:
        return eqx.filter(self.model, eqx.is_inexact_array)

    def step(
        self, theta: Array, vectors: Sequence[Array], state: PyTree, x: tuple
    ) -> tuple[PyTree, PyTree]:
        """The model's step as a function of the parameter vector and the groups'
        vectors."""
        return self._at(theta)(write_groups(state, self.groups, vectors), *x)

    def initial_influence(self) -> tuple[Float[Array, "_ parameters"], ...]:
        """∂h_0/∂θ of every group: what the initial state owes to the parameters."""

        def initial(theta: Array) -> tuple[Array, ...]:
            return read_groups(as_state(self._at(theta), None), self.groups)

        return jax.jacrev(initial)(to_vector(self.parameters))

    def _at(self, theta: Array) -> Any:
        static = eqx.filter(self.model, eqx.is_inexact_array, inverse=True)
        return eqx.combine(from_vector(theta, self.parameters), static)


@eqx.filter_jit
def multi_step(
    problem: Task, state: PyTree, xs: tuple, targets: PyTree, weights: Array
) -> tuple[Array, Array, tuple[Array, ...]]:
    """(L, ∂L/∂θ, ∂L/∂h_g for every group) of a window, by reverse mode through it, the
    state at its start held."""
    groups = problem.groups

    def loss(theta: Array, vectors: tuple[Array, ...]) -> Array:
        def step(moving: PyTree, at_t: tuple) -> tuple[PyTree, Array]:
            x, target, weight = at_t
            state = eqx.combine(moving, fixed)
            outputs, state = problem.step(theta, read_groups(state, groups), state, x)
            value = problem.loss_fn(outputs, target)
            return eqx.filter(state, eqx.is_array), weight.astype(value.dtype) * value

        start = write_groups(state, groups, vectors)
        moving, fixed = eqx.partition(start, eqx.is_array)
        return jnp.sum(jax.lax.scan(step, moving, (xs, targets, weights))[1])

    theta, vectors = to_vector(problem.parameters), read_groups(state, groups)
    value, (now, boundary) = jax.value_and_grad(loss, argnums=(0, 1))(theta, vectors)
    return value, now, boundary


def traced_columns(
    model: Any, untraced: PyTree | Callable[[Any], Any]
) -> Float[Array, " n"]:
    """1 for the coordinates of θ that have an influence, 0 for those that keep "now"
    only: `[parameters]`."""
    parameters = eqx.filter(model, eqx.is_inexact_array)
    if callable(untraced) and not isinstance(
        untraced, eqx.Module
    ):  # a specification may be a callable Module
        nothing = jax.tree.map(lambda _: False, parameters)
        where: Callable = untraced
        untraced = eqx.tree_at(
            where, nothing, replace_fn=lambda node: jax.tree.map(lambda _: True, node)
        )
    chosen = eqx.filter(parameters, untraced)

    def columns(parameter: Array | None, chosen: Array | None) -> Array | None:
        if parameter is None:
            return None
        parameter = (
            jnp.ones_like(parameter) if chosen is None else jnp.zeros_like(parameter)
        )
        return (
            jax.lax.complex(parameter.real, parameter.real)
            if jnp.iscomplexobj(parameter)
            else parameter
        )

    return to_vector(
        jax.tree.map(columns, parameters, chosen, is_leaf=lambda x: x is None)
    )


def at_time(data: PyTree, t: int) -> PyTree:
    return jax.tree.map(lambda x: x[t], data)
