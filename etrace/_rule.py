"""What a learning rule is: its options, what it decides, what it asks of a model."""

import abc
import copy
import dataclasses
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._analysis import (
    Graph,
    GraphOptions,
    MixingTails,
    graph_of,
    unheard,
    warn_of_unheard,
)
from ._axes import batch_size
from ._backward import LearningSignals
from ._by_name import by_name, by_value
from ._data import as_arrays, untag
from ._mesh import check_placement
from ._model import BatchAxis, check_model, is_array, nameless
from ._options import VjpMethod
from ._program import Edge
from ._trace import Trace
from ._window import Window


class Rule(eqx.Module):
    """The part of an algorithm that others work with: see `ETraceVjpAlgorithm`.

    A rule overrides up to four hooks: `_solve_weight_gradients` and
    `_update_etrace_data`, and, if it stores anything but one array per trace,
    `_get_etrace_data` and `_assign_etrace_data`.
    """

    model: eqx.Module
    # The defaults are those of `__init__`. Type checkers make another one from them for
    # rules that inherit it.
    name: str = eqx.field(static=True, kw_only=True, default="")
    vjp_method: VjpMethod = eqx.field(static=True, kw_only=True, default="single-step")
    batched: bool = eqx.field(static=True, kw_only=True, default=False)
    axis_name: str | None = eqx.field(static=True, kw_only=True, default=None)
    trace_dtype: Any = eqx.field(static=True, kw_only=True, default=None)
    hidden_filter: Any = eqx.field(
        static=True, kw_only=True, default=eqx.is_inexact_array
    )
    mixing_tails: MixingTails = eqx.field(static=True, kw_only=True, default="now")
    position_size: int = eqx.field(static=True, kw_only=True, default=16)

    @abc.abstractmethod
    def update(
        self, hidden: PyTree, other: PyTree, trace: Trace, *inputs: PyTree
    ) -> tuple[PyTree, PyTree, PyTree, Trace]: ...

    # -------------------------------------------------------------- what a rule decides

    @abc.abstractmethod
    def _solve_weight_gradients(
        self, data: PyTree, window: Window, signals: LearningSignals
    ) -> PyTree:
        """The gradient of the parameters: `signals.gradients(...)` of the past.

        `data` is the trace *before* the window.
        """

    def _learning_signals(
        self, window: Window, signals: LearningSignals
    ) -> LearningSignals:
        """What the rule learns from: by default the signals of differentiation."""
        return signals

    @abc.abstractmethod
    def _update_etrace_data(self, data: PyTree, window: Window) -> PyTree:
        """The trace after the window."""

    def _get_etrace_data(self, trace: Trace) -> PyTree:
        """What the rule works on, from what is stored: arrays with a batch axis."""
        return jax.tree.map(lambda e: e if self.batched else e[None], trace.data)

    def _assign_etrace_data(self, trace: Trace, data: PyTree) -> Trace:
        """What is stored, from what the rule works on; same shapes as in `trace`."""
        stored, treedef = jax.tree.flatten(trace.data)
        leaves = [
            (new if self.batched else new[0]).astype(old.dtype)
            for old, new in zip(stored, jax.tree.leaves(data), strict=True)
        ]
        return dataclasses.replace(trace, data=treedef.unflatten(leaves))

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        """What is stored before the first step: zeros, one array per trace."""
        traces = range(len(graph.traces))
        return tuple(self._zero_trace(graph, t, batch) for t in traces)

    def _zero_trace(self, graph: Graph, t: int, batch: int | None) -> Array:
        """Trace t, one number per parameter, before the first step."""
        lead = () if batch is None else (batch,)
        dtype = self.trace_dtype or graph.trace_dtype(t)
        return jnp.zeros(lead + graph.trace_shape(t), dtype)

    def _zero_etrace_data(self, graph: Graph, batch: int) -> PyTree:
        """What the rule works on before the first step, if no trace was made."""
        stored = self._init_etrace_data(graph, batch if self.batched else None)
        return self._get_etrace_data(Trace(stored, graph))

    def _packed(self, data: PyTree) -> PyTree:
        """What is stored, in a form in which XLA carries it through a loop well."""
        return data

    def _unpacked(self, data: PyTree) -> PyTree:
        """The inverse of `_packed`."""
        return data

    def _block(self, length: int, batch: int) -> int:
        """Of the steps of a window, how many a driver works on at once.

        It divides `length`, and of itself it is all. Only for rules whose gradients
        do not depend on the window.
        """
        return length

    def _takes_modulator(self) -> bool:
        """Whether calls are given a modulator, see `etrace.ThreeFactor`."""
        return False

    def _graph_options(self) -> GraphOptions:
        """What the rule asks of the analysis of the model."""
        return GraphOptions(
            self.mixing_tails,
            self.vjp_method == "multi-step",
            position_size=self.position_size,
        )

    def _check_graph(self, graph: Graph) -> None:
        """Raises if the rule has no gradient for such a step."""

    def _filters(self, graph: Graph, edge: Edge, group: int) -> bool:
        """Whether the rule filters what leaves a group at an edge, as the group that
        reads it there would."""
        return False

    def _hears(self, graph: Graph, group: int) -> bool:
        """Whether the rule has a signal for the past of a group though no output of
        the same step reads it."""
        return False

    def keeps(self, base: type, *names: str) -> bool:
        """Whether these methods are still those of `base`, not overridden."""
        return all(getattr(type(self), n) is getattr(base, n) for n in names)

    # ----------------------------------------------------------------- what it works on

    def _graph(self, inputs: tuple[PyTree, ...]) -> tuple[Graph, int]:
        """The graph of one step with such inputs, and the batch size (1 if none)."""
        check_placement(model=self.model, inputs=inputs)
        plain, multi, _ = untag(as_arrays(inputs))
        leaves, treedef = jax.tree.flatten(plain)
        drop = [int(m) + int(self.batched) for m in jax.tree.leaves(multi)]
        batch = batch_size(leaves, drop) if self.batched else 1
        pairs = zip(leaves, drop)
        one = [jax.ShapeDtypeStruct(x.shape[d:], x.dtype) for x, d in pairs]
        step = (self.model, self.hidden_filter, treedef.unflatten(one))
        axis = BatchAxis(self.axis_name, batch) if self.axis_name else None
        graph = graph_of(*step, self._graph_options(), axis)
        if self.batched and graph.named_axes:
            raise ValueError(nameless(", ".join(graph.named_axes)))
        self._check_graph(graph)
        warn_of_unheard(graph, self._unheard(graph), self.name)
        return graph, batch

    def _unheard(self, graph: Graph) -> tuple[int, ...]:
        """The groups with traces that no signal reaches."""
        return tuple(g for g in unheard(graph) if not self._hears(graph, g))

    def trace_spec(self, graph: Graph, batch: int) -> PyTree:
        """Shapes and dtypes of what this algorithm stores for a graph."""
        size = batch if self.batched else None
        return jax.eval_shape(lambda: self._start_data(graph, size))

    def _start_data(self, graph: Graph, batch: int | None) -> PyTree:
        """What the rule stores before the first step: nothing of a model without hidden
        state."""
        return self._init_etrace_data(graph, batch) if graph.old else ()

    def _data(self, trace: Trace, batch: int) -> PyTree:
        """What the rule works on, also if no trace was made yet."""
        if trace.data is None:
            return self._zero_etrace_data(trace.graph, batch)
        return self._get_etrace_data(trace)

    def with_model(self, model: eqx.Module) -> Self:
        """The same algorithm with another model of the same structure.

        A state goes on with it if the parameters alone are others. If constants are,
        such as a mask, see `rewired`.
        """
        check_model(model)
        return eqx.tree_at(lambda a: a.model, self, model)

    def __getstate__(self) -> dict[str, Any]:
        return by_name(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(by_value(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Copies of functions would be others to `jax.jit`.
        copied = lambda x: copy.deepcopy(x, memo) if is_array(x) else x  # noqa: E731
        return jax.tree.map(copied, self)
