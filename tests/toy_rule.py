"""A rule as a user writes it, made by the recipe in CONTRIBUTING.md."""

from typing import Any

import jax.numpy as jnp

import etrace
from etrace.testing import rules as references


class LeakyTrace(etrace.ETraceVjpAlgorithm):
    """e <- leak * e + f ⊗ x: D-RTRL for neurons that all forget at one rate."""

    leak = 0.8

    def _solve_weight_gradients(self, data, window, signals):
        total = [0.0] * len(data)
        for t, step in enumerate(window.steps()):
            here = [b[t] for b in signals.boundary]
            for i, e in enumerate(data):
                b = window.at_trace(i, here, 1)
                total[i] += jnp.einsum("Bsbpo,Bsbpoc->boc", b, e)
            data = self._update_etrace_data(data, step)
        return signals.gradients(total)

    def _update_etrace_data(self, data, window):
        for step in window.steps():
            pairs = [step.immediate(i) for i in range(len(data))]
            new = [jnp.einsum("kBsbpo,kBbpc->Bsbpoc", f, x) for f, x in pairs]
            data = [self.leak * e + more for e, more in zip(data, new, strict=True)]
        return data

    def _get_etrace_data(self, trace):
        dtypes = map(trace.graph.trace_dtype, range(len(trace.data)))
        data = [e.astype(d) for e, d in zip(trace.data, dtypes, strict=True)]
        return [e if self.batched else e[None] for e in data]

    def _assign_etrace_data(self, trace, data):
        data = [e if self.batched else e[0] for e in data]
        pairs = zip(data, trace.data, strict=True)
        stored = tuple(e.astype(old.dtype) for e, old in pairs)
        return etrace.Trace(stored, trace.graph)


class LeakyReference(references.DRTRL):
    """M = leak M + I; R = E M_old + J."""

    def advance(self, trace: Any, o: Any) -> tuple[Any, Any]:
        return o.e @ trace + o.j, 0.8 * trace + o.i
