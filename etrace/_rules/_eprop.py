"""e-prop: eligibility propagation."""

from typing import Unpack

import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._analysis import Graph, Recurrence
from .._backward import LearningSignals
from .._options import Options, VjpMethod
from .._program import Edge
from .._window import Window
from ._emitted import Emitted
from ._feedback import Feedback, FeedbackWeights
from ._options import check_fraction, check_single_step
from ._per_parameter_rule import PerParameterRule


class EProp(PerParameterRule):
    r"""e-prop: D-RTRL whose emitted traces are filtered as a read-out filters spikes.

        ε_t = D_t ε_{t-1} + f_t ⊗ x_t         the eligibility vector
        e_t = E_t ε_{t-1} + f^e_t ⊗ x_t       the eligibility trace, at an exit
        ē_t = κ ē_{t-1} + e_t
        dL_t/dθ = ∂L_t/∂θ + λ_t · ē_t - λ_t · f^e_t ⊗ x_t

    with E and f^e the derivatives of what leaves the neuron (a spike) by its state and
    by the operation of a weight. Exits of groups that feed a later group are filtered,
    such as spikes read by leaky read-out neurons; those that outputs read directly are
    not. A leaky read-out's own weights are a group of their own and not filtered.

    In the literature ē is κ ē + e or κ ē + (1 - κ) e. Here λ is found by automatic
    differentiation of the model's own read-out, so that both are the same: the factor
    1 - κ is in the read-out where it has one.

    Exact (equal to BPTT) for neurons without recurrent connections, κ the leak of the
    read-out and symmetric feedback. Memory: D-RTRL's, and one component for each
    filtered exit.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][] (`vjp_method` is
    `"single-step"`), and

    - `kappa`: what the filter keeps in a step, in [0, 1]; exp(-dt / τ) of a read-out
        with time constant τ. 0 for no filter, 1 for a read-out that forgets nothing,
        such as a count of spikes.
    - `feedback`: the signal at exits that mixing operations read. `"symmetric"`: λ, by
        differentiation. `"random"`: fixed random weights from the error of the outputs,
        of any width. `"adaptive"`: the same, following the changes of the read-out
        weights since the algorithm was made, where a linear read-out gives the outputs.
    - `key`: what random feedback is drawn from; `jax.random.key(0)` if None.

    ??? cite "Reference"

        Bellec, Scherr, Subramoney et al., A solution to the learning dilemma for
        recurrent networks of spiking neurons, Nat. Commun. 11:3625 (2020), eqs. 1, 3,
        4 and 28.
    """

    kappa: float = eqx.field(static=True)
    feedback: FeedbackWeights

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        kappa: float = 0.0,
        feedback: Feedback = "symmetric",
        key: PRNGKeyArray | None = None,
        **options: Unpack[Options],
    ):
        check_single_step(type(self), vjp_method)
        super().__init__(model, name, vjp_method, **options)
        self.kappa = check_fraction("kappa", kappa, one=True)
        self.feedback = FeedbackWeights(feedback, key, model)

    def _recurrence(self) -> Recurrence:
        return "cut"

    def _emitted(self, graph: Graph) -> Emitted | None:
        return Emitted(graph, self.kappa, self._filters) if self.kappa else None

    def _filters(self, graph: Graph, edge: Edge, group: int) -> bool:
        later = graph.leaves_by_mixing(edge) and graph.feeds_another(edge, group)
        return later and self.kappa > 0

    def _hears(self, graph: Graph, group: int) -> bool:
        return self.feedback.hears(graph, group)

    def _learning_signals(
        self, window: Window, signals: LearningSignals
    ) -> LearningSignals:
        return self.feedback.signals(window, signals)
