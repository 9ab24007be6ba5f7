"""The exact gradient of a sequence by plain reverse mode, and what tests it.

Nothing of the analysis is used: the model's own step in one `lax.scan`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._check_sequence import Sequence
from .._model import split_model
from .._start import Start

# Differences of losses are formed at these distances, relative to the parameter.
_DISTANCES = 10.0 ** -np.arange(1, 7.5, 0.5)


@eqx.filter_jit
def bptt(loss, algorithm, state: tuple, sequence: Sequence, held: Array) -> PyTree:
    """(value, gradient). `held`, [time]: before which steps the past is cut off; before
    the first one, that is the initial state."""
    params = eqx.filter(algorithm.model, eqx.is_inexact_array)
    fun = lambda params: _value(params, loss, algorithm, state, sequence, held)  # noqa: E731
    return jax.value_and_grad(fun)(params)


def _value(params, loss, algorithm, state, sequence, held):
    _, consts, _ = split_model(algorithm.model)
    hidden, other = _beginning(params, algorithm, state)
    step = state[2].graph.call.step
    if algorithm.batched:
        step = jax.vmap(step, (None, None, 0, 0, 0))

    def advance(carry: PyTree, now: tuple) -> tuple[PyTree, PyTree]:
        inputs, cut = now
        carry = jax.tree.map(lambda x: _cut(x, cut), carry)
        outputs, *carry = step(params, consts, *carry, inputs)
        return tuple(carry), outputs

    _, outputs = lax.scan(advance, (hidden, other), (sequence.inputs, held))
    losses, _ = loss.losses(outputs, sequence)
    return loss.scale(jnp.sum(losses), sequence)


def _beginning(params: PyTree, algorithm, state: tuple) -> tuple[PyTree, PyTree]:
    """(hidden, other) before the first step, made anew of the parameters.

    `state` is what was made of them before, and stays where JAX cannot trace how.
    """
    hidden, other, trace = state
    if trace.graph.call.initial.error:
        return hidden, other
    rest = eqx.filter(algorithm.model, eqx.is_inexact_array, inverse=True)
    algorithm = algorithm.with_model(eqx.combine(params, rest))
    batch = len(jax.tree.leaves(hidden)[0]) if algorithm.batched else None
    hidden, other, _ = Start.of(algorithm, trace.graph).state(batch)
    return hidden, other


def _cut(x: Array, cut: Array) -> Array:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.where(cut, lax.stop_gradient(x), x) if inexact else x


def slopes(loss, algorithm, state: tuple, sequence: Sequence, gradient: PyTree):
    """By parameter, the slope of the loss along a random direction: by differences of
    losses, by the gradient, and what rounding alone may make of the former.

    Of the differences at several distances those two neighbours count that agree best;
    which, does not depend on the gradient.
    """
    leaves, treedef = jax.tree.flatten(gradient)
    params = jax.tree.leaves(eqx.filter(algorithm.model, eqx.is_inexact_array))
    result = []
    for n, (param, slope) in enumerate(zip(params, leaves)):
        direction = _direction(param, n)
        along = [
            direction if m == n else jnp.zeros_like(p) for m, p in enumerate(params)
        ]
        arguments = (treedef.unflatten(along), loss, algorithm, state, sequence)
        found, rounding = np.asarray(_differences(*arguments), float)
        gaps = np.abs(np.diff(found)) + rounding[1:]
        best = int(np.argmin(np.where(np.isfinite(gaps), gaps, np.inf)))
        expected = float(jnp.sum(slope * direction).real)
        chosen = slice(best, best + 2)
        result.append((float(found[chosen].mean()), expected, rounding[chosen].max()))
    return result


def _direction(param: Array, seed: int) -> Array:
    """Random, of the size of the parameter."""
    rng, given = np.random.default_rng(seed), np.asarray(param)
    found = rng.normal(size=given.shape)
    if np.iscomplexobj(given):
        found = found + 1j * rng.normal(size=given.shape)
    size = np.sqrt((np.abs(given).astype(float) ** 2).mean()) if given.size else 0.0
    return jnp.asarray((size or 0.1) * found, param.dtype)


@eqx.filter_jit
def _differences(along: PyTree, loss, algorithm, state, sequence) -> Array:
    params = eqx.filter(algorithm.model, eqx.is_inexact_array)
    held = jnp.zeros(sequence.length, bool)

    def at(distance: Any) -> Array:
        moved = jax.tree.map(
            lambda p, d: p + distance.astype(p.dtype) * d, params, along
        )
        return _value(moved, loss, algorithm, state, sequence, held)

    def slope(distance: Array) -> tuple[Array, Array]:
        forth, back = at(distance), at(-distance)
        last_digit = jnp.finfo(forth.dtype).eps * jnp.maximum(abs(forth), abs(back))
        return (forth - back) / (2 * distance), last_digit / distance

    return jnp.stack(lax.map(slope, jnp.asarray(_DISTANCES, _real_dtype(params))))


def _real_dtype(params: PyTree) -> Any:
    """A real dtype that holds distances along all parameters."""
    leaves = [jnp.finfo(p.dtype).dtype for p in jax.tree.leaves(params)]
    return jnp.result_type(*leaves)
