"""D-RTRL: real-time recurrent learning along position-local paths."""

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._window import LearningSignals, Window
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

    def _solve_weight_gradients(
        self, data: tuple[Array, ...], window: Window, signals: LearningSignals
    ) -> PyTree:
        adjoints = window.adjoints(signals.boundary)
        gradients = []
        for t, trace in enumerate(data):
            a = window.at_trace(t, adjoints, 1)
            f, x = window.immediate(t)
            past = per_parameter.contract(a[0], trace)
            inside = jnp.sum(a[1:].astype(f.dtype) * f[:-1], axis=2)
            gradients.append(past + per_parameter.outer_sum(inside, x[:-1]))
        return window.pull_back(gradients)

    def _update_etrace_data(
        self, data: tuple[Array, ...], window: Window
    ) -> tuple[Array, ...]:
        propagators = window.propagators()
        result = []
        for t, trace in enumerate(data):
            d = window.at_trace(t, propagators, 2)
            f, x = window.immediate(t)
            moved = jnp.sum(d[1:].astype(f.dtype) * f[:, :, None], axis=3)
            result.append(per_parameter.advance(trace, d[0], moved, x))
        return tuple(result)
