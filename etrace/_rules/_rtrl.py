"""RTRL: real-time recurrent learning, the exact online gradient."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._analysis import Graph, GraphOptions
from .._backward import LearningSignals
from .._trace import Trace
from .._window import Window
from ._per_parameter import wider
from ._whole_step import (
    At,
    WholeStep,
    check_apart,
    state_size,
    stored_dtype,
    working,
)


class RTRL(ETraceVjpAlgorithm):
    r"""RTRL: the whole influence of every parameter on every number of the state.

    With h_t = F(θ, h_{t-1}), J_t = ∂h_t/∂h_{t-1} and I_t = ∂h_t/∂θ by all paths,

        M_t = J_t M_{t-1} + I_t
        dL_t/dθ = ∂L_t/∂θ + (∂L_t/∂h_{t-1}) M_{t-1}

    Equal to backpropagation through time, for every model, loss and split into windows.
    Over a window of k steps M is touched once. With a_{t-1} = ∂L_t/∂h_{t-1} + a_t J_t
    and a_{k-1} = ∂L_k/∂h_{k-1},

        Σ_t (∂L_t/∂h_{t-1}) M_{t-1} = a_0 M_0 + Σ_{0<j<k} a_j I_j
        M_k = (J_k … J_1) M_0 + Σ_j (J_k … J_{j+1}) I_j

    whose sums are backpropagation through the window, of a and of N unit vectors.

    Memory: batch × N × parameters, for a state of N numbers; parameters that reach no
    state need none. Every parameter is traced, through whatever operation.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][]; `mixing_tails` changes
    nothing.

    ??? cite "Reference"

        Williams & Zipser, Neural Computation 1(2):270-280 (1989).
    """

    def _graph_options(self) -> GraphOptions:
        return dataclasses.replace(super()._graph_options(), follows_all=True)

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        lead = () if batch is None else (batch,)
        params = [graph.call.params.leaves[i] for i in graph.reaching]
        return tuple(
            jnp.zeros(
                (*lead, state_size(graph), *p.shape),
                stored_dtype(self.trace_dtype, p.dtype),
            )
            for p in params
        )

    def _check_graph(self, graph: Graph) -> None:
        check_apart(graph, self.name)

    def _get_etrace_data(self, trace: Trace) -> PyTree:
        data = super()._get_etrace_data(trace)
        return tuple(working(m, trace.graph) for m in data)

    def _solve_weight_gradients(
        self, data: tuple[Array, ...], window: Window, signals: LearningSignals
    ) -> PyTree:
        step = WholeStep(window)
        signal = step.signal(signals)
        a = signal[-1]
        past = [jnp.zeros_like(p) for p in step.params()]

        def back(carry, at, signal):
            a, past = carry
            # Of all examples at once, so that gradients are summed as they are made.
            new_state = lambda p, h: jax.vmap(  # noqa: E731
                lambda at, h: step.new_state(at, h, p)
            )(at, h)
            _, pull = jax.vjp(new_state, step.params(), at.hidden)
            more, a = pull(a)
            return a + signal, jax.tree.map(jnp.add, past, more)

        if window.length > 1:
            steps = WholeStep(window.part(0, window.length - 1))
            a, past = steps.scan(back, (a, past), signal[:-1], reverse=True)
        whole = [
            jnp.tensordot(a.astype(m.dtype), m, 2) + p.astype(m.dtype)
            for m, p in zip(data, past, strict=True)
        ]
        return step.add(signals.gradients(), whole)

    def _update_etrace_data(
        self, data: tuple[Array, ...], window: Window
    ) -> tuple[Array, ...]:
        step = WholeStep(window)
        n, batch = state_size(window.graph), window.size[1]

        def back(carry, at, _):
            rows, new = carry
            return jax.vmap(one)(rows, new, at)

        def one(rows: Array, new: list[Array], at: At):
            new_state = lambda p, h: step.new_state(at, h, p)  # noqa: E731
            _, pull = jax.vjp(new_state, step.params(), at.hidden)
            more, rows = jax.vmap(pull)(rows)
            return rows, [a + b.astype(a.dtype) for a, b in zip(new, more)]

        dtype = wider(*window.rolled.hidden)
        rows = jnp.broadcast_to(jnp.eye(n, dtype=dtype), (batch, n, n))
        start = (rows, [jnp.zeros_like(m) for m in data])
        rows, new = step.scan(back, start, reverse=True)
        return tuple(_moved(rows, m) + x for m, x in zip(data, new, strict=True))


def _moved(rows: Array, influence: Array) -> Array:
    """The product of [batch, N, N] and [batch, N, ...]."""
    flat = influence.reshape(*influence.shape[:2], -1)
    return (rows.astype(flat.dtype) @ flat).reshape(influence.shape)
