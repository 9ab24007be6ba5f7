"""The exact gradient of a sequence by plain reverse mode, and what tests it.

Nothing of the analysis is used: the model's own step in one `lax.scan`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._axes import examples_in
from .._check_sequence import Sequence
from .._model import split_model
from .._start import Start


@eqx.filter_jit
def bptt(loss, algorithm, state: tuple, sequence: Sequence, held: Array) -> PyTree:
    """(value, gradient). `held`, [time]: before which steps the past is cut off; before
    the first one, that is the initial state."""
    params = eqx.filter(algorithm.model, eqx.is_inexact_array)
    fun = lambda params: value(params, loss, algorithm, state, sequence, held)  # noqa: E731
    return jax.value_and_grad(fun)(params)


def value(
    params: PyTree, loss, algorithm, state: tuple, sequence: Sequence, held: Array
) -> Array:
    """The loss of a sequence, for some parameters."""
    _, consts, _ = split_model(algorithm.model)
    hidden, other = _beginning(params, algorithm, state)
    step = state[2].graph.call.step
    if algorithm.batched:
        in_axes = (None, None, 0, 0, 0)
        step = jax.vmap(step, in_axes, axis_name=algorithm.axis_name)

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
    batch = examples_in(state[:2]) if algorithm.batched else None
    hidden, other, _ = Start.of(algorithm, trace.graph).state(batch)
    return hidden, other


def _cut(x: Array, cut: Array) -> Array:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return jnp.where(cut, lax.stop_gradient(x), x) if inexact else x
