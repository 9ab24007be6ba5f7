"""The loss of a sequence and its gradient, window by window."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._algorithm import ETraceVjpAlgorithm
from ._analysis import Graph
from ._check_sequence import (
    Sequence,
    check_function,
    check_loss,
    check_sequence,
    graph_for,
)
from ._data import MultiStepData
from ._mask import finite_inputs, held_where_masked, weighted
from ._modulation import Modulation
from ._start import State, with_trace
from ._windows import along_time, over_windows

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
        check_function(self.loss_fn)
        return sequence, graph

    def check(self, sequence: Sequence, graph: Graph) -> None:
        """Raises unless the loss of one step is a real scalar."""
        check_loss(sequence, self.loss_fn, self.has_aux, graph)

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
        return sum(map(jnp.sum, values)), along_time(aux), grads, state

    def gradient(self, algorithm, state, part: Sequence):
        """(value, aux, gradients, state) of one window; the value is a sum."""
        block = algorithm._block(part.length, part.batch or 1)
        if block < part.length:
            return self.summed(algorithm, with_trace(algorithm, state), part, block)
        params = eqx.filter(algorithm.model, eqx.is_inexact_array)

        def loss(outputs):
            losses, aux = self.losses(outputs, part)
            return jnp.sum(losses), aux

        inputs = finite_inputs(part).steps
        if part.modulator is not None:
            inputs = (*inputs, self.modulation(part))
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

    def losses(self, outputs: PyTree, part: Sequence) -> tuple[Array, Any]:
        """(the losses of all steps, weighted by the mask; aux)."""
        loss_fn = jax.vmap(self.loss_fn)
        if part.mask is not None:
            outputs = held_where_masked(part.mask, outputs)
            loss_fn = jax.vmap(loss_fn) if part.mask.ndim == 2 else loss_fn
        result = loss_fn(outputs, part.targets)
        losses, aux = result if self.has_aux else (result, None)
        if part.mask is not None:
            losses = weighted(part.mask, losses)
        return losses, aux

    def modulation(self, part: Sequence) -> Modulation:
        """The signals of the steps, weighted by the mask as their losses are."""
        signals = part.modulator
        assert signals is not None
        if part.mask is not None:
            signals = weighted(part.mask, signals)
        return Modulation(MultiStepData(signals))

    def value_fn(
        self, algorithm: ETraceVjpAlgorithm, state: State, part: Sequence
    ) -> Callable[[PyTree], Array]:
        """The loss of one window as a function of the parameters, the state before it
        held; scaled."""
        hidden, other, trace = state
        inputs = finite_inputs(part).steps

        def value(params: PyTree) -> Array:
            # The derivative of the steps themselves, not the rule's.
            run = algorithm._run(params, inputs, (hidden, other), trace)
            losses, _ = self.losses(run[0], part)
            return self.scale(jnp.sum(losses), part)

        return value

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
