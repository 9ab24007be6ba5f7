"""Rules with one trace per parameter, moved position by position.

    past = Σ_t Σ_exits λ_t · (ē_t - f^e_t ⊗ x_t)

with λ the signal at an exit and ē the trace there, filtered or not. Where it is not,
this is Σ_t B_t · ε_{t-1}, the boundary signal times the trace of the state.
"""

import abc
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._analysis import Graph, GraphOptions, Recurrence
from .._backward import LearningSignals
from .._program import take
from .._window import Window
from . import _per_parameter as per_parameter
from ._emitted import Emitted

_HOOKS = ("_solve_weight_gradients", "_update_etrace_data")
_STORAGE = ("_get_etrace_data", "_assign_etrace_data", "_init_etrace_data")


class PerParameterRule(ETraceVjpAlgorithm):
    """Base of the rules that carry ε_t = D_t ε_{t-1} + f_t ⊗ x_t for some D.

    A rule says which D by `_recurrence`, and whether traces at exits are filtered by
    `_emitted`.
    """

    # Not one made of the fields, as for any dataclass.
    __init__ = ETraceVjpAlgorithm.__init__

    @abc.abstractmethod
    def _recurrence(self) -> Recurrence: ...

    def _emitted(self, graph: Graph) -> Emitted | None:
        """The filtered exits, None for none."""
        return None

    def _graph_options(self) -> GraphOptions:
        options = super()._graph_options()
        return dataclasses.replace(options, recurrence=self._recurrence())

    # ------------------------------------------------------------------------ the trace

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        zeros = super()._init_etrace_data(graph, batch)
        zeros = per_parameter.held_once(graph, zeros)
        emitted = self._emitted(graph)
        if emitted is None:
            return zeros
        axis = 0 if batch is None else 1
        width = [(0, 0)] * axis
        more = [[*width, (0, emitted.count(t))] for t in range(len(zeros))]
        return tuple(
            jax.tree.map(lambda e, w=w: jnp.pad(e, w + [(0, 0)] * (e.ndim - len(w))), e)
            for e, w in zip(zeros, more, strict=True)
        )

    def _zero_etrace_data(self, graph: Graph, batch: int) -> PyTree:
        # Nothing is contracted with, or moved on from, a zero trace.
        if not self._is_plain():
            return super()._zero_etrace_data(graph, batch)
        return per_parameter.held_once(graph, (None,) * len(graph.traces))

    def _packed(self, data: PyTree) -> PyTree:
        return jax.tree.map(per_parameter.packed, data) if self._is_plain() else data

    def _unpacked(self, data: PyTree) -> PyTree:
        return jax.tree.map(per_parameter.unpacked, data) if self._is_plain() else data

    def _is_plain(self) -> bool:
        """Whether a zero trace and packed ones are known to what works on them."""
        return self.keeps(PerParameterRule, *_HOOKS, *_STORAGE)

    # ------------------------------------------------------------------ what it decides

    def _solve_weight_gradients(
        self, data: Sequence[Array | None], window: Window, signals: LearningSignals
    ) -> PyTree:
        emitted = self._emitted(window.graph)
        first: Sequence[Sequence[Array]] = ()
        if emitted is not None:
            filtered, first = emitted.filtered(window, signals.spatial)
            signals = signals.replaced(filtered)
        adjoints = window.adjoints(signals.boundary)
        past = []
        for t, trace in enumerate(data):
            if per_parameter.is_held(trace):
                past.append(None)
                continue
            own = window.at_trace(t, [a[0] for a in adjoints], 1)
            own = _extended(own, t, first, window.graph)
            past.append(per_parameter.contract(own, trace))
        inside = [a[1:] for a in adjoints] if window.length > 1 else ()
        return signals.gradients(past, inside)

    def _update_etrace_data(
        self, data: Sequence[Array | None], window: Window
    ) -> tuple[Array, ...]:
        propagators = window.propagators()
        moved = window.contributions(propagators)
        whole = [p[0] for p in propagators]
        emitted = self._emitted(window.graph)
        rows = [] if emitted is None else emitted.rows(window)

        if emitted is not None:
            pairs = enumerate(moved)
            moved = [_f_with_emitted(f, t, emitted, rows, window) for t, f in pairs]
        result = []
        for t, trace in enumerate(data):
            if not per_parameter.is_held(trace):
                d = window.at_trace(t, whole, 2)
                if emitted is not None:
                    d = _d_with_emitted(d, t, emitted, rows, window)
                f, x = per_parameter.added(t, data, moved, window)
                trace = per_parameter.advance(trace, d, f, x)
            result.append(trace)
        return tuple(result)


def _extended(
    signal: Array, t: int, first: Sequence[Sequence[Array]], graph: Graph
) -> Array:
    """A signal at a trace, with that at its filtered components."""
    spec = graph.traces[t]
    if not first or not first[spec.group]:
        return signal
    more = [take(x, spec.positions)[:, None] for x in first[spec.group]]
    return jnp.concatenate([signal, *more], axis=1)


def _d_with_emitted(
    d: Array, t: int, emitted: Emitted, rows: Sequence, window: Window
) -> Array:
    """d of a trace, [batch, components, components, b, p, o], with its filtered
    components."""
    count = emitted.count(t)
    if not count:
        return d
    below = jnp.stack(
        [window.at_trace(t, psi, 1) for psi, _ in rows[:count]], axis=1
    )  # [batch, count, components, b, p, o]
    kept = emitted.kappa**window.length * jnp.eye(count, dtype=d.dtype)
    kept = jnp.broadcast_to(
        kept[None, :, :, None, None, None], (len(d), count, count, *d.shape[3:])
    )
    zero = jnp.zeros((len(d), d.shape[1], count, *d.shape[3:]), d.dtype)
    upper = jnp.concatenate([d, zero], axis=2)
    lower = jnp.concatenate([below.astype(d.dtype), kept], axis=2)
    return jnp.concatenate([upper, lower], axis=1)


def _f_with_emitted(
    f: Array, t: int, emitted: Emitted, rows: Sequence, window: Window
) -> Array:
    """f of a trace, [k, batch, components, b, p, o], with its filtered components."""
    spec, count = window.graph.traces[t], emitted.count(t)
    if not count:
        return f
    zeros = jnp.zeros((*window.size, *spec.positions.shape), f.dtype)
    more = [zeros if at[t] is None else at[t] for _, at in rows[:count]]
    return jnp.concatenate([f, jnp.stack(more, axis=2)], axis=2)
