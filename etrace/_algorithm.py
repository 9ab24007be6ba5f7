"""The algorithm: one call of k steps, differentiated by "autodiff for now, trace for
the past".

    dL_t/dθ  =  ∂L_t/∂θ |_{h_{t-1} held}   +   (∂L_t/∂h_{t-1}) ε_{t-1}
                now: ordinary autodiff         past: boundary signal × trace
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._analysis import MixingTails, Report
from ._axes import Axes
from ._backward import backwards
from ._check import check_call, check_shapes, check_values, guarded
from ._custom_vjp import differentiable
from ._data import as_arrays, untag
from ._forward import Ran, forwards
from ._model import check_model, split_model
from ._options import VjpMethod, check_options
from ._placement import placed, started
from ._rewire import rewired
from ._rule import Rule
from ._step import is_inexact
from ._trace import Trace, first_spec
from ._window import Window
from ._xla import wait


class ETraceVjpAlgorithm(Rule):
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
        graph = check_values(self, hidden, other, trace)
        state = hidden, other, trace
        return _called(guarded(self, graph), *state, as_arrays(inputs))

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

    def outputs(self, *inputs: PyTree) -> PyTree:
        """Shapes and dtypes of the outputs that `update` returns for these inputs."""
        graph, batch = self._graph(inputs)
        length = untag(inputs)[2]
        lead = (() if length is None else (length,)) + (batch,) * self.batched
        return graph.outputs.tree(lead)

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


@eqx.filter_jit
def _called(algorithm: ETraceVjpAlgorithm, *call: Any) -> tuple[Any, ...]:
    """`updated`, of such shapes, which are checked once."""
    check_shapes(algorithm, *call)
    return updated(algorithm, *call)


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
