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
import numpy as np
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._analysis import Graph, seen_at_exits
from .._backward import LearningSignals
from .._step import added
from .._window import Window
from . import _factored as factored, _per_parameter as per_parameter
from ._factored import Factors
from ._postsynaptic import Postsynaptic, correction, total


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
        zeros = [
            factored.zeros(graph, t, batch, self.trace_dtype)
            if is_factored
            else self._zero_trace(graph, t, batch)
            for t, is_factored in enumerate(chosen)
        ]
        return per_parameter.held_once(graph, zeros, np.flatnonzero(chosen))

    # ----------------------------------------------------------------- what it decides

    def _solve_weight_gradients(
        self, data: Sequence[Factors | Array], window: Window, signals: LearningSignals
    ) -> PyTree:
        if self.vjp_method == "multi-step":
            return signals.gradients(self._at_start(data, window, signals))
        adjoints = window.adjoints(signals.boundary)
        inside = [a[1:] if window.length > 1 else None for a in adjoints]
        at_sites = list(window.at_sites(inside))
        at_exits = window.local.exits_at_sites(signals.spatial)
        whole = seen_at_exits(window.graph)
        past = []
        for t, trace in enumerate(data):
            now, x = at_exits[t], window.local_input(t)
            if isinstance(trace, Factors):
                x = factored.earlier(x, trace.x, self.decays[0])
                f = Postsynaptic(window, t, self.decays[1])
                delta = f.deltas(trace, signals.boundary, now)
                past.append(factored.outer(delta, x))
                at_sites[t] = None if t in whole or now is None else -now
                continue
            own = window.at_trace(t, [a[0] for a in adjoints], 1)
            past.append(per_parameter.contract(own, trace))
            if t in whole:
                (delta,) = added([now], [at_sites[t]])
                new = None if delta is None else factored.outer(delta, x)
                (past[t],) = added([past[t]], [new])
                at_sites[t] = None
        return signals.gradients(past, at_sites=at_sites, whole=whole)

    def _at_start(
        self, data: Sequence[Factors | Array], window: Window, signals: LearningSignals
    ) -> list[Array | None]:
        """B · ε at the window's start."""
        result = []
        for t, trace in enumerate(data):
            boundary = window.at_trace(t, signals.boundary, 1)[0]
            if isinstance(trace, Factors):
                dtype = trace.f.dtype if jnp.iscomplexobj(trace.f) else boundary.dtype
                f = total(boundary.astype(dtype) * trace.f.astype(dtype))
                scale = correction(trace.steps, self.decays[1], f.dtype)
                f = f * scale.reshape(-1, 1, 1, 1).astype(dtype)
                result.append(factored.outer(f, trace.x))
            else:
                result.append(per_parameter.contract(boundary, trace))
        return result

    def _update_etrace_data(
        self, data: Sequence[Factors | Array], window: Window
    ) -> tuple[Factors | Array, ...]:
        propagators = window.propagators()
        moved = window.contributions(propagators)
        result = []
        for t, trace in enumerate(data):
            x = window.local_input(t)
            if isinstance(trace, Factors):
                f = Postsynaptic(window, t, self.decays[1]).last(trace)
                new = factored.last(x, trace.x, self.decays[0])
                result.append(Factors(new, f, trace.steps + window.length))
            elif per_parameter.is_held(trace):
                result.append(trace)
            else:
                whole = window.at_trace(t, [p[0] for p in propagators], 2)
                f, x = per_parameter.added(t, data, moved, window)
                result.append(per_parameter.advance(trace, whole, f, x))
        return tuple(result)
