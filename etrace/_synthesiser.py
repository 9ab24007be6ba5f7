"""Training of the synthesiser of `etrace.DNI`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ._check_sequence import (
    Sequence,
    check_loss,
    check_optimiser,
    check_positive,
    check_sequence,
)
from ._descent import descended
from ._loss import Loss, LossFn
from ._mask import finite_inputs
from ._rules import DNI
from ._rules._dni import estimated
from ._sequence import begun, starting


def fit_synthesiser(
    algorithm: DNI,
    loss_fn: LossFn,
    inputs: PyTree,
    targets: PyTree,
    optimiser: Any,
    *,
    window: int,
    epochs: int = 1,
    mask: Any = None,
) -> tuple[DNI, Array]:
    r"""Teaches a DNI's synthesiser what later losses say about a state.

    At the start of each window, its estimate is drawn towards the gradient of the
    window's own losses and, through the window, of its own estimate at the end,

        ĝ(h_0)  →  ∂/∂h_0 [ Σ_t L_t + ĝ(h_k) · h_k ],    0 at the end of the sequence

    the squared distance being descended. The model is not changed.

    **Arguments:**

    - `algorithm`: an [`etrace.DNI`][].
    - `loss_fn`, `inputs`, `targets`: as for [`etrace.value_and_grad`][]; the losses of
        all steps are summed.
    - `optimiser`: an `optax.GradientTransformation` of the synthesiser.
    - `window`: the length of the windows; it must divide that of the sequence.
    - `epochs`: how often to go through the sequence.
    - `mask`: weights of the steps' losses, as for [`etrace.value_and_grad`][].

    **Returns:** `(algorithm, losses)`: the algorithm with the trained synthesiser,
    fitted for windows of this length, and the mean squared distance of each epoch.
    """
    if not isinstance(algorithm, DNI):
        raise TypeError(
            f"algorithm is {type(algorithm).__name__}; expected etrace.DNI, the rule "
            "that has a synthesiser."
        )
    check_positive("window", window)
    check_positive("epochs", epochs)
    check_optimiser(optimiser)
    sequence = check_sequence(algorithm, inputs, targets, mask)
    graph, _ = algorithm._graph(sequence.steps)
    check_loss(sequence, loss_fn, has_aux=False, graph=graph)
    if sequence.length % window:
        raise ValueError(
            f"window is {window}, which does not divide the {sequence.length} steps of "
            "the inputs; expected one that does: every window has the length that the "
            "synthesiser is fitted for."
        )
    start = starting(algorithm, graph, None, sequence)
    hidden, other, _ = begun(algorithm, *start, sequence)
    moving, rest = eqx.partition(algorithm.synthesiser, eqx.is_inexact_array)
    loss = Loss(loss_fn, window, "sum", has_aux=False, carry=True)
    problem = _Problem(
        algorithm.model, algorithm.batched, algorithm.axis_name, loss, rest
    )
    moving, losses = _fit(
        problem, moving, optimiser, (hidden, other), sequence, window, epochs
    )
    trained = eqx.combine(moving, rest)
    return algorithm.fitted(trained, window), losses


class _Problem(eqx.Module):
    model: Any
    batched: bool = eqx.field(static=True)
    axis_name: str | None = eqx.field(static=True)
    loss: Loss
    rest: PyTree  # of the synthesiser

    def run(self, hidden: PyTree, other: PyTree, part: Sequence) -> tuple[Array, tuple]:
        """(sum of the losses, the last state) of a window."""

        def step(state, x):
            named = jax.vmap(self.model, axis_name=self.axis_name)
            model = named if self.batched else self.model
            outputs, state = model(eqx.combine(*state), *x)
            return eqx.partition(state, like), outputs

        like = jax.tree.map(
            lambda x: x is not None, hidden, is_leaf=lambda x: x is None
        )
        inputs = finite_inputs(part).inputs
        state, outputs = lax.scan(step, (hidden, other), inputs)
        losses, _ = self.loss.losses(outputs, part)
        return jnp.sum(losses), state

    def estimate(self, synthesiser: PyTree, hidden: PyTree) -> PyTree:
        synthesise = eqx.combine(synthesiser, self.rest)
        if self.batched:
            return estimated(synthesise, hidden)
        lead = lambda tree: jax.tree.map(lambda x: x[None], tree)  # noqa: E731
        return jax.tree.map(lambda x: x[0], estimated(synthesise, lead(hidden)))


@eqx.filter_jit
def _fit(problem, synthesiser, optimiser, state, sequence, window, epochs):
    count = sequence.length // window

    def at_window(carry, i):
        synthesiser, optimiser_state, (hidden, other) = carry
        cut = lambda x: lax.dynamic_slice_in_dim(x, i * window, window)  # noqa: E731
        part = jax.tree.map(cut, sequence)
        run = lambda h: problem.run(h, other, part)  # noqa: E731
        (total, after), pull = jax.vjp(run, hidden)
        ahead = problem.estimate(synthesiser, after[0])
        ahead = jax.tree.map(lambda x: jnp.where(i == count - 1, 0, x), ahead)
        zeros = jax.tree.map(jnp.zeros_like, after[1])
        (target,) = pull((jnp.ones_like(total), (ahead, zeros)))

        def distance(synthesiser):
            found = problem.estimate(synthesiser, hidden)
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True)
            return sum(jnp.mean(jnp.abs(a - b) ** 2) for a, b in pairs)

        value, grads = jax.value_and_grad(distance)(synthesiser)
        synthesiser, optimiser_state = descended(
            optimiser, optimiser_state, synthesiser, value, grads, distance
        )
        return (synthesiser, optimiser_state, after), value

    def epoch(carry, _):
        synthesiser, optimiser_state = carry
        start = (synthesiser, optimiser_state, state)
        (*carry, _), values = lax.scan(at_window, start, jnp.arange(count))
        return tuple(carry), jnp.mean(values)

    start = (synthesiser, optimiser.init(synthesiser))
    (synthesiser, _), losses = lax.scan(epoch, start, length=epochs)
    return synthesiser, losses
