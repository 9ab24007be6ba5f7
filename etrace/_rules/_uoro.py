"""UORO: unbiased online recurrent optimisation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._analysis import Graph, GraphOptions
from .._backward import LearningSignals
from .._window import Window
from ._random import RandomRule
from ._whole_step import At, WholeStep, state_size, stored_dtype


class _RankOne(eqx.Module):
    """M ≈ state ⊗ params; each with a batch axis."""

    key: Array
    state: Array  # [N]
    params: tuple[Array, ...]  # like the parameters that reach the state


class UORO(RandomRule):
    r"""UORO: an unbiased estimate of the whole influence, of rank one.

    With h_t = F(θ, h_{t-1}) and fresh random signs ν, [N], at every step, the influence
    M_t = ∂h_t/∂θ is estimated without bias by s_t ⊗ q_t,

        s_t = ρ₀ (∂F/∂h) s_{t-1} + ρ₁ ν
        q_t = q_{t-1} / ρ₀ + (ν · ∂F/∂θ) / ρ₁
        dL_t/dθ ≈ ∂L_t/∂θ + (∂L_t/∂h_{t-1} · s_{t-1}) q_{t-1}

    because ν ⊗ ν is the identity on average. The variance is least with
    ρ₀² = |q| / |(∂F/∂h) s| and ρ₁² = |ν · ∂F/∂θ| / |ν|. One Jacobian-vector and one
    vector-Jacobian product of the step are all it takes. Examples of a batch draw signs
    of their own; under `jax.vmap`, give each a key of its own.

    Memory: batch × (N + parameters). Every parameter that reaches the state is traced,
    through whatever operation.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][], where `mixing_tails`
    changes nothing, and

    - `key`: a random key. It is kept with the trace, and split at every step.

    **Raises:** TypeError if `key` is not a random key.

    ??? cite "Reference"

        Tallec & Ollivier, Unbiased Online Recurrent Optimization, ICLR (2018),
        arXiv:1702.05043 (2017).
    """

    def _graph_options(self) -> GraphOptions:
        return dataclasses.replace(super()._graph_options(), follows_all=True)

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        lead = () if batch is None else (batch,)

        def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
            return jnp.zeros((*lead, *shape), stored_dtype(self.trace_dtype, dtype))

        params = [graph.call.params.leaves[i] for i in graph.reaching]
        return _RankOne(
            self._first_keys(batch),
            zeros((state_size(graph),), graph.state_dtype),
            tuple(zeros(p.shape, p.dtype) for p in params),
        )

    def _solve_weight_gradients(
        self, data: _RankOne, window: Window, signals: LearningSignals
    ) -> PyTree:
        past = self._past(data, window, signals)
        return WholeStep(window).add(signals.gradients(), past)

    def _contract(
        self, data: _RankOne, step: WholeStep, at: At, signal: Array
    ) -> tuple[Array, ...]:
        weight = jnp.sum(signal.astype(data.state.dtype) * data.state, axis=1)
        return tuple(jnp.tensordot(weight.astype(q.dtype), q, 1) for q in data.params)

    def _advance(self, data: _RankOne, step: WholeStep, at: At) -> _RankOne:
        return jax.vmap(lambda data, at: self._advance_one(data, step, at))(data, at)

    def _advance_one(self, data: _RankOne, step: WholeStep, at: At) -> _RankOne:
        key, now = self._split(data.key, 2)
        v = self._signs(now, at.hidden.shape, at.hidden.dtype)
        _, pull = jax.vjp(lambda p: step.new_state(at, params=p), step.params())
        new = [x.astype(q.dtype) for x, q in zip(pull(v)[0], data.params, strict=True)]
        v = v.astype(data.state.dtype)
        moved = step.push(at)(data.state.astype(at.hidden.dtype)).astype(v.dtype)
        r0, r1 = _ratio(data.params, moved), _ratio(new, v)
        return _RankOne(
            key,
            r0 * moved + r1 * v,
            tuple(
                q / r0.astype(q.dtype) + x / r1.astype(q.dtype)
                for q, x in zip(data.params, new)
            ),
        )


def _ratio(above: Sequence[Array], below: Array) -> Array:
    """√(|above| / |below|), kept away from zero."""
    total = jnp.zeros((), below.dtype)
    for x in above:
        total += jnp.sum(jnp.abs(x) ** 2).astype(below.dtype)
    size = jnp.sqrt(jnp.sum(below**2))
    return jnp.sqrt(jnp.sqrt(total) / (size + _TINY)) + _TINY


_TINY = 1e-7
