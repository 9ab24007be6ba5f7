"""OTPE: online training with post-synaptic estimates."""

from collections.abc import Sequence
from typing import Any, Unpack

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._analysis import Graph, Recurrence
from .._backward import LearningSignals
from .._options import Options, VjpMethod
from .._program import Edge, take
from .._window import Window
from . import _factored as factored
from ._emitted import Emitted
from ._options import check_fraction, check_single_step
from ._per_parameter_rule import PerParameterRule


class OTPE(PerParameterRule):
    r"""OTPE: traces of what a weight does to later layers.

    A later layer keeps a spike as its membrane does, for a while. With e_t the trace at
    an exit, E_t ε_{t-1} + f^e_t ⊗ x_t as in [`etrace.EProp`][],

        R_t = λ R_{t-1} + e_t
        dL_t/dθ = ∂L_t/∂θ + λ_t · R_t - λ_t · f^e_t ⊗ x_t

    at every exit that a product (or another mixing operation) reads, be it a layer or a
    read-out; an exit that is itself an output is not filtered. `factored=True` is the
    paper's Approximate OTPE, with memory O(inputs + outputs): traces of traces of the
    inputs, times the mean derivative of the spike,

        x̂_t = λ x̂_{t-1} + x_t,   ẑ_t = λ ẑ_{t-1} + x̂_t
        ḡ_t = Σ_{j≤t} λ^{t-j} f^e_j / Σ_{j≤t} λ^{t-j},   R_t ≈ ḡ_t ⊗ ẑ_t

    λ_t is found by differentiating the step; the authors' code also smooths the
    derivative through which a layer passes it on, which is left out here.

    Exact (equal to BPTT) for one hidden layer without recurrence, a detached reset, and
    a leaky read-out with this leak. Memory: D-RTRL's, and as much again for R.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][] (`vjp_method` is
    `"single-step"`), and

    - `leak`: λ, what the membranes of the later layers keep in a step, in [0, 1].
    - `factored`: whether traces are held in two factors.

    ??? cite "Reference"

        Summe, Schaefer & Joshi, Estimating post-synaptic effects for online training of
        feed-forward SNNs, arXiv:2311.16151 (2023), eqs. 9-13.
    """

    leak: float = eqx.field(static=True)
    factored: bool = eqx.field(static=True)

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        leak: float,
        factored: bool = False,
        **options: Unpack[Options],
    ):
        check_single_step(type(self), vjp_method)
        super().__init__(model, name, vjp_method, **options)
        self.leak = check_fraction("leak", leak, one=True)
        self.factored = factored

    def _recurrence(self) -> Recurrence:
        return "cut"

    def _emitted(self, graph: Graph) -> Emitted:
        return Emitted(graph, self.leak, self._filters)

    def _filters(self, graph: Graph, edge: Edge, group: int) -> bool:
        return graph.leaves_by_mixing(edge)

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        if not self.factored:
            return super()._init_etrace_data(graph, batch)
        emitted, inputs = self._emitted(graph), self._inputs(graph, batch)
        lead = () if batch is None else (batch,)
        result = []
        for t, spec in enumerate(graph.traces):
            own = graph.sites[spec.site].equation.outputs[0].dtype
            dtype = factored.stored_dtype(own, self.trace_dtype)
            shape = (*lead, emitted.count(t), *spec.positions.shape)
            weight = jnp.zeros(lead, jnp.finfo(own).dtype)
            result.append(Estimate(*inputs[t], jnp.zeros(shape, dtype), weight))
        return tuple(result)

    def _inputs(self, graph: Graph, batch: int | None) -> list[tuple[Array, Array]]:
        zeros = factored.input_zeros(graph, batch, self.trace_dtype)
        return [(x, jnp.zeros_like(x)) for x in zeros]

    def _update_etrace_data(self, data: Sequence[Any], window: Window) -> Any:
        if not self.factored:
            return super()._update_etrace_data(data, window)
        result = []
        for old, moved in zip(data, self._moved(data, window), strict=True):
            leaves = (moved.x, moved.z, moved.g, moved.weight)
            before = (old.x, old.z, old.g, old.weight)
            last = [a[-1].astype(b.dtype) for a, b in zip(leaves, before, strict=True)]
            result.append(Estimate(*last))
        return tuple(result)

    def _solve_weight_gradients(
        self, data: Sequence[Any], window: Window, signals: LearningSignals
    ) -> PyTree:
        if not self.factored:
            return super()._solve_weight_gradients(data, window, signals)
        emitted = self._emitted(window.graph)
        own, others = emitted.split(signals.spatial)
        at_own = window.local.exits_at_sites(own, outputs=True)
        at_others = window.local.exits_at_sites(others, outputs=True)
        past = []
        for t, now in enumerate(self._moved(data, window)):
            x = window.input_of_result(t)
            delta = self._delta(now, t, window, emitted, own)
            total = factored.outer(delta, now.z)
            if at_own[t] is not None:
                total = total - factored.outer(at_own[t], x)
                seen = now.x - x.astype(now.x.dtype)
                total = total + factored.outer(at_others[t], seen)
            past.append(total)
        return signals.gradients(past)

    def _delta(self, now, t, window, emitted, signals) -> Array:
        """Σ over filtered exits of the signal times ḡ, [k, batch, b, p, o]."""
        spec = window.graph.traces[t]
        total = jnp.zeros((*window.size, *spec.positions.shape), now.g.dtype)
        weight = now.weight.reshape(*window.size, *(1,) * spec.positions.ndim)
        weight = weight.astype(total.dtype)
        for n, component in enumerate(emitted.components[spec.group]):
            signal = emitted.at_positions(component, signals)
            signal = take(signal, spec.positions).reshape(total.shape)
            total = total + signal.astype(total.dtype) * now.g[:, :, n] / weight
        return total

    def _moved(self, data: Sequence[Any], window: Window) -> "list[Estimate]":
        """The traces after each step, with an axis of time in front."""
        emitted = self._emitted(window.graph)
        most = max(map(len, emitted.components), default=0)
        ones = [emitted.ones(window, n, 1.0) for n in range(most)]
        at_sites = [window.local.exits_at_sites(x, outputs=True) for x in ones]
        result = []
        for t, old in enumerate(data):
            x = factored.earlier(window.input_of_result(t), old.x, self.leak)
            z = factored.earlier(x, old.z, self.leak)
            found = [at_sites[n][t] for n in range(emitted.count(t))]
            g = jnp.stack(found, axis=2) if found else _none(old.g, window)
            g = factored.earlier(g, old.g, self.leak)
            weight = jnp.ones(window.size, old.weight.dtype)
            weight = factored.earlier(weight, old.weight, self.leak)
            result.append(Estimate(x, z, g, weight))
        return result


class Estimate(eqx.Module):
    """x̂, ẑ [batch, b, p, c], and Σ λ^{t-j} f^e_j [batch, exits, b, p, o] with its
    weight Σ λ^{t-j} [batch]."""

    x: Array
    z: Array
    g: Array
    weight: Array


def _none(g: Array, window: Window) -> Array:
    return jnp.zeros((window.length, *g.shape), g.dtype)
