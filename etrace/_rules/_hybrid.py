"""Hybrid D-RTRL: per site, one trace per parameter or one in two factors."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._analysis import Graph
from .._options import Options, VjpMethod
from . import _factored as factored
from ._factored_rule import FactoredRule
from ._options import check_decays


class HybridDRTRL(FactoredRule):
    r"""D-RTRL where it is affordable, ES-D-RTRL where it is not.

    Each site has either the trace of [`etrace.DRTRL`][], one number per parameter, or
    the two factors of [`etrace.ESDRTRL`][]:

    - by default whichever is smaller;
    - those named by `factored` in two factors, the others per parameter (and weights
        that are used element by element: nothing would be saved);
    - with `max_bytes`, per parameter as long as everything fits: sites are factored in
        the order of the bytes this saves, most first.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][], and

    - `decay`: as for [`etrace.ESDRTRL`][].
    - `max_bytes`: how large all traces together may be, for the batch given to `init`.
    - `factored`: the parameters whose sites are factored: a function from the model to
        them, as in `equinox.tree_at`, or a filter specification of the model.

    **Raises:** ValueError, when the model is first seen, if not even with all sites
    factored the traces fit into `max_bytes`.

    ??? cite "Reference"

        Wang et al., Nature Communications 17:1745 (2026).
    """

    decays: tuple[float, float] = eqx.field(static=True)
    max_bytes: int | None = eqx.field(static=True)
    factored: Any = eqx.field(static=True)

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        decay: float | tuple[float, float] = 0.99,
        max_bytes: int | None = None,
        factored: Callable[[Any], PyTree] | PyTree | None = None,
        **options: Unpack[Options],
    ):
        super().__init__(model, name, vjp_method, **options)
        if max_bytes is not None and factored is not None:
            raise ValueError(
                "max_bytes and factored are both given; expected one of them: a budget "
                "chooses the sites by itself."
            )
        self.decays = check_decays(decay, None)
        self.max_bytes = max_bytes
        self.factored = None if factored is None else _chosen(model, factored)

    def _factored(self, graph: Graph, batch: int) -> Sequence[bool]:
        traces = range(len(graph.traces))
        if self.factored is not None:
            return [self._is_named(graph, t) for t in traces]
        size = batch if self.batched else None
        whole = [_nbytes(partial(self._zero_trace, graph, t, size)) for t in traces]
        of_factors = partial(factored.zeros, graph, batch=size, dtype=self.trace_dtype)
        small = [_nbytes(partial(of_factors, t)) for t in traces]
        if self.max_bytes is None:
            return [b < a for a, b in zip(whole, small, strict=True)]
        return _within(self.max_bytes, whole, small)

    def _is_named(self, graph: Graph, t: int) -> bool:
        site = graph.traces[t].site
        own = [p for o in graph.occurrences if o.site == site for p in o.parameters]
        return not graph.sites[site].direct and any(self.factored[p] for p in own)


def _within(budget: int, whole: Sequence[int], small: Sequence[int]) -> list[bool]:
    """Factors what saves most until everything fits."""
    chosen = [False] * len(whole)
    order = sorted(range(len(whole)), key=lambda t: small[t] - whole[t])
    total = sum(whole)
    for t in order:
        if total <= budget or small[t] >= whole[t]:
            break
        chosen[t] = True
        total += small[t] - whole[t]
    if total > budget:
        raise ValueError(
            f"max_bytes is {budget}, but the traces of this model and batch need at "
            f"least {total} bytes, with every site factored that gets smaller by it. "
            "Raise max_bytes, or reduce the batch, or store traces in a smaller "
            "trace_dtype."
        )
    return chosen


def _chosen(model: eqx.Module, where: Any) -> tuple[bool, ...]:
    """Per parameter of the model, whether it is chosen."""
    params = eqx.filter(model, eqx.is_inexact_array)
    spec = where
    if callable(where) and not isinstance(where, eqx.Module):
        nothing = jax.tree.map(lambda _: False, params)
        spec = eqx.tree_at(where, nothing, replace_fn=lambda n: jax.tree.map(_yes, n))
    chosen = eqx.filter(params, spec)
    pairs = jax.tree.leaves(
        jax.tree.map(lambda p, c: c is not None, params, chosen, is_leaf=_is_none)
    )
    present = jax.tree.leaves(
        jax.tree.map(lambda p: p is not None, params, is_leaf=_is_none)
    )
    return tuple(c for c, p in zip(pairs, present, strict=True) if p)


def _yes(_: Any) -> bool:
    return True


def _is_none(x: Any) -> bool:
    return x is None


def _nbytes(make: Callable[[], PyTree]) -> int:
    leaves = jax.tree.leaves(jax.eval_shape(make))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
