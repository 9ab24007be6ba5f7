"""OSTL: online spatio-temporal learning."""

from typing import Unpack

import equinox as eqx

from .._analysis import Recurrence
from .._options import Options, VjpMethod
from ._per_parameter_rule import PerParameterRule


class OSTL(PerParameterRule):
    r"""OSTL: one trace per parameter, moved by each neuron's own derivative.

    As [`etrace.DRTRL`][], but D_t = ∂h_t/∂h_{t-1} keeps the recurrence's own diagonal:
    what a neuron's state does to itself through its recurrent weights,

        ε_t = D_t ε_{t-1} + f_t ⊗ x_t,   D_t = diag(∂h_t/∂h_{t-1})
        dL_t/dθ = ∂L_t/∂θ + λ_t · (ε_t - f_t ⊗ x_t)

    with λ the spatial signal at every exit of a layer and ε the trace there. The paper
    calls it "with H". Without (`recurrent=False`) it is D-RTRL.

    Exact (equal to BPTT) for one recurrent layer whose recurrence is position-local;
    with H, equal to [`etrace.SnAp`][] with n = 1 on one layer. Memory: as D-RTRL.

    The diagonal costs nothing where each recurrence is one product of the state with a
    weight. Otherwise (a gate before the product, a norm) a step costs as many backward
    passes as the layer has neurons.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][], and

    - `recurrent`: whether the recurrence's own diagonal is kept.

    ??? cite "Reference"

        Bohnstingl, Woźniak, Pantazi & Eleftheriou, Online spatio-temporal learning in
        deep neural networks, IEEE Trans. Neural Netw. Learn. Syst. 34 (2022). Their
        recurrent influence is a full matrix within a layer; published implementations
        and this one keep its diagonal, which is what one trace per parameter can hold.
    """

    recurrent: bool = eqx.field(static=True)

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        recurrent: bool = True,
        **options: Unpack[Options],
    ):
        super().__init__(model, name, vjp_method, **options)
        self.recurrent = recurrent

    def _recurrence(self) -> Recurrence:
        return "diagonal" if self.recurrent else "cut"
