r"""D-RTRL with some traces in two factors, the others one per parameter.

At an exit, the factored trace is (α E_t ε_f,t-1 + (1 - α) f^e_t) / c_t ⊗ ε_x,t with
c_t = 1 - α^t. So, with B_t the boundary signal and g_t = λ_t · f^e_t at the site,

    δ_t  = (α B_t · ε_f,t-1 + (1 - α) g_t) / c_t
    past = Σ_t δ_t ⊗ ε_x,t - g_t ⊗ x_t
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._backward import LearningSignals
from .._graph import Graph
from .._window import Window
from . import _factored as factored, _per_parameter as per_parameter
from ._factored import Factors


class FactoredRule(ETraceVjpAlgorithm):
    """Base of ESDRTRL and HybridDRTRL: they say which traces are factored.

    - `decays`: α of x and of f.
    """

    decays: eqx.AbstractVar[tuple[float, float]]

    # Not one made of the fields, as for any dataclass.
    __init__ = ETraceVjpAlgorithm.__init__

    @abc.abstractmethod
    def _factored(self, graph: Graph, batch: int) -> Sequence[bool]:
        """Per trace, whether it is held in two factors."""

    # ------------------------------------------------------------------------ the trace

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        chosen = self._factored(graph, 1 if batch is None else batch)
        return tuple(
            factored.zeros(graph, t, batch, self.trace_dtype)
            if is_factored
            else self._zero_trace(graph, t, batch)
            for t, is_factored in enumerate(chosen)
        )

    # ----------------------------------------------------------------- what it decides

    def _solve_weight_gradients(
        self, data: Sequence[Factors | Array], window: Window, signals: LearningSignals
    ) -> PyTree:
        if self.vjp_method == "multi-step":
            return signals.gradients(self._at_start(data, window, signals))
        adjoints = window.adjoints(signals.boundary)
        at_sites = list(window.at_sites([a[1:] for a in adjoints]))
        at_exits = window.local.exits_at_sites(signals.spatial)
        past = []
        for t, trace in enumerate(data):
            if isinstance(trace, Factors):
                boundary = window.at_trace(t, signals.boundary, 1)
                now = _or_zero(at_exits[t], window, t)
                delta = self._delta(trace, boundary, now, window, t)
                delta = factored.later(delta, self.decays[0])
                at_sites[t] = (delta - now.astype(delta.dtype)).astype(now.dtype)
                past.append(factored.outer(self.decays[0] * delta[0], trace.x))
            else:
                own = window.at_trace(t, adjoints, 1)[0]
                past.append(per_parameter.contract(own, trace))
        return signals.gradients(past, at_sites=at_sites)

    def _at_start(
        self, data: Sequence[Factors | Array], window: Window, signals: LearningSignals
    ) -> list[Array | None]:
        """B · ε at the window's start."""
        result = []
        for t, trace in enumerate(data):
            boundary = window.at_trace(t, signals.boundary, 1)[0]
            if isinstance(trace, Factors):
                f = _sum(boundary * trace.f.astype(boundary.dtype))
                f = f / _as_column(self._correction(trace.steps), f)
                result.append(factored.outer(f, trace.x))
            else:
                result.append(per_parameter.contract(boundary, trace))
        return result

    def _update_etrace_data(
        self, data: Sequence[Factors | Array], window: Window
    ) -> tuple[Factors | Array, ...]:
        propagators = window.propagators()
        moved = window.moved([p[1:] for p in propagators])
        result = []
        for t, trace in enumerate(data):
            x = window.local_input(t)
            if isinstance(trace, Factors):
                f = self._f_traces(trace.f, window, t)[-1]
                new = factored.last(x, trace.x, self.decays[0])
                result.append(Factors(new, f, trace.steps + window.length))
            else:
                whole = window.at_trace(t, [p[0] for p in propagators], 2)
                result.append(per_parameter.advance(trace, whole, moved[t], x))
        return tuple(result)

    def _delta(
        self,
        trace: Factors,
        boundary: Array,
        now: Array,
        window: Window,
        t: int,
    ) -> Array:
        """δ_t, [k, batch, b, p, o]."""
        decay = self.decays[1]
        before = self._f_traces(trace.f, window, t)[:-1]
        past = _sum(jnp.moveaxis(boundary * before, 2, 0), 0)
        new = jnp.arange(1, window.length + 1, dtype=jnp.int32)
        steps = trace.steps[None] + new[:, None]
        total = decay * past + (1 - decay) * now.astype(past.dtype)
        return total / _as_column(self._correction(steps), total)

    def _f_traces(self, start: Array, window: Window, t: int) -> Array:
        """ε_f before and after each step, [k + 1, batch, components, b, p, o]."""
        decay = self.decays[1]
        jacobian = window.at_trace(t, window.jacobian, 2)
        immediate, _ = window.immediate(t)

        def step(f, now):
            d, new = now
            columns = [d[:, :, j] * f[:, j : j + 1] for j in range(f.shape[1])]
            moved = sum(columns[1:], columns[0]) if columns else f
            f = decay * moved + (1 - decay) * new
            return f, f

        start = start.astype(immediate.dtype)
        unroll = window.length == 1
        _, after = lax.scan(step, start, (jacobian, immediate), unroll=unroll)
        return jnp.concatenate([start[None], after])

    def _correction(self, steps: Array) -> Array:
        """1 - α^steps, the sum of the weights ε_f gave to what it has seen."""
        correction = 1 - jnp.asarray(self.decays[1], float) ** steps.astype(float)
        return jnp.where(steps == 0, jnp.ones_like(correction), correction)


def _or_zero(signal: Array | None, window: Window, t: int) -> Array:
    if signal is not None:
        return signal
    spec = window.graph.traces[t]
    dtype = window.graph.sites[spec.site].equation.outputs[0].dtype
    return jnp.zeros((*window.size, *spec.positions.shape), dtype)


def _sum(x: Array, axis: int = 1) -> Array:
    """The sum over components, which are few."""
    parts = [jnp.take(x, i, axis) for i in range(x.shape[axis])]
    zero = jnp.zeros(x.shape[:axis] + x.shape[axis + 1 :], x.dtype)
    return sum(parts[1:], parts[0]) if parts else zero


def _as_column(x: Array, like: Array) -> Array:
    """`x` with axes of length one appended, in the dtype of `like`."""
    x = x.reshape(x.shape + (1,) * (like.ndim - x.ndim))
    return x.astype(jnp.finfo(like.dtype).dtype)
