"""Drivers: whole sequences, window by window, in one `lax.scan`.

Each driver cuts the sequence into windows of `window` steps, with a shorter one at the
end if `window` does not divide its length, and calls `update` once a window. What is
kept does not grow with the number of windows.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from ._algorithm import ETraceVjpAlgorithm
from ._check_sequence import (
    Sequence,
    check_loss,
    check_optimiser,
    check_sequence,
    check_window,
)
from ._data import MultiStepData
from ._graph import Graph
from ._model import kind_of
from ._modulation import Modulation
from ._placement import is_spread
from ._start import Start, State, with_trace
from ._trace import Trace

LossFn = Callable[[PyTree, PyTree], Any]
Reduction = Literal["mean", "sum"]


class Loss(eqx.Module):
    """What to do with a sequence; static, so that it is compiled once."""

    loss_fn: LossFn = eqx.field(static=True)
    window: int = eqx.field(static=True)
    reduction: Reduction = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    carry: bool = eqx.field(static=True)

    def prepare(self, algorithm, state, inputs, targets, mask, modulator):
        """Checks the arguments; returns the sequence and the graph of its steps."""
        sequence = check_sequence(algorithm, inputs, targets, mask, modulator)
        graph = graph_for(algorithm, state, sequence)
        check_loss(sequence, self.loss_fn, self.has_aux, graph)
        return sequence, graph

    def summed(self, algorithm, state, sequence: Sequence, window: int):
        """(value, aux, gradients, state) of a sequence, window by window."""

        def step(carry, part):
            grads, state = carry
            value, aux, more, state = self.gradient(algorithm, state, part)
            return (jax.tree.map(jnp.add, grads, more), state), (value, aux)

        params = eqx.filter(algorithm.model, eqx.is_inexact_array)
        carry = (jax.tree.map(jnp.zeros_like, params), state)
        (grads, state), results = over_windows(step, carry, sequence, window)
        values, aux = zip(*results, strict=True)
        return sum(map(jnp.sum, values)), _along_time(aux), grads, state

    def gradient(self, algorithm, state, part: Sequence):
        """(value, aux, gradients, state) of one window; the value is a sum."""
        block = algorithm._block(part.length, part.batch or 1)
        if block < part.length:
            return self.summed(algorithm, with_trace(algorithm, state), part, block)
        params = eqx.filter(algorithm.model, eqx.is_inexact_array)

        def loss(outputs):
            losses, aux = self.losses(outputs, part)
            return jnp.sum(losses), aux

        inputs = part.steps
        if part.modulator is not None:
            inputs = (*inputs, Modulation(MultiStepData(part.modulator)))
        own = ("_true_update_fun", "_update", "_update_fwd", "_update_bwd")
        if algorithm.keeps(ETraceVjpAlgorithm, *own):
            return algorithm._loss_and_gradients(params, inputs, state, loss)

        def updated(params):
            outputs, *new = algorithm._true_update_fun(params, inputs, *state)
            value, aux = loss(outputs)
            return value, (aux, tuple(new))

        grad = jax.value_and_grad(updated, has_aux=True)
        (value, (aux, state)), gradients = grad(params)
        return value, aux, gradients, state

    def losses(self, outputs: PyTree, part: Sequence):
        """The losses of all steps, weighted by the mask."""
        loss_fn = jax.vmap(self.loss_fn)
        if part.mask is not None and part.mask.ndim == 2:
            loss_fn = jax.vmap(loss_fn)
        result = loss_fn(outputs, part.targets)
        losses, aux = result if self.has_aux else (result, None)
        if part.mask is not None:
            losses = losses * part.mask.astype(losses.dtype)
        return losses, aux

    def scale(self, sums: PyTree, part: Sequence) -> PyTree:
        """Divides sums over the steps of `part`, if the reduction is the mean."""
        if self.reduction == "sum":
            return sums
        if part.mask is None:
            return jax.tree.map(lambda x: x / part.length, sums)
        total = jnp.sum(part.mask)
        # With nothing to learn from, the sums are zero: keep them.
        total = jnp.where(total == 0, jnp.ones_like(total), total)
        return jax.tree.map(lambda x: x / total.astype(x.dtype), sums)


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
    - `mask`: weights of the steps' losses, `(time,)`. With `batched=True` also
        `(time, batch)`: then `loss_fn` is given one example at a time.
    - `modulator`: time-major, only for [`etrace.ThreeFactor`][].

    It returns `(value, grads, state)`, without `state` if `carry=False`; `grads` is a
    pytree like the inexact arrays of `algorithm.model`. With `has_aux=True`, `value` is
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
        arguments = (inputs, targets, mask, modulator)
        sequence, graph = loss.prepare(algorithm, state, *arguments)
        start, state = starting(algorithm, graph, state, sequence)
        return _value_and_grad((loss, algorithm, sequence, start), state)

    return driver


@eqx.filter_jit(donate="all-except-first")
def _value_and_grad(kept, state):
    loss, algorithm, sequence, start = kept
    state = begun(start, state, sequence)
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
        window count alike, however little of the mask is in it; `"sum"` does not.
    - `optimiser`: an `optax.GradientTransformation`.

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
        arguments = (inputs, targets, mask, modulator)
        sequence, graph = loss.prepare(algorithm, state, *arguments)
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
    state = begun(start, state, sequence)
    state = _packed(algorithm, state, sequence, loss.window)

    def step(carry, part):
        params, optimiser_state, state = carry
        now = algorithm.with_model(eqx.combine(params, rest))
        value, aux, grads, state = loss.gradient(now, state, part)
        value, grads = loss.scale((value, grads), part)
        updates, optimiser_state = optimiser.update(grads, optimiser_state, params)
        params = eqx.apply_updates(params, updates)
        return (params, optimiser_state, state), (value, aux)

    (params, optimiser_state, state), results = over_windows(
        step, (params, optimiser_state, state), sequence, loss.window
    )
    algorithm = algorithm.with_model(eqx.combine(params, rest))
    values, aux = zip(*results, strict=True)
    losses = jnp.concatenate(values)
    losses = (losses, _along_time(aux)) if loss.has_aux else losses
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
    start, state = starting(algorithm, graph, state, sequence)
    return _evolve((algorithm, sequence, start, window), state)


@eqx.filter_jit(donate="all-except-first")
def _evolve(kept, state):
    algorithm, sequence, start, window = kept
    state = with_trace(algorithm, begun(start, state, sequence))

    def step(state, part):
        outputs, *state = algorithm.update(*state, *map(MultiStepData, part.inputs))
        return tuple(state), outputs

    state, results = over_windows(step, state, sequence, window)
    return state, _along_time(results)


def graph_for(
    algorithm: ETraceVjpAlgorithm, state: PyTree | None, sequence: Sequence
) -> Graph:
    """The graph of the sequence's steps: that of a state that is given, which is
    checked. (It is not looked for again, since inside `jax.jit` less of the model is
    known.)"""
    if state is None:
        return algorithm._graph(sequence.steps)[0]
    if not (isinstance(state, tuple | list) and len(state) == 3):
        raise TypeError(
            f"state is {kind_of(state)}; expected the triple (hidden, other, "
            "trace) of init(...) or of the last call, or None for a fresh state."
        )
    algorithm.check(*state, *sequence.steps)
    return state[2].graph


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


def begun(start: Start | None, state: State | None, sequence: Sequence) -> State:
    """The state to begin with, from what `starting` gave."""
    if start is not None:
        return start.state(sequence.batch)
    assert state is not None
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
    return hidden, other, Trace(change(trace.data), trace.graph)


def over_windows(step: Callable, carry: PyTree, sequence: Sequence, window: int):
    """Scans `step(carry, part) -> (carry, result)` over the windows of a sequence.

    Returns the carry and a list of stacked results: of the full windows, then of the
    ragged one.
    """
    whole, rest = divmod(sequence.length, window)
    results = []
    if whole == 1:
        carry, result = step(carry, sequence.part(0, window))
        results.append(jax.tree.map(lambda x: x[None], result))
    elif whole:

        def numbered(carry, i):
            # Not a reshaped sequence, which would be copied.
            cut = lambda x: lax.dynamic_slice_in_dim(x, i * window, window)  # noqa: E731
            return step(carry, jax.tree.map(cut, sequence))

        carry, result = lax.scan(numbered, carry, jnp.arange(whole))
        results.append(result)
    if rest:
        carry, result = step(carry, sequence.part(whole * window, sequence.length))
        results.append(jax.tree.map(lambda x: x[None], result))
    return carry, results


def _along_time(results: Iterable[PyTree]) -> PyTree:
    """Joins stacked results [windows, window, ...] along time."""
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    return jax.tree.map(lambda *xs: jnp.concatenate([*map(flat, xs)]), *results)
