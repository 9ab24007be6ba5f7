"""A window of k steps, as a learning rule sees it.

Inside a window every array has a leading time axis of length k and a batch axis, be
the call batched or not, one step or many.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ._graph._graph import Graph
from ._graph._signals import LocalSignals, Steps, take
from ._model import split_complex


class LearningSignals(eqx.Module):
    """What the loss of a window says about its states.

    - `boundary`: per group, B_t = ∂L_t/∂h_{t-1} with gradients stopped in the group's
      own recurrence, [k, batch, S, P].
    """

    boundary: tuple[Array, ...]


class Window(eqx.Module):
    """k steps: the arguments of each, and its local derivatives.

    - `hidden`, `other`: the states *before* each step, [k, batch, ...].
    - `inputs`: leaves [k, batch, ...], or [batch, ...] for those fed at every step.
    - `signals`: the local derivatives of each step, leading axes [k, batch].
    """

    graph: Graph = eqx.field(static=True)
    params: PyTree
    consts: PyTree
    hidden: PyTree
    other: PyTree
    inputs: PyTree
    multi: tuple[bool, ...] = eqx.field(static=True)
    signals: LocalSignals

    # ------------------------------------------------------------------- trace algebra

    @property
    def length(self) -> int:
        return jax.tree.leaves(self.hidden)[0].shape[0]

    def part(self, start: int, stop: int) -> "Window":
        """The steps from `start` up to `stop`."""
        cut = lambda x: x[start:stop]  # noqa: E731
        head = lambda tree: jax.tree.map(cut, tree)  # noqa: E731
        leaves, treedef = jax.tree.flatten(self.inputs)
        inputs = [cut(x) if m else x for x, m in zip(leaves, self.multi, strict=True)]
        return Window(
            self.graph,
            self.params,
            self.consts,
            head(self.hidden),
            head(self.other),
            treedef.unflatten(inputs),
            self.multi,
            head(self.signals),
        )

    def immediate(self, t: int) -> tuple[Array, Array]:
        """Of trace t: f [k, batch, components, b, p, o] and x [k, batch, b, p, c].

        What a step adds to the trace is f ⊗ x.
        """
        site = self.graph.traces[t].site
        return self.signals.immediate[t], self.signals.local_input[site]

    def steps(self) -> "list[Window]":
        """The steps of the window, each as a window of its own."""
        return [self.part(t, t + 1) for t in range(self.length)]

    def adjoints(self, boundary: Sequence[Array]) -> tuple[Array, ...]:
        """The adjoint of the state before each step, per group [k, batch, S, P].

        a_{t-1} = B_t + D_tᵀ a_t, backwards from a_k = 0.
        """

        def back(adjoint, step):
            b, d = step
            adjoint = b + jnp.einsum("bijp,bip->bjp", d, adjoint)
            return adjoint, adjoint

        return tuple(
            lax.scan(back, jnp.zeros_like(b[0]), (b, d), reverse=True)[1]
            for b, d in zip(boundary, self.signals.jacobian, strict=True)
        )

    def propagators(self) -> tuple[Array, ...]:
        """D_k … D_{j+1} for j = 0 … k, per group [k + 1, batch, S, S, P]."""

        def back(product, d):
            return jnp.einsum("bijp,bjkp->bikp", product, d), product

        result = []
        for d in self.signals.jacobian:
            one = jnp.eye(d.shape[2], dtype=d.dtype)[None, :, :, None]
            last = jnp.broadcast_to(one, d.shape[1:])
            whole, partial = lax.scan(back, last, d, reverse=True)
            result.append(jnp.concatenate([whole[None], partial]))
        return tuple(result)

    def at_trace(self, t: int, per_group: Sequence[Array], axes: int) -> Array:
        """Takes per-group arrays [..., S, P] to a trace, [..., components, b, p, o].

        `axes` is the number of component axes, 1 for signals and 2 for Jacobians.
        """
        spec = self.graph.traces[t]
        values = per_group[spec.group]
        for axis in range(-1 - axes, -1):
            values = jnp.take(values, jnp.asarray(spec.components, int), axis=axis)
        return take(values, spec.positions)

    def pull_back(self, gradients: Sequence[Array]) -> PyTree:
        """Gradients per trace [b, o, c] to gradients of the parameters."""
        graph = self.graph
        weights = lambda p: Steps(graph).weights(p, self.consts)  # noqa: E731
        values, pull = jax.vjp(weights, self.params)
        totals = [jnp.zeros_like(v) for v in values]
        for spec, gradient in zip(graph.traces, gradients, strict=True):
            weight = graph.sites[spec.site].form.weight(gradient)
            totals[spec.site] += weight.astype(totals[spec.site].dtype)
        (params,) = pull(tuple(totals))
        return params

    # --------------------------------------------------------------------- cotangents

    def spatial_gradients(
        self, cotangents: Any
    ) -> tuple[PyTree, list, LearningSignals]:
        """Backpropagates through each step alone, its incoming state held.

        `cotangents` are those of (outputs [k, batch, ...], last hidden, last other).
        Returns the gradients of the parameters and of the inexact inputs, and the
        signals at the boundary of every step.
        """
        steps = Steps(self.graph)
        k, batch = jax.tree.leaves(self.hidden)[0].shape[:2]
        shifts = [jnp.zeros((k, batch, *s.shape), s.dtype) for s in steps.exit_shifts()]

        def window(params, inputs, shifts):
            arguments = (params, self.consts, self.hidden, self.other)
            arguments += (self._merge_inputs(inputs),)
            outputs, hidden, other = self._each(steps.step_with_exits, True)(
                arguments, shifts
            )
            return inexact((outputs, *last((hidden, other))))

        _, pull = jax.vjp(window, self.params, inexact(self.inputs), shifts)
        params, inputs, spatial = pull(inexact(cotangents))
        boundary = self._each(steps.boundary, True)(self._arguments(), spatial)
        return params, inputs, LearningSignals(boundary)

    def backpropagate(self, cotangents: Any) -> tuple[PyTree, list, LearningSignals]:
        """Backpropagates through the whole window, the state before it held.

        Returns the same as `spatial_gradients`, with the signal ∂L/∂h at the window's
        start alone (k = 1).
        """
        start = last((self.hidden, self.other), 0)

        def window(params, inputs, hidden):
            rolled = roll_out(
                self.graph,
                (params, self.consts, hidden, start[1], self._merge_inputs(inputs)),
                self.multi,
                self.length,
            )
            return inexact((rolled[0], rolled[3], rolled[4]))

        _, pull = jax.vjp(window, self.params, inexact(self.inputs), start[0])
        params, inputs, hidden = pull(inexact(cotangents))
        return params, inputs, LearningSignals(self._to_groups(hidden))

    def _to_groups(self, hidden: PyTree) -> tuple[Array, ...]:
        """A cotangent of the hidden state, by group, with a time axis of one."""

        def one(leaves):
            # The cotangent of re + i im is ∂L/∂re - i ∂L/∂im.
            return Steps(self.graph).to_groups(
                split_complex([jnp.conj(x) for x in leaves])
            )

        return tuple(b[None] for b in jax.vmap(one)(jax.tree.leaves(hidden)))

    def _arguments(self):
        return (self.params, self.consts, self.hidden, self.other, self.inputs)

    def _merge_inputs(self, some: Sequence[Array]) -> PyTree:
        """The inputs, with their inexact leaves replaced."""
        leaves, treedef = jax.tree.flatten(self.inputs)
        replaced = iter(some)
        return treedef.unflatten(
            [next(replaced) if is_inexact(x) else x for x in leaves]
        )

    def _each(self, fun: Callable, extra: bool = False) -> Callable:
        return each_step(fun, self.inputs, self.multi, extra)


def each_step(
    fun: Callable, inputs: PyTree, multi: Sequence[bool], extra: bool = False
):
    """Maps `fun(arguments, *extra)` of one step of one example over time and batch."""
    treedef = jax.tree.structure(inputs)
    in_time = treedef.unflatten([0 if m else None for m in multi])
    more = (0,) if extra else ()
    over_batch = jax.vmap(fun, in_axes=((None, None, 0, 0, 0), *more))
    return jax.vmap(over_batch, in_axes=((None, None, 0, 0, in_time), *more))


def roll_out(graph: Graph, arguments: tuple, multi: Sequence[bool], length: int):
    """Runs `length` steps, as the model itself does them.

    Returns (outputs [k, batch, ...], hidden and other before each step, and after the
    last).
    """
    params, consts, hidden, other, inputs = arguments
    leaves, treedef = jax.tree.flatten(inputs)
    step = jax.vmap(graph.call.step, in_axes=(None, None, 0, 0, 0))

    def body(state, slices):
        now = [s if m else x for x, s, m in zip(leaves, slices, multi, strict=True)]
        inputs = treedef.unflatten(now)
        # `other` is carried along, never credited.
        other = jax.tree.map(lax.stop_gradient, state[1])
        outputs, hidden, other = step(params, consts, state[0], other, inputs)
        return (hidden, other), (outputs, state)

    slices = [x if m else None for x, m in zip(leaves, multi, strict=True)]
    state, (outputs, before) = lax.scan(
        body, (hidden, other), slices, length=length, unroll=length == 1
    )
    return outputs, *before, *state


def last(tree: PyTree, index: int = -1) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jax.dtypes.result_type(x), jnp.inexact)


def inexact(tree: PyTree) -> list[Array]:
    """The leaves a gradient flows through (float0 cotangents are none)."""
    return [x for x in jax.tree.leaves(tree) if is_inexact(x)]
