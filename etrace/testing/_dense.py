"""D-RTRL by brute force: dense Jacobians, the recursion written out on matrices."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from ._groups import (
    StateGroup,
    Task,
    at_time,
    check_groups,
    hidden_leaves,
    multi_step,
    read_groups,
    traced_columns,
)
from ._marks import stop_marks
from ._oracles import (
    ArrayLike,
    LossFn,
    Reduction,
    Window,
    as_arguments,
    as_state,
    sequence_length,
    step_weights,
    window_lengths,
)
from ._vectors import gradient_from_vector, rows, to_vector

#: One `[S * P, parameters]` matrix for every group: M_g = dh_g / dθ.
Influence: TypeAlias = tuple[Float[Array, "_ parameters"], ...]


@eqx.filter_jit
def _jacobians(
    problem: Task, state: PyTree, x: tuple
) -> tuple[tuple[Array, ...], tuple[Array, ...], PyTree]:
    """(D_g, I_g for every group, new state), gradients stopped at every mark."""
    groups = problem.groups
    hidden = hidden_leaves(state)

    def new_state(
        theta: Array, vectors: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], PyTree]:
        _, new = problem.step(theta, vectors, state, x)
        return read_groups(new, groups), new

    with stop_marks(lambda feeds: True):
        jacobian = jax.jacrev(new_state, argnums=(0, 1), has_aux=True)
        by_group, new = jacobian(
            to_vector(problem.parameters), read_groups(state, groups)
        )
    ds, immediates = [], []
    for g, group in enumerate(groups):
        immediate, by_hidden = by_group[g]
        s, p = rows([hidden[i] for i in group.leaves]), hidden[group.leaves[0]].size
        same = np.eye(p, dtype=bool)[None, :, None, :]
        d = jnp.where(same, by_hidden[g].reshape(s, p, s, p), 0)
        ds.append(d.reshape(s * p, s * p))
        immediates.append(immediate)
    return tuple(ds), tuple(immediates), new


@eqx.filter_jit
def _single_step(
    problem: Task, state: PyTree, x: tuple, target: PyTree, weight: Array
) -> tuple[Array, Array, tuple[Array, ...]]:
    """(L_t, ∂L_t/∂θ with the state held, B_g for every group)."""

    def loss(theta: Array, vectors: tuple[Array, ...]) -> Array:
        outputs, _ = problem.step(theta, vectors, state, x)
        value = problem.loss_fn(outputs, target)
        return weight.astype(value.dtype) * value

    theta, vectors = to_vector(problem.parameters), read_groups(state, problem.groups)
    value, now = jax.value_and_grad(loss)(theta, vectors)
    boundary = []
    for g in range(len(problem.groups)):
        # A fresh function each time: nothing may remember the trace made under another
        # context.
        with stop_marks(lambda feeds, g=g: g in feeds):
            boundary.append(jax.grad(lambda v: loss(theta, v))(vectors)[g])
    return value, now, tuple(boundary)


def _advance(
    problem: Task,
    state: PyTree,
    influence: Influence,
    traced: Array,
    xs: tuple,
    steps: int,
) -> tuple[PyTree, Influence]:
    """State and influence after some steps: M_g = D_g M_g + I_g."""
    for t in range(steps):
        ds, immediates, state = _jacobians(problem, state, at_time(xs, t))
        terms = zip(ds, influence, immediates, strict=True)
        influence = tuple(d @ m + immediate * traced[None] for d, m, immediate in terms)
    return state, influence


def dense_reference(
    model: Any,
    loss_fn: LossFn,
    inputs: Any,
    targets: PyTree,
    *,
    groups: Sequence[StateGroup],
    vjp_method: Literal["single-step", "multi-step"] = "single-step",
    window: Window = 1,
    state: PyTree | None = None,
    influence: Influence | None = None,
    mask: Shaped[ArrayLike, " time"] | None = None,
    reduction: Reduction = "sum",
    untraced: PyTree | Callable[[Any], Any] = False,
    return_final: bool = False,
) -> tuple[Any, ...]:
    """The gradient of D-RTRL from dense Jacobians, for small models with marks and
    groups made by hand.

    With D_g,t = ∂h_g,t/∂h_g,t-1, gradients stopped at every
    [`etrace.testing.mixing_input`][] and only the blocks from a position to itself
    kept, and I_g,t = ∂h_g,t/∂θ, gradients stopped at every mark, the influence is

        M_g,t = D_g,t M_g,t-1 + I_g,t

    and the gradient is the sum over the windows (single steps for `"single-step"`) of

        ∂L/∂θ, the window's first state held   +   Σ_g ∂L/∂h_g,start · M_g,start

    where for `"single-step"` the derivative by h_g stops at the marks that feed g
    itself. An initial state made of parameters belongs to the first window: its
    derivative there stops at no mark, and M_g,0 = ∂h_g,0/∂θ from then on.

    **Arguments:**

    - `groups`: a [`etrace.testing.StateGroup`][] for every hidden group, together all
        inexact leaves of the state.
    - `vjp_method`: how the loss of a window is pulled back.
    - `window`: as in [`etrace.testing.truncated`][]; makes no difference to
        `"single-step"`.
    - `influence`: the M to start from, zero by default.
    - `untraced`: the parameters that have no trace: a filter specification (a prefix of
        the model, of booleans), or a function from the model to those parameters, as in
        `eqx.tree_at`.
    - `return_final`: whether to return the last state and influence.

    The others are as in [`etrace.testing.bptt`][].

    **Returns:**

    The loss and its gradient, structured like `eqx.filter(model,
    eqx.is_inexact_array)`; with `return_final` also `(state, influence)`, which a
    further call can start from.

    ??? cite "Reference"

        The recursion is D-RTRL of Wang et al., Nature Communications 17:1745, 2026, on
        dense matrices.
    """
    if vjp_method not in ("single-step", "multi-step"):
        raise ValueError(
            f'vjp_method must be "single-step" or "multi-step", got {vjp_method!r}.'
        )
    problem = Task(model, loss_fn, tuple(groups))
    initial = problem.initial_influence() if state is None else None
    state, xs, length = (
        as_state(model, state),
        as_arguments(inputs),
        sequence_length(inputs),
    )
    check_groups(state, groups)
    weights = step_weights(mask, length, reduction)
    traced = traced_columns(model, untraced)
    if influence is None:
        sizes = [vector.size for vector in read_groups(state, groups)]
        influence = tuple(
            jnp.zeros((size, traced.size), traced.dtype) for size in sizes
        )

    multi = vjp_method == "multi-step"
    value, gradient, start = 0, jnp.zeros_like(traced), 0
    for k in window_lengths(window if multi else 1, length):
        data = jax.tree.map(lambda x: x[start : start + k], (xs, targets, weights))
        signals = multi_step if multi else _single_step
        loss, now, boundary = signals(
            problem, state, *(data if multi else at_time(data, 0))
        )
        past = sum(b @ m for b, m in zip(boundary, influence, strict=True))
        if initial is not None:
            _, _, paths = multi_step(problem, state, *data)
            past += sum(b @ m for b, m in zip(paths, initial, strict=True))
            pairs = zip(influence, initial, strict=True)
            influence = tuple(m + more * traced[None] for m, more in pairs)
            initial = None
        value, gradient = value + loss, gradient + now + past
        state, influence = _advance(problem, state, influence, traced, data[0], k)
        start += k
    grads = gradient_from_vector(gradient, problem.parameters)
    return (value, grads, (state, influence)) if return_final else (value, grads)
