"""RFLO: random feedback online learning."""

import dataclasses
from typing import Unpack

import equinox as eqx
from jaxtyping import PRNGKeyArray

from .._analysis import Graph, GraphOptions, Recurrence
from .._backward import LearningSignals
from .._options import Options, VjpMethod
from .._window import Window
from ._feedback import Feedback, FeedbackWeights
from ._options import check_fraction, check_single_step
from ._per_parameter_rule import PerParameterRule


class RFLO(PerParameterRule):
    r"""RFLO: traces that fade at one rate, and random feedback.

    For leaky neurons h_t = (1 - α) h_{t-1} + α φ(W x_t + U h_{t-1}), the derivative of
    the state by itself is replaced by the leak 1 - α,

        ε_t = (1 - α) ε_{t-1} + f_t ⊗ x_t
        dL_t/dθ = ∂L_t/∂θ + (B δ_t) · ε_t - λ_t · f_t ⊗ x_t

    with δ_t the error of the outputs and B fixed random weights in place of the
    read-out's. On such neurons, with symmetric feedback, it is D-RTRL; on others what
    is computed from the new state is differentiated through it, and the new state's
    derivative by the old one is the leak.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][] (`vjp_method` is
    `"single-step"`, and every number of a leaf is a neuron of its own, whatever
    `position_size`), and

    - `leak`: the fraction of the state that is retained in a step, 1 - α, in [0, 1].
    - `feedback`, `key`: as for [`etrace.EProp`][].

    **Raises:** ValueError, when the model is first seen, if several leaves of the state
    depend on each other number by number.

    ??? cite "Reference"

        Murray, Local online learning in recurrent networks with random feedback, eLife
        8:e43299 (2019), eqs. 3-5.
    """

    leak: float = eqx.field(static=True)
    feedback: FeedbackWeights

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        leak: float,
        feedback: Feedback = "random",
        key: PRNGKeyArray | None = None,
        **options: Unpack[Options],
    ):
        check_single_step(type(self), vjp_method)
        super().__init__(model, name, vjp_method, **options)
        self.leak = check_fraction("leak", leak, one=True)
        self.feedback = FeedbackWeights(feedback, key, model)

    def _recurrence(self) -> Recurrence:
        return self.leak

    def _graph_options(self) -> GraphOptions:
        # The leak is the derivative of one number by itself.
        return dataclasses.replace(super()._graph_options(), position_size=1)

    def _hears(self, graph: Graph, group: int) -> bool:
        return self.feedback.hears(graph, group)

    def _learning_signals(
        self, window: Window, signals: LearningSignals
    ) -> LearningSignals:
        return self.feedback.signals(window, signals)
