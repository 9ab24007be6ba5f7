"""The algorithm: one call of k steps, differentiated by "autodiff for now, trace for
the past".

    dL_t/dθ  =  ∂L_t/∂θ |_{h_{t-1} held}   +   (∂L_t/∂h_{t-1}) ε_{t-1}
                now: ordinary autodiff         past: boundary signal × trace
"""

import abc
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._axes import Axes, batch_size
from ._backward import LearningSignals, backwards
from ._by_name import by_name, by_value
from ._check import check_call, guarded
from ._custom_vjp import differentiable
from ._data import as_arrays, untag
from ._forward import Ran, forwards
from ._graph import (
    Edge,
    Graph,
    GraphOptions,
    MixingTails,
    Report,
    graph_of,
    is_inexact,
    unheard,
    warn_of_unheard,
)
from ._model import BatchAxis, check_model, is_array, nameless, split_model
from ._options import VjpMethod, check_options
from ._placement import check_placement, placed, started
from ._rewire import rewired
from ._trace import Trace, first_spec
from ._window import Window
from ._xla import wait


class ETraceVjpAlgorithm(eqx.Module):
    """Online learning by eligibility traces: the base class of all rules.

    An algorithm wraps a model and gives it a pure `update` whose gradient, by
    `jax.grad`, `jax.vjp` or `jax.jacrev`, needs no past inputs: what happened before
    the call is summarised by the trace.

    **Arguments:**

    - `model`: an `equinox.Module` with `init_state() -> state` and
        `__call__(state, *inputs) -> (outputs, state)`, written for one example.
    - `name`: shown in reports; the class name if None.
    - `vjp_method`: how a call of k steps is differentiated. `"single-step"`: the sum of
        k gradients of one step each, never through the recurrence. `"multi-step"`:
        reverse mode through the k steps, and the trace for what came before them.
    - `batched`: whether inputs, outputs and states carry a leading batch axis.
    - `axis_name`: with `batched=True`, the name by which the model knows the axis of
        the batch, as that of `jax.vmap`. Statistics over a batch
        (`equinox.nn.BatchNorm`) are mixing operations: weights before them keep their
        instantaneous gradient, of all examples.
    - `trace_dtype`: the dtype traces are stored in; as computed if None.
    - `hidden_filter`: a filter specification (see `equinox.partition`) of the state:
        which leaves credit is assigned through. The others are carried along.
    - `mixing_tails`: weights from which a mixing operation (a norm, a softmax) lies on
        the way to the state: `"now"` gives them their instantaneous gradient and says
        so, `"local"` traces the position-local part of the derivative.
    - `position_size`: how many numbers of one leaf of the state may be one position
        (compartments of a neuron, units of a head, steps of a delay line). What would
        need more is cut where they meet, and the report says so. 1: every number is a
        position of its own.

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

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        batched: bool = False,
        axis_name: str | None = None,
        trace_dtype: Any = None,
        hidden_filter: Any = eqx.is_inexact_array,
        mixing_tails: MixingTails = "now",
        position_size: int = 16,
    ):
        check_model(model)
        check_options(
            vjp_method, mixing_tails, trace_dtype, batched, position_size, axis_name
        )
        self.model = model
        self.name = type(self).__name__ if name is None else name
        self.vjp_method = vjp_method
        self.batched = batched
        self.axis_name = axis_name
        self.trace_dtype = None if trace_dtype is None else jnp.dtype(trace_dtype)
        self.hidden_filter = hidden_filter
        self.mixing_tails = mixing_tails
        self.position_size = position_size

    # --------------------------------------------------------------------- for the user

    def init(self, *inputs: PyTree) -> tuple[PyTree, PyTree, Trace]:
        """The state before the first step.

        **Arguments:**

        - `*inputs`: example inputs, tagged or not; only their shapes matter.

        **Returns:** `(hidden, other, trace)`: the model's initial state, credited and
        merely carried, and a zero trace. With `batched=True` every leaf has a leading
        batch axis; PRNG keys in the state are split, one per example.

        If the model or the inputs lie on several devices, so does the state: each array
        is made where one step would leave it, a trace beside its weight and its
        examples.
        """
        return started(self, inputs)

    def update(
        self, hidden: PyTree, other: PyTree, trace: Trace, *inputs: PyTree
    ) -> tuple[PyTree, PyTree, PyTree, Trace]:
        """One call of one step, or of k steps if any input is `MultiStepData`.

        **Arguments:**

        - `hidden`, `other`, `trace`: the state, from `init` or the last call.
        - `*inputs`: the model's inputs, see `etrace.SingleStepData` and
            `etrace.MultiStepData`.

        **Returns:** `(outputs, hidden, other, trace)`. With any `MultiStepData` the
        outputs have a leading axis k.

        Differentiable in the model's parameters and in the inputs. The cotangent of
        `hidden` is zero: the past is the trace's business.
        """
        inputs = as_arrays(inputs)
        check_call(self, hidden, other, trace, inputs)
        return updated(guarded(self, trace.graph), hidden, other, trace, inputs)

    def check(
        self, hidden: PyTree, other: PyTree, trace: Trace, *inputs: PyTree
    ) -> None:
        """Raises what `update` would raise; computes nothing."""
        check_call(self, hidden, other, trace, as_arrays(inputs))

    def graph(self, *inputs: PyTree) -> Report:
        """What is traced, what is not and why, and what it costs; print it.

        **Arguments:**

        - `*inputs`: example inputs, as for `init`.
        """
        graph, batch = self._graph(inputs)
        size = batch if self.batched else None
        spec = Trace(self.trace_spec(graph, batch), graph, first_spec(graph, size))
        trace, silent = placed(self, inputs, spec), self._unheard(graph)
        parts = (trace.data, trace.first, self.batched)
        return Report(graph, self.name, batch, *parts, self._filters, silent)

    def trace_spec(self, graph: Graph, batch: int) -> PyTree:
        """Shapes and dtypes of what this algorithm stores for a graph."""
        size = batch if self.batched else None
        return jax.eval_shape(lambda: self._start_data(graph, size))

    def outputs(self, *inputs: PyTree) -> PyTree:
        """Shapes and dtypes of the outputs that `update` returns for these inputs."""
        graph, batch = self._graph(inputs)
        length = untag(inputs)[2]
        lead = (() if length is None else (length,)) + (batch,) * self.batched
        return graph.outputs.tree(lead)

    def with_model(self, model: eqx.Module) -> "ETraceVjpAlgorithm":
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

    def __deepcopy__(self, memo: dict[int, Any]) -> "ETraceVjpAlgorithm":
        # Copies of functions would be others to `jax.jit`.
        copied = lambda x: copy.deepcopy(x, memo) if is_array(x) else x  # noqa: E731
        return jax.tree.map(copied, self)

    def rewired(
        self, state: tuple[PyTree, PyTree, Trace], model: eqx.Module
    ) -> tuple["ETraceVjpAlgorithm", tuple[PyTree, PyTree, Trace]]:
        """The algorithm and its state for the same model with other constants, such as
        masks on its weights.

        Connections that are kept go on with their traces, those that have grown begin
        with none. A connection that was pruned gets no gradient any more, nor for what
        it did before. Where a constant scales a weight, its trace is scaled back.

        **Arguments:**

        - `state`: `(hidden, other, trace)` of this algorithm.
        - `model`: the new model; its parameters may have changed, too.

        **Returns:** `(algorithm, state)` to go on with.

        **Raises:** ValueError if the rule keeps no trace of each parameter that is
        rewired, or the model changes in more than that.
        """
        hidden, other, trace = state
        return self.with_model(model), (hidden, other, rewired(self, trace, model))

    # ----------------------------------------------------------------- the custom VJP

    def _true_update_fun(
        self,
        params: PyTree,
        inputs: tuple[PyTree, ...],
        hidden: PyTree,
        other: PyTree,
        trace: Trace,
    ) -> tuple[PyTree, PyTree, PyTree, Trace]:
        """The update as a `jax.custom_vjp` function of plain pytrees.

        `params` is the model's inexact-array half; whatever else the algorithm holds
        (constants, a rule's own arrays) is not differentiated.
        """
        return differentiable(self)(params, inputs, hidden, other, trace)

    def _update(
        self,
        params: PyTree,
        inputs: tuple[PyTree, ...],
        hidden: PyTree,
        other: PyTree,
        trace: Trace,
    ) -> tuple[PyTree, PyTree, PyTree, Trace]:
        """The update itself: (outputs, hidden, other, trace)."""
        return self._update_fwd(params, inputs, hidden, other, trace)[0]

    def _update_fwd(
        self,
        params: PyTree,
        inputs: tuple[PyTree, ...],
        hidden: PyTree,
        other: PyTree,
        trace: Trace,
    ) -> tuple[tuple[PyTree, PyTree, PyTree, Trace], PyTree]:
        """((outputs, hidden, other, trace), residuals).

        The residuals are the window and the incoming trace.
        """
        outputs, last, ran = self._run(params, inputs, (hidden, other), trace)
        new_trace = self._advanced(trace, ran.window)
        return (outputs, *last, new_trace), (ran, trace, inputs)

    def _update_bwd(
        self, residuals: PyTree, cotangents: tuple[PyTree, ...]
    ) -> tuple[PyTree | None, ...]:
        """Cotangents of (params, inputs, hidden, other, trace); None is zero."""
        ran, trace, inputs = residuals
        outputs, hidden, other, _ = cotangents
        axes = Axes(self.batched, untag(inputs)[2])
        outputs = axes.add_to_outputs(outputs)
        last = axes.add_to_state((hidden, other))
        params, at_inputs = self._gradients(trace, ran, (outputs, last))
        leaves, treedef = jax.tree.flatten(inputs)
        multi = ran.window.multi
        # Behind the model's inputs there may be signals, which are not differentiated.
        flows = [n < len(multi) and is_inexact(x) for n, x in enumerate(leaves)]
        multi = [m for m, f in zip(multi, flows) if f]
        found = iter(axes.drop_from_inputs(at_inputs, multi))
        at_inputs = treedef.unflatten([next(found) if f else None for f in flows])
        return params, at_inputs, None, None, None

    def _loss_and_gradients(
        self,
        params: PyTree,
        inputs: tuple[PyTree, ...],
        state: tuple[PyTree, PyTree, Trace],
        loss: Callable[[PyTree], tuple[Array, Any]],
    ) -> tuple[Array, Any, PyTree, tuple[PyTree, PyTree, Trace]]:
        """(value, aux, gradients of the parameters, new state) of one call.

        What `jax.grad` through `update` gives, for a loss of the outputs alone. But the
        trace is read before it is advanced, so that XLA can write over it.
        """
        hidden, other, trace = state
        outputs, last, ran = self._run(params, inputs, (hidden, other), trace)
        value, pull, aux = jax.vjp(loss, outputs, has_aux=True)
        (cotangents,) = pull(jnp.ones_like(value))
        cotangents = Axes(self.batched, untag(inputs)[2]).add_to_outputs(cotangents)
        gradients, _ = self._gradients(trace, ran, (cotangents, None))
        new_trace = self._advanced(wait(trace, gradients), ran.window)
        return value, aux, gradients, (*last, new_trace)

    def _run(
        self, params: PyTree, inputs: tuple, state: tuple[PyTree, PyTree], trace: Trace
    ) -> tuple[PyTree, tuple[PyTree, PyTree], Ran]:
        """(outputs, (hidden, other) after the last step, the window)."""
        plain, multi, length = untag(inputs)
        axes = Axes(self.batched, length)
        hidden, other = state
        outputs, last, ran = forwards(
            trace.graph,
            params,
            split_model(self.model)[1],
            axes.add_to_state((hidden, trace.carried(other))),
            axes.add_to_inputs(plain, multi),
            tuple(jax.tree.leaves(multi)),
            length or 1,
            differentiable=self.vjp_method == "multi-step",
        )
        hidden, carried = axes.drop_from_state(last)
        return axes.drop_from_outputs(outputs), (hidden, trace.other(carried)), ran

    def _advanced(self, trace: Trace, window: Window) -> Trace:
        """The trace after the window."""
        graph, batch = window.graph, window.size[1]
        if not graph.old:
            return dataclasses.replace(trace, data=())
        data = self._update_etrace_data(self._data(trace, batch), window)
        if trace.data is None:
            spec = self.trace_spec(graph, batch)
            trace = dataclasses.replace(trace, data=spec)
        new = self._assign_etrace_data(trace, data)
        first = None if trace.first is None else jnp.zeros_like(trace.first)
        return dataclasses.replace(new, first=first)

    def _gradients(
        self, trace: Trace, ran: Ran, cotangents: tuple[PyTree, PyTree | None]
    ) -> tuple[PyTree, list[Array]]:
        """Those of the parameters and of the inexact inputs, for cotangents of
        (outputs, last state)."""
        window, signals, inputs = backwards(ran, cotangents)
        if not window.graph.old:  # nothing is remembered
            return signals.gradients(), inputs
        data = self._data(trace, ran.window.size[1])
        signals = self._learning_signals(window, signals)
        return self._solve_weight_gradients(data, window, signals), inputs

    def _start_data(self, graph: Graph, batch: int | None) -> PyTree:
        """What the rule stores before the first step: nothing of a model without hidden
        state."""
        return self._init_etrace_data(graph, batch) if graph.old else ()

    def _data(self, trace: Trace, batch: int) -> PyTree:
        """What the rule works on, also if no trace was made yet."""
        if trace.data is None:
            return self._zero_etrace_data(trace.graph, batch)
        return self._get_etrace_data(trace)

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

    # ------------------------------------------------------------------------- internal

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


@eqx.filter_jit
def updated(
    algorithm: ETraceVjpAlgorithm,
    hidden: PyTree,
    other: PyTree,
    trace: Trace,
    inputs: tuple[PyTree, ...],
) -> tuple[PyTree, PyTree, PyTree, Trace]:
    """`update` after its checks."""
    params, _, _ = split_model(algorithm.model)
    return algorithm._true_update_fun(params, inputs, hidden, other, trace)
