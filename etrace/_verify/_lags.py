"""Credit by time lag: how much of it goes how far back, and how right it is.

For the loss of one late step, a rule whose trace is fresh k steps before gives the
credit of the last k steps alone, as does backpropagation with the state held there.
What one start adds to the next one is the credit of the steps between. The initial
state goes with the first step.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._check_sequence import Sequence
from .._start import with_trace
from .._windows import over_windows
from ._compared import Comparison, compared
from ._reference import bptt


@dataclasses.dataclass(frozen=True)
class Lag:
    """The credit of steps `first` to `last` before the loss, both included.

    - `share`: the norm of the exact credit, over that of all lags.
    - `comparison`: of the rule's credit with the exact one.
    """

    first: int
    last: int
    share: float
    comparison: Comparison


def by_lag(
    loss, algorithm: ETraceVjpAlgorithm, state: tuple, sequence: Sequence
) -> tuple[Lag, ...]:
    """Lags in steps that double; with windows of several steps, at their bounds."""
    last = _last_weighted(sequence)
    part = sequence.part(0, last + 1)
    part = eqx.tree_at(
        lambda s: s.mask, part, _last_only(part), is_leaf=lambda x: x is None
    )
    summed = dataclasses.replace(loss, reduction="sum")
    starts = _starts(last, loss.window)
    made = with_trace(algorithm, state)
    exact, found = [], []
    for start in starts:
        # What goes back to the first step goes back into the initial state.
        held = (np.arange(last + 1) == start) & (start > 0)
        exact.append(bptt(summed, algorithm, state, part, jnp.asarray(held))[1])
        fresh = jnp.asarray(start // loss.window)
        found.append(_from_fresh(summed, algorithm, made, part, fresh))
    bands = [
        (_less(a, b), _less(c, d))
        for a, b, c, d in zip(found, [None, *found], exact, [None, *exact])
    ]
    norms = [compared(e, e).norm for _, e in bands]
    total = sum(n * n for n in norms) ** 0.5
    firsts = [0, *(last - start + 1 for start in starts)]
    return tuple(
        Lag(first, last - start, norm / (total or 1.0), compared(rule, exact))
        for first, start, norm, (rule, exact) in zip(firsts, starts, norms, bands)
    )


def _last_weighted(sequence: Sequence) -> int:
    if sequence.mask is None:
        return sequence.length - 1
    weighted = np.flatnonzero(
        np.asarray(sequence.mask).reshape(sequence.length, -1).any(1)
    )
    return int(weighted[-1]) if weighted.size else sequence.length - 1


def _last_only(part: Sequence) -> Array:
    """The mask of the last step alone."""
    mask = jnp.ones(part.length) if part.mask is None else part.mask
    return mask.at[:-1].set(0)


def _starts(last: int, window: int) -> list[int]:
    """Where to begin, the latest first: bounds of windows, at doubling distances."""
    bounds = range(0, last + 1, window)
    found, distance = [], 1
    for start in reversed(bounds):
        if last - start + 1 >= distance or start == 0:
            found.append(start)
            distance = 2 * (last - start + 1)
    return found


def _less(a: PyTree, b: PyTree | None) -> PyTree:
    return a if b is None else jax.tree.map(jnp.subtract, a, b)


@eqx.filter_jit
def _from_fresh(loss, algorithm, state, sequence: Sequence, fresh: Array) -> PyTree:
    """The rule's gradient, its trace as at the beginning before window `fresh`."""
    beginning = state[2].data

    def step(carry: tuple, part: Sequence) -> tuple[tuple, None]:
        number, grads, (hidden, other, trace) = carry
        data = jax.tree.map(
            lambda new, old: jnp.where(number == fresh, old, new), trace.data, beginning
        )
        state = (hidden, other, dataclasses.replace(trace, data=data))
        _, _, more, state = loss.gradient(algorithm, state, part)
        grads = jax.tree.map(jnp.add, grads, more)
        return (number + 1, grads, state), None

    params = eqx.filter(algorithm.model, eqx.is_inexact_array)
    zeros = jax.tree.map(jnp.zeros_like, params)
    carry, _ = over_windows(step, (jnp.asarray(0), zeros, state), sequence, loss.window)
    return carry[1]
