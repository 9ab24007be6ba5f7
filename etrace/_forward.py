"""Forwards through the steps of a window."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._analysis import Graph
from ._axes import examples_in
from ._step import Rolled, Steps, inexact, is_inexact
from ._window import Window


class Ran(eqx.Module):
    """A window that was run.

    - `last`: (hidden, other) after it, with a batch axis.
    - `pull`: the way back through all its steps, or None if each is differentiated by
      itself. It takes cotangents of the outputs and of the last state, or None for
      zeros, to those of the parameters, the inexact inputs and the hidden state.
    """

    window: Window
    last: tuple[PyTree, PyTree]
    pull: Callable | None


def forwards(
    graph: Graph,
    params: PyTree,
    consts: PyTree,
    state: tuple[PyTree, PyTree],
    inputs: PyTree,
    multi: tuple[bool, ...],
    length: int,
    *,
    differentiable: bool,
) -> tuple[PyTree, tuple[PyTree, PyTree], Ran]:
    """(outputs [k, batch, ...], (hidden, other) after the last step, the window).

    State and inputs have a batch axis; the leaves of `inputs` that `multi` names have
    a time axis of `length` in front. `differentiable`: whether there is a way back
    through all steps.
    """
    steps = Steps(graph, multi, length, examples_in(state, inputs, multi))
    if differentiable:
        result, pull = _roll_out_with_vjp(steps, params, consts, state, inputs)
    else:
        result, pull = steps.roll_out(params, consts, state, inputs), None
    outputs, rolled, last = result
    window = Window(graph, params, consts, inputs, multi, rolled)
    return outputs, last, Ran(window, last, pull)


def _roll_out_with_vjp(
    steps: Steps, params: PyTree, consts: PyTree, state: tuple, inputs: PyTree
) -> tuple[tuple[PyTree, Rolled, tuple], Callable]:
    """`steps.roll_out`, and the way back."""
    hidden, other = state

    def run(params, some, hidden):
        arguments = (params, consts, (hidden, other), merge(inputs, some))
        outputs, rolled, last = steps.roll_out(*arguments)
        return (inexact(outputs), inexact(last)), (outputs, rolled, last)

    arguments = (params, inexact(inputs), hidden)
    (_, last), pull, results = jax.vjp(run, *arguments, has_aux=True)

    zeros = list(map(jnp.zeros_like, last))
    return results, jax.tree_util.Partial(_pull, pull, zeros)


def _pull(pull: Callable, zeros: list[Array], outputs: PyTree, last: PyTree):
    return pull((inexact(outputs), zeros if last is None else inexact(last)))


def merge(inputs: PyTree, some: Sequence[Array]) -> PyTree:
    """The inputs, with their inexact leaves replaced."""
    leaves, treedef = jax.tree.flatten(inputs)
    replaced = iter(some)
    return treedef.unflatten([next(replaced) if is_inexact(x) else x for x in leaves])
