"""D-RTRL: real-time recurrent learning along position-local paths."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._backward import LearningSignals
from .._graph import Graph
from .._window import Window
from . import _per_parameter as per_parameter


class DRTRL(ETraceVjpAlgorithm):
    r"""D-RTRL: one trace per parameter, moved by the local Jacobian.

    With D_t = ∂h_t/∂h_{t-1} and f_t = ∂h_t/∂z_t along position-local paths, and x_t
    the local input of a site,

        ε_t = D_t ε_{t-1} + f_t ⊗ x_t
        dL_t/dθ = ∂L_t/∂θ + B_t · ε_{t-1}

    Over a window of k steps the same numbers follow from the adjoints
    a_{t-1} = B_t + D_tᵀ a_t, a_k = 0, with the trace touched once:

        Σ_t B_t · ε_{t-1} = a_0 · ε_0 + Σ_{0<j<k} a_j · (f_j ⊗ x_j)
        ε_k = (D_k … D_1) ε_0 + Σ_j (D_k … D_{j+1} f_j) ⊗ x_j

    Exact (equal to BPTT) for one recurrent layer whose recurrence is position-local.
    Memory: batch × components × (site elements × local inputs).

    **Arguments:** those of `etrace.ETraceVjpAlgorithm`.

    ??? cite "Reference"

        Wang et al., Nature Communications 17:1745 (2026).
    """

    def _zero_etrace_data(self, graph: Graph, batch: int) -> PyTree:
        # Nothing is contracted with, or moved on from, a zero trace.
        if not self._is_drtrl():
            return super()._zero_etrace_data(graph, batch)
        return (None,) * len(graph.traces)

    def _packed(self, data: PyTree) -> PyTree:
        return jax.tree.map(per_parameter.packed, data) if self._is_drtrl() else data

    def _unpacked(self, data: PyTree) -> PyTree:
        return jax.tree.map(per_parameter.unpacked, data) if self._is_drtrl() else data

    def _is_drtrl(self) -> bool:
        """Whether a zero trace and packed ones are known to what works on them."""
        hooks = ("_solve_weight_gradients", "_update_etrace_data")
        other = ("_get_etrace_data", "_assign_etrace_data", "_init_etrace_data")
        return self.keeps(DRTRL, *hooks, *other)

    def _solve_weight_gradients(
        self, data: Sequence[Array | None], window: Window, signals: LearningSignals
    ) -> PyTree:
        adjoints = window.adjoints(signals.boundary)
        past = [
            per_parameter.contract(window.at_trace(t, adjoints, 1)[0], trace)
            for t, trace in enumerate(data)
        ]
        if window.length == 1:
            return signals.gradients(past)
        return signals.gradients(past, [a[1:] for a in adjoints])

    def _update_etrace_data(
        self, data: Sequence[Array | None], window: Window
    ) -> tuple[Array, ...]:
        propagators = window.propagators()
        moved = window.moved([p[1:] for p in propagators])
        whole = [p[0] for p in propagators]
        return tuple(
            per_parameter.advance(
                trace, window.at_trace(t, whole, 2), moved[t], window.local_input(t)
            )
            for t, trace in enumerate(data)
        )
