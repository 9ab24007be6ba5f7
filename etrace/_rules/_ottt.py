"""OTTT: online training through time."""

from collections.abc import Sequence
from typing import Unpack

import equinox as eqx
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._analysis import Graph
from .._backward import LearningSignals
from .._options import Options, VjpMethod
from .._window import Window
from . import _factored as factored
from ._options import check_fraction, check_single_step


class OTTT(ETraceVjpAlgorithm):
    r"""OTTT: traces of the inputs, and the derivative of the step itself.

        x̂_t = λ x̂_{t-1} + x_t
        dL_t/dθ = ∂L_t/∂θ + λ_t · f^e_t ⊗ (x̂_t - x_t)

    with f^e the derivative of what leaves a neuron (its spike) by the operation of a
    weight. The reset is meant to be detached (`jax.lax.stop_gradient`) in the model.
    Of a weight that is used element by element, x is the operation's local derivative:
    1 for a bias.

    The paper's two variants are two ways to use the gradient: OTTT_A adds the steps of
    a sequence up (`etrace.value_and_grad`), OTTT_O updates at each step
    (`etrace.learn(..., window=1)`).

    Exact (equal to BPTT) for one feed-forward layer of leaky neurons with a detached
    reset and this leak. Memory: batch × local inputs.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][] (`vjp_method` is
    `"single-step"`), and

    - `leak`: what the neurons' membrane keeps in a step, in [0, 1].

    ??? cite "Reference"

        Xiao, Meng, Zhang, He & Lin, Online training through time for spiking neural
        networks, NeurIPS 2022, eqs. 6-8.
    """

    leak: float = eqx.field(static=True)

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        leak: float,
        **options: Unpack[Options],
    ):
        check_single_step(type(self), vjp_method)
        super().__init__(model, name, vjp_method, **options)
        self.leak = check_fraction("leak", leak, one=True)

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        return factored.input_zeros(graph, batch, self.trace_dtype)

    def _update_etrace_data(
        self, data: Sequence[Array], window: Window
    ) -> tuple[Array, ...]:
        return tuple(
            factored.last(window.input_of_result(t), x, self.leak)
            for t, x in enumerate(data)
        )

    def _solve_weight_gradients(
        self, data: Sequence[Array], window: Window, signals: LearningSignals
    ) -> PyTree:
        # Σ_t g_t ⊗ (x̂_t - x_t), the filter run backwards over g.
        past: list[Array | None] = []
        at_results = window.local.exits_at_sites(signals.spatial, outputs=True)
        for t, (x, now) in enumerate(zip(data, at_results, strict=True)):
            if now is None:
                past.append(None)
                continue
            later = factored.later(now, self.leak)
            inside = factored.outer(
                later - now.astype(later.dtype), window.input_of_result(t)
            )
            past.append(inside + factored.outer(self.leak * later[0], x))
        return signals.gradients(past)
