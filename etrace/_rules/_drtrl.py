"""D-RTRL: real-time recurrent learning along position-local paths."""

from .._analysis import Recurrence
from ._per_parameter_rule import PerParameterRule


class DRTRL(PerParameterRule):
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

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][].

    ??? cite "Reference"

        Wang et al., Nature Communications 17:1745 (2026).
    """

    __init__ = PerParameterRule.__init__

    def _recurrence(self) -> Recurrence:
        return "cut"
