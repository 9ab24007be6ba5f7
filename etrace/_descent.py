"""From a gradient to the step of an optimiser: the one place where they meet."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

ValueFn = Callable[[PyTree], Any]


def descended(
    optimiser: Any,
    optimiser_state: PyTree,
    params: PyTree,
    value: Array,
    gradient: PyTree,
    value_fn: ValueFn,
) -> tuple[PyTree, PyTree]:
    """(parameters, state of the optimiser) after a step down `gradient`.

    The gradient is one of JAX: by a complex parameter x + iy it is ∂L/∂x - i ∂L/∂y.
    L grows fastest along its conjugate, and that is what an optimiser takes from its
    parameters.

    What optax calls extra arguments is given to optimisers that take it: `value`,
    `grad` (as the optimiser itself is given it) and `value_fn`.

    **Raises:** TypeError if the optimiser needs any other, or a `value_fn` of complex
    parameters.
    """
    gradient = jax.tree.map(jnp.conj, gradient)
    extra = {"value": value, "grad": gradient, "value_fn": _of_real(value_fn)}
    extra = {k: x for k, x in extra.items() if _takes(optimiser.update, k)}
    try:
        found = optimiser.update(gradient, optimiser_state, params, **extra)
    except TypeError as error:
        given = ", ".join(["grads", "state", "params", *(f"{k}=" for k in extra)])
        raise TypeError(
            f"optimiser.update({given}) failed: {error} An optimiser can be given the "
            "value, the gradient (grad) and the loss as a function of the parameters "
            "(value_fn) of the window, and no other argument. Use one that needs "
            "nothing else."
        ) from error
    updates, optimiser_state = found
    return eqx.apply_updates(params, updates), optimiser_state


def with_gradient(value_fn: ValueFn, params: PyTree, gradient: PyTree) -> ValueFn:
    """`value_fn` and what is linear in the parameters that gives it `gradient` at
    `params`.

    The loss of a window as a function of the parameters knows nothing of how they
    moved the state before it. That is in the rule's gradient alone: what it has and
    the gradient of `value_fn` has not is taken to stay as it is along a line.
    """

    def moved(new: PyTree) -> Any:
        total = value_fn(new)
        known = jax.grad(value_fn)(params)
        for g, k, a, b in zip(*map(jax.tree.leaves, (gradient, known, new, params))):
            total += jnp.sum((g - k) * (a - b)).astype(total.dtype)
        return total

    return moved


def _of_real(value_fn: ValueFn) -> ValueFn:
    """`value_fn`, if the parameters are real. Of complex ones, optax's line searches
    expect conjugates in places that differ from one to the next."""

    def checked(params: PyTree) -> Any:
        if any(map(jnp.iscomplexobj, jax.tree.leaves(params))):
            raise TypeError(
                "value_fn cannot be given for complex parameters. Make real and "
                "imaginary parts two real parameters."
            )
        return value_fn(params)

    return checked


def _takes(update: Callable[..., Any], name: str) -> bool:
    """Whether a function takes an argument by this name."""
    try:
        parameters = inspect.signature(update).parameters
    except ValueError:  # it has no signature
        return False
    kinds = {p.kind for p in parameters.values()}
    by_name = name in parameters
    return by_name or inspect.Parameter.VAR_KEYWORD in kinds
