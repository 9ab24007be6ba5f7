"""Whether values flow as the analysis says, on real numbers.

A trace has one number where the analysis found one position. Then what signals at all
positions say at a site is what each of them says alone: a pull-back of random signals
equals the sum of their products with the local derivatives.
"""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._algorithm import ETraceVjpAlgorithm
from .._check_sequence import Sequence
from .._data import MultiStepData
from .._step import LocalPropagation
from .._window import Window


@eqx.filter_jit
def locality(algorithm: ETraceVjpAlgorithm, state: tuple, sequence: Sequence) -> Array:
    """The largest difference, relative to the size of the signals."""
    hidden, other, trace = state
    params = eqx.filter(algorithm.model, eqx.is_inexact_array)
    inputs = tuple(map(MultiStepData, sequence.inputs))
    _, _, ran = algorithm._run(params, inputs, (hidden, other), trace)
    errors = [_distance(a, b) for a, b in _pairs(ran.window)]
    return jnp.max(jnp.stack(errors)) if errors else jnp.zeros(())


def _pairs(window: Window) -> Iterator[tuple[Array, Array]]:
    signals = _random(window)
    pulled = window.at_sites(signals)
    for t in range(len(window.graph.traces)):
        f = window.immediate(t)[0]
        alone = f * window.at_trace(t, signals, 1).astype(f.dtype)
        together = pulled[t]
        if together is not None:
            yield together, jnp.sum(alone, axis=2)
    if isinstance(window.propagation, LocalPropagation):
        pairs = zip(signals, window.jacobian, window.propagation.at_old(signals))
        for signal, d, together in pairs:
            yield together, jnp.einsum("kbsp,kbsmp->kbmp", signal, d)


def _random(window: Window) -> list[Array]:
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.normal(size=(*window.size, g.components, g.size)), dtype)
        for g in window.graph.positions.groups
        for dtype in [window.graph.new[g.leaves[0]].dtype]
    ]


def _distance(a: Array, b: Array) -> Array:
    size = jnp.maximum(jnp.max(jnp.abs(a), initial=0), jnp.max(jnp.abs(b), initial=0))
    gap = jnp.max(jnp.abs(a - b), initial=0)
    return (gap / jnp.where(size == 0, 1, size)).astype(
        jax.dtypes.canonicalize_dtype(float)
    )
