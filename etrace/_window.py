"""A window of k steps, as a learning rule sees it.

Inside a window every array has a leading time axis of length k and a batch axis, be
the call batched or not, one step or many.
"""

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._analysis import Graph
from ._axes import examples_in
from ._program import take
from ._recursion import assembled, backwards, entries, reachable
from ._step import (
    LocalPropagation,
    LocalRegion,
    OwnPropagation,
    Propagation,
    Rolled,
    Steps,
    StepValues,
)


class Window(eqx.Module):
    """k steps of a batch.

    - `graph`: what is traced.
    - `params`, `consts`: the model's arrays.
    - `inputs`: leaves [k, batch, ...], or [batch, ...] for those fed at every step;
      `multi` says which.
    - `rolled`: the states before each step, and what its mixing operations gave.
    - `modulator`: signals that were given with the call; see `etrace.ThreeFactor`.
    """

    graph: Graph = eqx.field(static=True)
    params: PyTree
    consts: PyTree
    inputs: PyTree
    multi: tuple[bool, ...] = eqx.field(static=True)
    rolled: Rolled
    modulator: PyTree = None

    # -------------------------------------------------------------------- what is in it

    @property
    def size(self) -> tuple[int, int]:
        """The number of steps k and of examples."""
        inputs = jax.tree.leaves(self.inputs)
        long = [x for x, m in zip(inputs, self.multi) if m]
        for x in (*self.rolled.hidden, *self.rolled.other, *long):
            return x.shape[0], x.shape[1]
        return 1, examples_in((), inputs, self.multi)

    @property
    def length(self) -> int:
        """The number of steps, k."""
        return self.size[0]

    def steps(self) -> "list[Window]":
        """The steps of the window, each as a window of its own."""
        return [self.part(t, t + 1) for t in range(self.length)]

    def part(self, start: int, stop: int) -> "Window":
        """The steps from `start` up to `stop`."""
        cut = lambda x: x[start:stop]  # noqa: E731
        leaves, treedef = jax.tree.flatten(self.inputs)
        inputs = [cut(x) if m else x for x, m in zip(leaves, self.multi, strict=True)]
        known = zip(self.evaluation.mixing, self.rolled.known, strict=True)
        depth = self.evaluation.depth
        rolled = Rolled(
            list(map(cut, self.rolled.hidden)),
            list(map(cut, self.rolled.other)),
            [cut(x) if depth[v] == 2 else x for v, x in known],
        )
        arrays = (self.params, self.consts, treedef.unflatten(inputs), self.multi)
        return Window(self.graph, *arrays, rolled)

    # ---------------------------------------------------------------- local derivatives

    @functools.cached_property
    def jacobian(self) -> tuple[Array, ...]:
        """D = ∂h_t/∂h_{t-1} along position-local paths.

        Per group, [k, batch, S (new), S (old), P].
        """
        return self.propagation.jacobian()

    def immediate(self, t: int) -> tuple[Array, Array]:
        """Of trace t: f [k, batch, components, b, p, o] and x [k, batch, b, p, c].

        f = ∂h_t/∂z along position-local paths; what a step adds to the trace is f ⊗ x.
        """
        return self._immediate[t], self.local_input(t)

    @functools.cached_property
    def _immediate(self) -> list[Array]:
        return self.moved(self._identities)

    def local_input(self, t: int) -> Array:
        """Of trace t: what its site reads, x [k, batch, b, p, c]."""
        return self.values.local_input(self.graph.traces[t].site)

    def input_of_result(self, t: int) -> Array:
        """Of trace t: x [k, batch, b, p, c] where z is the operation's result.

        It differs from `local_input` for a weight that is used element by element: x is
        then the derivative of the result by the weight, not 1.
        """
        return self.values.input_of_result(self.graph.traces[t].site)

    def at_sites(self, signals: Sequence[Array | None]) -> list[Any]:
        """Pulls signals at the states after each step back to the sites.

        `signals` are per group, [k, batch, S, P], or None for nothing; the result is
        per trace, a_j · f_j for a signal a: [k, batch, b, p, o] or None.
        """
        return self.local.at_sites(signals)

    def moved(self, jacobians: Sequence[Array | None]) -> list[Any]:
        """Multiplies f of each step with a matrix: Σ_m J_j[s, m] f_j[m].

        `jacobians` are per group, [k, batch, S, S, P], or None for nothing; the result
        is per trace, [k, batch, components, b, p, o] or None.
        """
        traces = self.graph.traces
        rows = []
        for s in range(max([g.components for g in self._groups], default=0)):
            signals = [
                j[:, :, s] if j is not None and s < g.components else None
                for j, g in zip(jacobians, self._groups, strict=True)
            ]
            rows.append(self.at_sites(signals))
        result = []
        for t, spec in enumerate(traces):
            shape = (*self.size, 0, *spec.positions.shape)
            own = [rows[s][t] for s in spec.components]
            none = jacobians[spec.group] is None
            empty = jnp.zeros(shape, self.graph.trace_dtype(t))
            result.append(None if none else jnp.stack(own, axis=2) if own else empty)
        return result

    def at_trace(self, t: int, per_group: Sequence[Array], axes: int) -> Array:
        """Takes per-group arrays [..., S, P] to a trace, [..., components, b, p, o].

        `axes` is the number of component axes, 1 for signals and 2 for Jacobians.
        """
        values = self.of_components(t, per_group, axes)
        return take(values, self.graph.traces[t].positions)

    def of_components(self, t: int, per_group: Sequence[Array], axes: int) -> Array:
        """Of per-group arrays [..., S, P], the components that a trace holds."""
        spec = self.graph.traces[t]
        values = per_group[spec.group]
        if spec.components != tuple(range(values.shape[-2])):
            chosen = jnp.asarray(spec.components, int)
            for axis in range(-1 - axes, -1):
                values = jnp.take(values, chosen, axis=axis)
        return values

    # ----------------------------------------------------------------- through a window

    def adjoints(self, boundary: Sequence[Array]) -> tuple[Array, ...]:
        """The adjoints a_0 … a_k of the states, per group [k + 1, batch, S, P].

        a_{t-1} = B_t + D_tᵀ a_t, backwards from a_k = 0. Zero for components that no
        trace holds.
        """
        result = []
        for g, (b, d) in enumerate(zip(boundary, self.jacobian)):
            sources = {(0, m): b[:, :, m] for m in self.graph.remembered(g)}
            start = {e: jnp.zeros_like(x[0]) for e, x in sources.items()}
            found = backwards(self.length, start, sources, entries(d, self._among(g)))
            shape = (self.length + 1, *b.shape[1:])
            zeros = jnp.zeros(shape, b.dtype)
            result.append(assembled(found, 1, b.shape[2])[:, :, 0] if found else zeros)
        return tuple(result)

    def propagators(self) -> tuple[Array, ...]:
        """D_k … D_{j+1} for j = 0 … k, per group [k + 1, batch, S, S, P].

        Zero between components that no trace holds.
        """
        result = []
        for g, d in enumerate(self.jacobian):
            among = self._among(g)
            held = np.isin(np.arange(len(among)), self.graph.remembered(g))
            where = reachable(among) & np.outer(held, held)
            start = entries(self._identities[g][0], where)
            found = backwards(self.length, start, {}, entries(d, among))
            shape = (self.length + 1, *d.shape[1:])
            zeros = jnp.zeros(shape, d.dtype)
            result.append(assembled(found, *among.shape) if found else zeros)
        return tuple(result)

    def contributions(self, propagators: Sequence[Array]) -> list[Any]:
        """What each step adds to the traces by the end of the window.

        D_k … D_{j+1} f_j, of `propagators`: per trace, [k, batch, components, b, p, o].
        """
        if self.length == 1:
            return self._immediate  # nothing moves it on
        return self.moved([p[1:] for p in propagators])

    def _among(self, group: int) -> np.ndarray:
        """Which components that traces hold move into which, [S (new), S (old)]."""
        coupled = self.graph.couplings[group]
        held = np.isin(np.arange(len(coupled)), self.graph.remembered(group))
        return coupled & np.outer(held, held)

    # ------------------------------------------------------------------------- internal

    @functools.cached_property
    def evaluation(self) -> Steps:
        return Steps(self.graph, self.multi, *self.size)

    @functools.cached_property
    def values(self) -> StepValues:
        arrays = (self.params, self.consts, self.inputs, self.rolled)
        return StepValues(self.graph, self.evaluation.env(*arrays), self.size)

    @functools.cached_property
    def local(self) -> LocalRegion:
        return LocalRegion(self.values)

    @functools.cached_property
    def propagation(self) -> Propagation:
        known = self.graph.diagonals is not None
        return (LocalPropagation if known else OwnPropagation)(self.values)

    def pull_back(self, gradients: Sequence[Array | None]) -> PyTree:
        """Gradients per trace [b, o, c] to gradients of the parameters."""
        graph = self.graph
        weights = lambda p: graph.weights(p, self.consts)  # noqa: E731
        values, pull = jax.vjp(weights, self.params)
        totals = [jnp.zeros_like(v) for v in values]
        for spec, gradient in zip(graph.traces, gradients, strict=True):
            if gradient is not None:
                weight = graph.sites[spec.site].form.weight(gradient)
                totals[spec.site] += weight.astype(totals[spec.site].dtype)
        (params,) = pull(tuple(totals))
        return params

    @property
    def _groups(self):
        return self.graph.positions.groups

    @property
    def _identities(self) -> list[Array]:
        """The identity at every step and position, per group [k, batch, S, S, P]."""
        result = []
        for g in self._groups:
            dtype = self.graph.new[g.leaves[0]].dtype
            one = jnp.eye(g.components, dtype=dtype)[None, None, :, :, None]
            shape = (*self.size, g.components, g.components, g.size)
            result.append(jnp.broadcast_to(one, shape))
        return result
