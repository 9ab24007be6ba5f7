"""Exact and truncated gradients by plain reverse mode."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

#: `loss_fn(outputs_t, targets_t) -> scalar`
LossFn: TypeAlias = Callable[[Any, Any], Float[Array, ""]]
Reduction: TypeAlias = Literal["sum", "mean"]
ArrayLike: TypeAlias = Array | np.ndarray
#: One window length for the whole sequence (the last window may be shorter), or the
#: length of every window.
Window: TypeAlias = int | Sequence[int]


def squared_error(outputs: PyTree[Array], targets: PyTree[Array]) -> Float[Array, ""]:
    """Half the squared distance of two pytrees of real arrays of the same structure."""
    errors = jax.tree.map(
        lambda y, target: jnp.sum((y - target) ** 2), outputs, targets
    )
    return 0.5 * functools.reduce(jnp.add, jax.tree.leaves(errors))


def as_arguments(inputs: Any) -> tuple[Any, ...]:
    """Inputs as the tuple of a model's arguments."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def as_state(model: Any, state: PyTree | None) -> PyTree:
    """The given state, or the model's initial one; numbers become arrays."""
    state = model.init_state() if state is None else state
    return jax.tree.map(lambda x: jnp.asarray(x) if eqx.is_array_like(x) else x, state)


def sequence_length(inputs: Any) -> int:
    """The common leading length of time-major inputs."""
    lengths = {
        x.shape[0] for x in jax.tree.leaves(inputs) if eqx.is_array(x) and x.ndim > 0
    }
    if len(lengths) != 1:
        raise ValueError(
            "inputs must be time-major arrays of one leading length, got the lengths "
            f"{sorted(lengths)}."
        )
    return lengths.pop()


def window_lengths(window: Window, length: int) -> list[int]:
    """The lengths of the windows of a sequence of `length` steps; the last one may be
    ragged."""
    if isinstance(window, int):
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}.")
        return [min(window, length - start) for start in range(0, length, window)]
    lengths = list(window)
    if any(k < 1 for k in lengths) or sum(lengths) != length:
        raise ValueError(
            f"window must be lengths of at least 1 that add up to the {length} steps, "
            f"got {lengths}."
        )
    return lengths


def step_weights(
    mask: Shaped[ArrayLike, " time"] | None, length: int, reduction: Reduction
) -> Float[Array, " time"]:
    """What each step's loss is multiplied by: `[time]`."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction must be "sum" or "mean", got {reduction!r}.')
    weights = jnp.ones(length) if mask is None else jnp.asarray(mask)
    if weights.shape != (length,):
        raise ValueError(
            f"mask must have the shape ({length},) of time, got {weights.shape}."
        )
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(jnp.zeros(0).dtype)
    if reduction == "sum":
        return weights
    total = jnp.sum(weights)
    return weights / jnp.where(total == 0, 1, total)


@eqx.filter_jit
def _run(
    model: Any,
    loss_fn: LossFn,
    state: PyTree | None,
    inputs: tuple[Any, ...],
    targets: PyTree,
    weights: Float[Array, " time"],
    starts: Bool[Array, " time"],
) -> tuple[Float[Array, ""], PyTree]:
    """Value and gradient of the weighted loss, the state held at the steps where
    `starts` is true."""

    def hold(leaf: Array, start: Bool[Array, ""]) -> Array:
        if not eqx.is_inexact_array(leaf):
            return leaf
        return jnp.where(start, jax.lax.stop_gradient(leaf), leaf)

    @eqx.filter_value_and_grad
    def loss(model: Any) -> Float[Array, ""]:
        moving, fixed = eqx.partition(as_state(model, state), eqx.is_array)

        def step(moving: PyTree, xs: tuple) -> tuple[PyTree, Float[Array, ""]]:
            x, target, weight, start = xs
            moving = jax.tree.map(lambda leaf: hold(leaf, start), moving)
            outputs, state = model(eqx.combine(moving, fixed), *x)
            value = loss_fn(outputs, target)
            return eqx.filter(state, eqx.is_array), weight.astype(value.dtype) * value

        _, values = jax.lax.scan(step, moving, (inputs, targets, weights, starts))
        return jnp.sum(values)

    return loss(model)


def bptt(
    model: Any,
    loss_fn: LossFn,
    inputs: Any,
    targets: PyTree,
    *,
    state: PyTree | None = None,
    mask: Shaped[ArrayLike, " time"] | None = None,
    reduction: Reduction = "sum",
) -> tuple[Float[Array, ""], PyTree]:
    """Backpropagation through time: the exact gradient, by reverse mode through one
    `lax.scan`.

    **Arguments:**

    - `model`: has `init_state() -> state` and `__call__(state, *inputs) -> (outputs,
        state)`, one example at a time.
    - `loss_fn`: `loss_fn(outputs_t, targets_t) -> scalar`.
    - `inputs`: time-major; one array or pytree for a model of one input, a tuple for
        several.
    - `targets`: a pytree of arrays `[time, ...]`, or None.
    - `state`: the initial state. If it is given it is a constant; by default it is
        `model.init_state()`, and its parameters are differentiated as well.
    - `mask`: `[time]`, what each step's loss is multiplied by.
    - `reduction`: `"sum"` of the steps' losses, or the `"mean"`: divided by the number
        of steps, or by the sum of the mask.

    **Returns:**

    The loss, and its gradient, structured like `eqx.filter(model,
    eqx.is_inexact_array)`.
    """
    length = sequence_length(inputs)
    return truncated(
        model,
        loss_fn,
        inputs,
        targets,
        window=length,
        state=state,
        mask=mask,
        reduction=reduction,
    )


def truncated(
    model: Any,
    loss_fn: LossFn,
    inputs: Any,
    targets: PyTree,
    *,
    window: Window = 1,
    state: PyTree | None = None,
    mask: Shaped[ArrayLike, " time"] | None = None,
    reduction: Reduction = "sum",
) -> tuple[Float[Array, ""], PyTree]:
    """Truncated backpropagation: each window by itself, with the state it starts from
    held. The model's initial state belongs to the first window.

    **Arguments:**

    - `window`: the length of the windows, the last one may be ragged; or a sequence
        with the length of every window. `window=1` is the instantaneous gradient.

    The others are as in [`etrace.testing.bptt`][].

    **Returns:**

    The loss, and its gradient, structured like `eqx.filter(model,
    eqx.is_inexact_array)`.
    """
    length = sequence_length(inputs)
    starts = np.zeros(length, bool)
    ends = np.cumsum(window_lengths(window, length))
    starts[ends[:-1]] = True
    return _run(
        model,
        loss_fn,
        state,
        as_arguments(inputs),
        targets,
        step_weights(mask, length, reduction),
        jnp.asarray(starts),
    )


def over_batch(
    oracle: Callable[..., tuple[Float[Array, ""], PyTree]],
) -> Callable[..., Any]:
    """Any oracle of this package for a batch: the sum over the examples of its values
    and gradients.

    **Arguments:**

    - `oracle`: one of [`etrace.testing.bptt`][], [`etrace.testing.truncated`][],
        [`etrace.testing.dense_reference`][] and [`etrace.testing.rule_reference`][].

    **Returns:**

    A function with the signature of the oracle, for inputs and targets `[time, batch,
    ...]`, a mask `[time]` or `[time, batch]`, a `state` with a leading batch axis, and
    a `modulator` `[time, batch, ...]`.
    """

    def batched(
        model: Any,
        loss_fn: LossFn,
        inputs: Any,
        targets: PyTree,
        *,
        state: PyTree | None = None,
        mask: Shaped[ArrayLike, "time ..."] | None = None,
        **options: Any,
    ) -> tuple[Float[Array, ""], PyTree]:
        given = {k: options.pop(k) for k in ("modulator",) if k in options}

        def one(
            inputs: Any, targets: PyTree, state: PyTree, mask: Any, given: dict
        ) -> tuple[Any, PyTree]:
            examples = {"state": state, "mask": mask, **given}
            return oracle(model, loss_fn, inputs, targets, **examples, **options)

        mask_axis = 1 if mask is not None and jnp.ndim(mask) == 2 else None
        state_axis = None if state is None else 0
        results = jax.vmap(one, in_axes=(1, 1, state_axis, mask_axis, 1))(
            inputs, targets, state, mask, given
        )
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), results)

    return batched
