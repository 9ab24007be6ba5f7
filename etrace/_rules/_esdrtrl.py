"""ES-D-RTRL: D-RTRL with traces in two factors."""

from collections.abc import Sequence
from typing import Unpack

import equinox as eqx

from .._analysis import Graph
from .._options import Options, VjpMethod
from ._factored_rule import FactoredRule
from ._options import check_decays

#: Rows, one a step and example, that products are as fast with as with more.
_ROWS = 512


class ESDRTRL(FactoredRule):
    r"""ES-D-RTRL, also called PP-Prop: the trace as a product of two small ones.

    One trace of what a site reads and one of how it acts on the state, with
    exponential smoothing,

        ε_x,t = α ε_x,t-1 + x_t
        ε_f,t = α D_t ε_f,t-1 + (1 - α) f_t
        ε_t ≈ ε_f,t / (1 - α^t) ⊗ ε_x,t

    and at an exit ε_f^e,t = α E_t ε_f,t-1 + (1 - α) f^e_t in place of ε_f,t. Then

        dL_t/dθ = ∂L_t/∂θ + λ_t · (ε^e_t - f^e_t ⊗ x_t)

    t counts the steps that the trace has seen; 1 - α^t is the sum of the weights in
    ε_f. With α = 0 the instantaneous gradient is left. Weights that are used element by
    element (biases, gains, decays) keep D-RTRL's trace, which is no larger.

    Memory: batch × (components × site elements + local inputs), linear in neurons. A
    window costs two products a site. The drivers work on so many steps of a window at
    once that steps × batch are at most 512; more would not stay in the cache.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][], and

    - `decay`: α in [0, 1), or a pair of α for x and α for f; the correction is by that
        of f.
    - `rank`: in place of `decay`, the number of past steps to approximate:
        α = (rank - 1) / (rank + 1).

    ??? cite "Reference"

        Wang et al., Nature Communications 17:1745 (2026).
    """

    decays: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        decay: float | tuple[float, float] = 0.99,
        rank: int | None = None,
        **options: Unpack[Options],
    ):
        super().__init__(model, name, vjp_method, **options)
        self.decays = check_decays(decay, rank)

    def _factored(self, graph: Graph, batch: int) -> Sequence[bool]:
        return [not graph.sites[spec.site].direct for spec in graph.traces]

    def _block(self, length: int, batch: int) -> int:
        if self.vjp_method == "multi-step":
            return length
        # Small traces cost little to move on, less than the caches miss otherwise.
        most = max(_ROWS // batch, 1)
        return max(m for m in range(1, most + 1) if length % m == 0)


#: The name the method had first.
PPProp = ESDRTRL
