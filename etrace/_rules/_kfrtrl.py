"""KF-RTRL: real-time recurrent learning with Kronecker factors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._analysis import Graph
from .._backward import LearningSignals
from .._window import Window
from ._random import RandomRule
from ._whole_step import At, WholeStep, forwards, state_size, stored_dtype


class _Factors(eqx.Module):
    """Of one site, M[n, (b, o, c)] ≈ state[n, b, o] input[b, c]."""

    state: Array
    input: Array | None  # None where c = 1: there `state` alone is M


class _Kronecker(eqx.Module):
    key: Array
    sites: tuple[_Factors, ...]


class KFRTRL(RandomRule):
    r"""KF-RTRL: an unbiased estimate of the influence, a Kronecker product a site.

    With z[b, p, o] = Σ_c x[b, p, c] w[b, o, c] at a site (see `etrace.Window`), the
    influence of w on the N numbers of the state is M = ∂h/∂w ≈ A ⊗ u, [N, b, o] times
    [b, c]. With J = ∂h_t/∂h_{t-1} and F = ∂h_t/∂z by all paths, and independent random
    signs s_p at every step,

        A_t = J A_{t-1} / ρ₀ + Σ_p s_p F_p / ρ₁
        u_t = ρ₀ u_{t-1}     + ρ₁ Σ_p s_p x_p
        dL_t/dw ≈ ∂L_t/∂w + (∂L_t/∂h_{t-1} · A_{t-1}) ⊗ u_{t-1}

    because a sign, or the product of two different ones, vanishes on average. (The
    paper's sign of the first terms drops out of A ⊗ u.) The variance is least with
    ρ₀² = |J A| / |u| and ρ₁² = |Σ s_p F_p| / |Σ s_p x_p|, for each b. Where c = 1, as
    in biases and gains, M = A needs no signs and is exact. Examples of a batch draw
    signs of their own; under `jax.vmap`, give each a key of its own.

    Memory: batch × sites × (N × b × o + b × c). Weights that enter by no traced site
    keep their instantaneous gradient, see the report.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][], and

    - `key`: a random key. It is kept with the trace, and split at every step.

    **Raises:** TypeError if `key` is not a random key.

    ??? cite "Reference"

        Mujika, Meier & Steger, Approximating Real-Time Recurrent Learning with Random
        Kronecker Factors, NeurIPS (2018).
    """

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        lead = () if batch is None else (batch,)
        sites = []
        for site in graph.sites:
            b, _, o, c = site.form.sizes
            dtype = stored_dtype(self.trace_dtype, site.weight.dtype)
            state = jnp.zeros((*lead, state_size(graph), b, o), dtype)
            sites.append(
                _Factors(state, None if c == 1 else jnp.zeros((*lead, b, c), dtype))
            )
        return _Kronecker(self._first_keys(batch), tuple(sites))

    def _solve_weight_gradients(
        self, data: _Kronecker, window: Window, signals: LearningSignals
    ) -> PyTree:
        past = self._past(data, window, signals)
        # A site may have a trace in several groups; its influence here is whole.
        left = dict(enumerate(past))
        traces = window.graph.traces
        return signals.gradients([left.pop(t.site, None) for t in traces])

    def _contract(
        self, data: _Kronecker, step: WholeStep, at: At, signal: Array
    ) -> tuple[Array, ...]:
        result = []
        for site in data.sites:
            here = signal.astype(site.state.dtype)
            if site.input is None:
                result.append(jnp.tensordot(here, site.state, 2)[..., None])
            else:
                at_z = jnp.einsum("Bn,Bnbo->Bbo", here, site.state)
                result.append(jnp.einsum("Bbo,Bbc->boc", at_z, site.input))
        return tuple(result)

    def _advance(self, data: _Kronecker, step: WholeStep, at: At) -> _Kronecker:
        return jax.vmap(lambda data, at: self._advance_one(data, step, at))(data, at)

    def _advance_one(self, data: _Kronecker, step: WholeStep, at: At) -> _Kronecker:
        key, *now = self._split(data.key, 1 + len(data.sites))
        inputs, push = step.local_inputs(at), step.push(at)
        sites = []
        for s, (old, x) in enumerate(zip(data.sites, inputs, strict=True)):
            dtype = old.state.dtype
            moved = _columns(push, old.state, at.hidden.dtype)
            if old.input is None:
                new = _at_site(step, at, s, x[:, :, 0])
                sites.append(_Factors(moved + new.astype(dtype), None))
                continue
            b, p, _ = x.shape
            sign = self._signs(now[s], (b, p), dtype)
            new = _at_site(step, at, s, sign).astype(dtype)
            x = jnp.einsum("bp,bpc->bc", sign, x.astype(dtype))
            r0, r1 = _ratio(moved, old.input), _ratio(new, x)
            state = moved / r0[None, :, None] + new / r1[None, :, None]
            u = old.input * r0[:, None] + x * r1[:, None]
            sites.append(_Factors(state, u))
        return _Kronecker(key, tuple(sites))


def _columns(push: Any, a: Array, dtype: Any) -> Array:
    """J A, [N, b, o]."""
    flat = a.reshape(len(a), -1)

    def moved(x: Array) -> Array:
        return jax.vmap(push, 1, 1)(x.astype(dtype)).astype(x.dtype)

    if not jnp.iscomplexobj(a):
        return moved(flat).reshape(a.shape)
    return jax.lax.complex(moved(flat.real), moved(flat.imag)).reshape(a.shape)


def _at_site(step: WholeStep, at: At, s: int, weights: Array) -> Array:
    """Σ_p weights[b, p] ∂h/∂z[b, p, o], [N, b, o]."""
    site = step.graph.sites[s]
    n = state_size(step.graph)
    b, _, o, _ = site.form.sizes
    dtype = site.weight.dtype

    def new_state(z: Array) -> Array:
        shift = weights[:, :, None].astype(dtype) * z.reshape(b, 1, o)
        return step.new_state(at, shifts={s: shift})

    zero = jnp.zeros(b * o, dtype)
    if n <= b * o:  # by rows or by columns, whichever are fewer
        value, pull = jax.vjp(new_state, zero)
        rows = jax.vmap(pull)(jnp.eye(n, dtype=value.dtype))[0]
        return rows.reshape(n, b, o)
    push = jax.vmap(forwards(new_state, zero), 0, 1)
    unit = jnp.eye(b * o, dtype=dtype)
    if jnp.iscomplexobj(zero):
        return jax.lax.complex(push(unit), -push(1j * unit)).reshape(n, b, o)
    return push(unit).reshape(n, b, o)


def _ratio(above: Array, below: Array) -> Array:
    """√(|above| / |below|) for each b of [N, b, o] and [b, c], kept away from zero."""
    size = jnp.sqrt(jnp.sum(jnp.abs(above) ** 2, axis=(0, 2)))
    per = jnp.sqrt(jnp.sum(jnp.abs(below) ** 2, axis=1))
    return jnp.sqrt((size + _TINY) / (per + _TINY)).astype(above.dtype)


_TINY = 1e-7
