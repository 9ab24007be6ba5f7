"""Rules that change what another rule learns from."""

from collections.abc import Callable
from typing import Any, Unpack

import equinox as eqx
from jaxtyping import PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._analysis import Graph, GraphOptions
from .._backward import LearningSignals
from .._options import Options, VjpMethod
from .._program import Edge
from .._trace import Trace
from .._window import Window

Rule = Callable[..., ETraceVjpAlgorithm]


class WrappingRule(ETraceVjpAlgorithm):
    """Base of the rules that carry another rule's traces.

    - `inner`: that rule, without its model.
    """

    inner: eqx.AbstractVar[ETraceVjpAlgorithm]

    # Not one made of the fields, as for any dataclass.
    __init__ = ETraceVjpAlgorithm.__init__

    def _graph_options(self) -> GraphOptions:
        return self.inner._graph_options()

    def _filters(self, graph: Graph, edge: Edge, group: int) -> bool:
        return self.inner._filters(graph, edge, group)

    def _hears(self, graph: Graph, group: int) -> bool:
        return True  # the signal of the wrapper goes to the state itself

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        return self.inner._init_etrace_data(graph, batch)

    def _zero_etrace_data(self, graph: Graph, batch: int) -> PyTree:
        return self.inner._zero_etrace_data(graph, batch)

    def _packed(self, data: PyTree) -> PyTree:
        return self.inner._packed(data)

    def _unpacked(self, data: PyTree) -> PyTree:
        return self.inner._unpacked(data)

    def _get_etrace_data(self, trace: Trace) -> PyTree:
        return self.inner._get_etrace_data(trace)

    def _assign_etrace_data(self, trace: Trace, data: PyTree) -> Trace:
        return self.inner._assign_etrace_data(trace, data)

    def _update_etrace_data(self, data: PyTree, window: Window) -> PyTree:
        return self.inner._update_etrace_data(data, window)

    def _solve_weight_gradients(
        self, data: PyTree, window: Window, signals: LearningSignals
    ) -> PyTree:
        return self.inner._solve_weight_gradients(data, window, signals)


def make_inner(
    rule: Rule,
    model: eqx.Module,
    vjp_method: VjpMethod,
    **options: Unpack[Options],
) -> Any:
    """The wrapped rule, its model taken out: it is the wrapper's."""
    if not callable(rule) or isinstance(rule, eqx.Module):
        raise TypeError(
            f"rule is {rule!r}; expected a learning rule's class, such as "
            "etrace.DRTRL, or functools.partial(etrace.EProp, kappa=0.9) to give it "
            "options."
        )
    inner = rule(model, None, vjp_method, **options)
    return eqx.tree_at(lambda a: a.model, inner, None)
