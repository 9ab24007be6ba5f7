"""Drivers: whole sequences, window by window, in one `lax.scan`.

Each driver cuts the sequence into windows of `window` steps, with a shorter one at the
end if `window` does not divide its length, and calls `update` once a window. What is
kept does not grow with the number of windows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from ._algorithm import ETraceVjpAlgorithm, updated
from ._analysis import Graph
from ._check import check_shapes, guarded
from ._check_sequence import (
    Sequence,
    check_optimiser,
    check_sequence,
    check_window,
    graph_for,
)
from ._descent import descended, with_gradient
from ._loss import Loss, LossFn, Reduction
from ._placement import is_spread
from ._start import Start, State, with_trace
from ._windows import along_time, over_windows


def value_and_grad(
    loss_fn: LossFn,
    *,
    window: int = 1,
    reduction: Reduction = "mean",
    has_aux: bool = False,
    carry: bool = True,
) -> Callable[..., Any]:
    r"""The loss of a sequence and its online gradient.

    **Arguments:**

    - `loss_fn`: `loss_fn(outputs_t, targets_t) -> scalar`, the loss of one step; with
        `has_aux=True`, `-> (scalar, aux)`. With `batched=True` on the algorithm it is
        given the outputs and targets of the whole batch.
    - `window`: steps per call of `update`. With `vjp_method="single-step"` the
        gradient does not depend on it.
    - `reduction`: `"mean"` divides the sum of the steps' losses by their number (by the
        sum of the mask), `"sum"` does not.
    - `carry`: whether the final state is returned, to go on from.

    **Returns:**

    A function of `(algorithm, state, inputs, targets, mask=None, modulator=None)`:

    - `state`: `(hidden, other, trace)` from `init` or from the last call, or None for a
        fresh one. Its memory is donated: go on with the state that is returned.
    - `inputs`: time-major, `(time, ...)` or `(time, batch, ...)`: one pytree of arrays
        for a model of one input, a tuple for several.
    - `targets`: a pytree of arrays, time-major.
    - `mask`: weights of the steps' losses (and modulators), `(time,)`. With
        `batched=True` also `(time, batch)`: then `loss_fn` is given one example at a
        time. Where it is zero nothing counts, so that a padded sequence may hold
        anything there: losses, targets and modulators need not be finite, nor need the
        derivative of the loss. The state moves on all the same, and numbers of the
        inputs that are not finite are zeros to it.
    - `modulator`: time-major, only for [`etrace.ThreeFactor`][].

    It returns `(value, grads, state)`, without `state` if `carry=False`; `grads` is a
    pytree like the inexact arrays of `algorithm.model`. As of `jax.grad`, it is the
    conjugate of it that points uphill in complex parameters and that optax expects;
    [`etrace.learn`][] takes it. With `has_aux=True`, `value` is
    `(value, aux)`, aux stacked along time. It may be called inside `jax.jit`, and
    compiles itself when it is not.

    **Raises:** ValueError or TypeError, before anything is computed, if the shapes of
    inputs, targets, mask or state do not fit, or the loss is not a scalar.
    """
    check_window(window, reduction)
    loss = Loss(loss_fn, window, reduction, has_aux, carry)

    def driver(
        algorithm: ETraceVjpAlgorithm,
        state: PyTree | None,
        inputs: PyTree,
        targets: PyTree,
        mask: Any = None,
        modulator: Any = None,
    ) -> Any:
        given = (state, inputs, targets, mask, modulator)
        sequence, graph = loss.prepare(algorithm, *given)
        algorithm = guarded(algorithm, graph)
        start, state = starting(algorithm, graph, state, sequence)
        return _value_and_grad((loss, algorithm, sequence, start), state)

    return driver


@eqx.filter_jit(donate="all-except-first")
def _value_and_grad(kept, state):
    loss, algorithm, sequence, start = kept
    state = begun(algorithm, start, state, sequence)
    loss.check(sequence, state[2].graph)
    state = _packed(algorithm, state, sequence, loss.window)
    value, aux, grads, state = loss.summed(algorithm, state, sequence, loss.window)
    value, grads = loss.scale((value, grads), sequence)
    value = (value, aux) if loss.has_aux else value
    # A state that is not returned is not computed either.
    if not loss.carry:
        return value, grads
    return value, grads, _unpacked(algorithm, state)


def learn(
    loss_fn: LossFn,
    optimiser: Any,
    *,
    window: int = 1,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Online training: an optimiser step after every window, inside one scan.

    **Arguments:**

    - `loss_fn`, `window`, `reduction`, `has_aux`: as for `etrace.value_and_grad`; the
        reduction is over the steps of one window. With a mask, `"mean"` makes every
        window count alike, however little of the mask is in it; `"sum"` does not. The
        loss of a window in which nothing counts is 0.
    - `optimiser`: an `optax.GradientTransformation`. If it takes extra arguments
        (`optax.contrib.reduce_on_plateau`, line searches), it is given `value`, the
        loss of the window, `grad`, its gradient, and `value_fn`, the loss as a function
        of the parameters. In the latter the state before the window is held, and what
        the rule's gradient has beyond it is linear. There is none for complex
        parameters.

    **Returns:**

    A function of `(algorithm, optimiser_state, state, inputs, targets, mask=None,
    modulator=None)` that returns `(algorithm, optimiser_state, state, losses)`: the
    trained algorithm (its `.model` is the trained model) and the loss of every window,
    `(windows,)`. With `has_aux=True`, `losses` is `(losses, aux)`, aux stacked along
    time.
    `optimiser_state` and `state` may be None for fresh ones; the memory of `state` is
    donated.

    The traces are those of the parameters as they were: they are not recomputed when a
    parameter changes, as usual in online learning.

    **Raises:** ValueError or TypeError, before anything is computed, as
    `etrace.value_and_grad` does, and if the optimiser needs other arguments.
    """
    check_window(window, reduction)
    check_optimiser(optimiser)
    loss = Loss(loss_fn, window, reduction, has_aux, carry=True)

    def driver(
        algorithm: ETraceVjpAlgorithm,
        optimiser_state: PyTree | None,
        state: PyTree | None,
        inputs: PyTree,
        targets: PyTree,
        mask: Any = None,
        modulator: Any = None,
    ) -> Any:
        given = (state, inputs, targets, mask, modulator)
        sequence, graph = loss.prepare(algorithm, *given)
        algorithm = guarded(algorithm, graph)
        start, state = starting(algorithm, graph, state, sequence)
        if optimiser_state is None:
            params = eqx.filter(algorithm.model, eqx.is_inexact_array)
            optimiser_state = optimiser.init(params)
        kept = (loss, optimiser, algorithm, optimiser_state, sequence, start)
        return _learn(kept, state)

    return driver


@eqx.filter_jit(donate="all-except-first")
def _learn(kept, state):
    loss, optimiser, algorithm, optimiser_state, sequence, start = kept
    params, rest = eqx.partition(algorithm.model, eqx.is_inexact_array)
    state = begun(algorithm, start, state, sequence)
    loss.check(sequence, state[2].graph)
    state = _packed(algorithm, state, sequence, loss.window)

    def step(carry, part):
        params, optimiser_state, before = carry
        now = algorithm.with_model(eqx.combine(params, rest))
        value, aux, grads, state = loss.gradient(now, before, part)
        value, grads = loss.scale((value, grads), part)
        value_fn = with_gradient(loss.value_fn(now, before, part), params, grads)
        params, optimiser_state = descended(
            optimiser, optimiser_state, params, value, grads, value_fn
        )
        return (params, optimiser_state, state), (value, aux)

    (params, optimiser_state, state), results = over_windows(
        step, (params, optimiser_state, state), sequence, loss.window
    )
    algorithm = algorithm.with_model(eqx.combine(params, rest))
    values, aux = zip(*results, strict=True)
    losses = jnp.concatenate(values)
    losses = (losses, along_time(aux)) if loss.has_aux else losses
    return algorithm, optimiser_state, _unpacked(algorithm, state), losses


def evolve(
    algorithm: ETraceVjpAlgorithm,
    state: PyTree | None,
    inputs: PyTree,
    *,
    window: int = 1,
) -> tuple[PyTree, PyTree]:
    """Runs a sequence without a gradient, the trace going along.

    **Arguments:**

    - `algorithm`, `state`, `inputs`: as for `etrace.value_and_grad`; the memory of
        `state` is donated.
    - `window`: steps per call of `update`.

    **Returns:** `(state, outputs)`, outputs stacked along time.
    """
    check_window(window, "sum")
    sequence = check_sequence(algorithm, inputs, None, None)
    graph = graph_for(algorithm, state, sequence)
    algorithm = guarded(algorithm, graph)
    start, state = starting(algorithm, graph, state, sequence)
    return _evolve((algorithm, sequence, start, window), state)


@eqx.filter_jit(donate="all-except-first")
def _evolve(kept, state):
    algorithm, sequence, start, window = kept
    state = with_trace(algorithm, begun(algorithm, start, state, sequence))

    def step(state, part):
        outputs, *state = updated(algorithm, *state, part.steps)
        return tuple(state), outputs

    state, results = over_windows(step, state, sequence, window)
    return state, along_time(results)


def starting(
    algorithm: ETraceVjpAlgorithm,
    graph: Graph,
    state: PyTree | None,
    sequence: Sequence,
) -> tuple[Start | None, State | None]:
    """What to start from: either what a fresh state is made of, once compiled, or a
    state."""
    if state is not None:
        return None, tuple(state)
    if is_spread((algorithm, sequence.inputs)):
        return None, algorithm.init(*sequence.steps)
    return Start.of(algorithm, graph), None


def begun(
    algorithm: ETraceVjpAlgorithm,
    start: Start | None,
    state: State | None,
    sequence: Sequence,
) -> State:
    """The state to begin with, from what `starting` gave; raises if it does not fit."""
    if start is not None:
        return start.state(sequence.batch)
    assert state is not None
    check_shapes(algorithm, *state, sequence.steps)
    return state


def _packed(
    algorithm: ETraceVjpAlgorithm, state: State, sequence: Sequence, window: int
) -> State:
    """The state to begin with, its trace as it goes through a loop."""
    # A single window needs no zero trace.
    if sequence.length > window:
        state = with_trace(algorithm, state)
    return _stored(algorithm._packed, state)


def _unpacked(algorithm: ETraceVjpAlgorithm, state: State) -> State:
    return _stored(algorithm._unpacked, state)


def _stored(change: Callable[[PyTree], PyTree], state: State) -> State:
    """The state, with what its trace stores changed."""
    hidden, other, trace = state
    return hidden, other, dataclasses.replace(trace, data=change(trace.data))
