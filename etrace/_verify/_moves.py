"""How the loss moves with the parameters, by differences of losses.

A slope tests the gradient where it is smooth. Spikes make the loss jump, and no slope
is seen there; but a gradient of exactly zero, with a loss that jumps, tells that credit
is lost: behind a comparison, an integer, a surrogate that is zero.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._analysis import Graph, ends_of
from ._reference import value

# Differences of losses are formed at these distances, relative to the parameter.
_DISTANCES = 10.0 ** -np.arange(0.5, 7.5, 0.5)
_BOTH = np.concatenate([-_DISTANCES, [0.0], _DISTANCES[::-1]])
_ROUNDS = 4  # each cuts an interval into as many parts as there are distances

Along = Callable[[Any], np.ndarray]  # the losses at some distances


@dataclasses.dataclass(frozen=True)
class Missed:
    """Numbers whose gradient is exactly zero, though the loss moves with them.

    - `numbers`, `size`: how many, and how many the parameter has.
    - `moved`: by how much the loss moves, if they move by up to a third.
    - `ends`: the places where derivatives by the parameter end, such as
        `gt in model.py:12 (__call__)`.
    """

    numbers: int
    size: int
    moved: float
    ends: tuple[str, ...]

    def __str__(self) -> str:
        ends = "a derivative of its own is zero there, maybe a surrogate"
        if self.ends:
            more = ", ..." if len(self.ends) > 3 else ""
            ends = f"derivatives end at {', '.join(self.ends[:3])}{more}"
        return (
            f"moves the loss, with gradient zero ({self.numbers} of {self.size} "
            f"numbers, by {self.moved:.1e}): {ends}"
        )


def slopes(
    losses: "Losses", params: Sequence[Array], gradient: Sequence[Array]
) -> list[tuple[float, float, float]]:
    """By parameter, the slope of the loss along a random direction: by differences of
    losses, by the gradient, and what rounding alone may make of the former."""
    result = []
    for n, (param, slope) in enumerate(zip(params, gradient, strict=True)):
        direction = _direction(param, n)
        found, rounding = _slope(losses.along(n, direction)(_BOTH))
        result.append((found, float(jnp.sum(slope * direction).real), rounding))
    return result


def missed(
    losses: "Losses", params: Sequence[Array], gradient: Sequence[Array], graph: Graph
) -> list[Missed | None]:
    """By parameter, what moves the loss though its gradient is zero."""
    result = []
    for n, (param, slope) in enumerate(zip(params, gradient, strict=True)):
        blind = np.asarray(slope == 0)
        # A surrogate may well be zero far from the threshold: nothing is moved far, but
        # for parameters that no derivative reaches, such as what is rounded.
        scale = 1.0 if any(n in o.parameters for o in graph.occurrences) else 3.0
        moved = 0.0
        if blind.any():
            direction = np.where(blind, scale * _bounded(param, n), 0)
            # At a kink, such as relu(0), the loss has a slope to one side. That of many
            # to either side is told from a slope by moving all to the same one.
            moved = _moved(
                losses.along(n, jnp.asarray(direction, param.dtype)),
                losses.along(n, jnp.asarray(np.abs(direction), param.dtype)),
            )
        size = int(blind.sum()), blind.size
        result.append(Missed(*size, moved, ends_of(graph, n)) if moved else None)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """The loss of a sequence as a function of the parameters."""

    loss: Any
    algorithm: Any
    state: tuple
    sequence: Any

    def along(self, parameter: int, direction: Array) -> Along:
        """The losses at distances from a parameter, along a direction."""
        params = eqx.filter(self.algorithm.model, eqx.is_inexact_array)
        leaves, treedef = jax.tree.flatten(params)
        directions = [jnp.zeros_like(p) for p in leaves]
        directions[parameter] = direction
        arguments = (self.loss, self.algorithm, self.state, self.sequence)
        moving = functools.partial(_losses, treedef.unflatten(directions), *arguments)
        dtype = _real_dtype(params)
        return lambda distances: np.asarray(moving(jnp.asarray(distances, dtype)))


@eqx.filter_jit
def _losses(along: PyTree, loss, algorithm, state, sequence, distances: Array) -> Array:
    params = eqx.filter(algorithm.model, eqx.is_inexact_array)
    held = jnp.zeros(sequence.length, bool)

    def at(distance: Array) -> Array:
        moved = jax.tree.map(
            lambda p, d: p + distance.astype(p.dtype) * d, params, along
        )
        return value(moved, loss, algorithm, state, sequence, held)

    return lax.map(at, distances)


def _moved(losses_at: Along, to_one_side: Along) -> float:
    """By how much a loss moves, 0 if it neither jumps nor has a slope here."""
    losses = losses_at(_BOTH)
    has_slope = _has_slope(losses) and _has_slope(to_one_side(_BOTH))
    if not (has_slope or _jumps(losses_at, losses)):
        return 0.0
    moved = np.abs(losses.astype(float) - float(losses[len(_DISTANCES)]))
    return float(moved[np.isfinite(moved)].max(initial=0.0))


def _has_slope(losses: np.ndarray) -> bool:
    """Whether the loss has a slope in the middle, the same to both sides."""
    slopes, rounding, best = _differences(losses)
    back, here, forth = _sides(losses)
    bend = np.abs(forth - 2 * here + back) / (2 * _DISTANCES)
    # A loss is the sum of many operations, each with a rounding error.
    certain = np.abs(slopes) > 1000 * rounding
    return bool((certain & (bend < 0.1 * np.abs(slopes)))[best:].any())


def _slope(losses: np.ndarray) -> tuple[float, float]:
    """The slope in the middle, and its rounding error."""
    slopes, rounding, best = _differences(losses)
    chosen = slice(best, best + 2)
    return float(slopes[chosen].mean()), float(rounding[chosen].max())


def _differences(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(slopes, their rounding errors, the best of them), from far to near.

    Those two neighbours count that agree best; which, does not depend on the gradient.
    """
    back, _, forth = _sides(losses)
    slopes = (forth - back) / (2 * _DISTANCES)
    largest = np.maximum(np.abs(forth), np.abs(back))
    rounding = _last_digit(losses) * largest / _DISTANCES
    gaps = np.abs(np.diff(slopes)) + rounding[1:]
    return slopes, rounding, int(np.argmin(np.where(np.isfinite(gaps), gaps, np.inf)))


def _jumps(losses_at: Along, losses: np.ndarray) -> bool:
    """Whether a loss is not continuous: where it moves most it does so however close
    one looks."""
    distances, first = _BOTH, 0.0
    for turn in range(_ROUNDS):
        gaps = np.abs(np.diff(losses.astype(float)))
        gaps = np.where(np.isfinite(gaps), gaps, 0.0)
        steepest = int(np.argmax(gaps))
        if turn == 0:
            first = gaps[steepest]
            if first <= 1000 * _last_digit(losses) * np.nanmax(np.abs(losses)):
                return False
        start, stop = distances[steepest], distances[steepest + 1]
        distances = np.linspace(start, stop, len(_BOTH))
        losses = losses_at(distances)
    gaps = np.abs(np.diff(losses.astype(float)))
    return bool(np.nanmax(gaps) > 0.01 * first)


def _last_digit(losses: np.ndarray) -> float:
    return float(jnp.finfo(losses.dtype).eps)


def _sides(losses: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Losses behind, here, and before, from the farthest to the nearest."""
    n, exact = len(_DISTANCES), losses.astype(float)
    return exact[:n], float(exact[n]), exact[:n:-1]


def _direction(param: Array, seed: int) -> Array:
    """Random, of the size of the parameter."""
    rng, given = np.random.default_rng(seed), np.asarray(param)
    found = rng.normal(size=given.shape)
    if np.iscomplexobj(given):
        found = found + 1j * rng.normal(size=given.shape)
    return jnp.asarray(_size(given) * found, param.dtype)


def _bounded(param: Array, seed: int) -> np.ndarray:
    """Random signs, and no number larger than the parameter is on average."""
    rng, given = np.random.default_rng(seed), np.asarray(param)
    signs = rng.choice([-1.0, 1.0], size=given.shape)
    return _size(given) * signs * rng.uniform(0.5, 1, size=given.shape)


def _size(given: np.ndarray) -> float:
    squares = np.abs(given).astype(float) ** 2
    return (float(np.sqrt(squares.mean())) if given.size else 0.0) or 0.1


def _real_dtype(params: PyTree) -> Any:
    """A real dtype that holds distances along all parameters."""
    leaves = [jnp.finfo(p.dtype).dtype for p in jax.tree.leaves(params)]
    return jnp.result_type(*leaves)
