"""Products in a loop over time with a weight that was transposed before it.

With a batch in front, W @ x sums over the last axis of both. XLA on CPU brings W into
another order for that, at every step; with Wᵀ at hand a loop takes 0.5 (8 examples) to
0.8 (32) of the time (256 neurons, JAX 0.10; the same or less with 0.6).
"""

from collections.abc import Callable, Iterable, Mapping

import jax
from jax import lax
from jaxtyping import Array

from .._program.evaluate import Env
from .._program.ir import Equation, Program
from .._program.primitives import DOT

# With fewer examples there is nothing to gain, with fewer steps less than it costs.
_MIN_BATCH = 4
_MIN_STEPS = 8


def by_transposed_weights(
    program: Program, loop: Iterable[int], env: Env, k: int, batch: int
) -> Mapping[int, Callable]:
    """By equation of a loop, a function that gives the same for all examples at once.

    `env` holds the values from before the loop.
    """
    result = {}
    if k < _MIN_STEPS or batch < _MIN_BATCH:
        return result
    for i in loop:
        equation = program.equations[i]
        if equation.primitive is not DOT:
            continue
        for j, v in enumerate(equation.inputs):
            if v in env and not env[v].depth and equation.inputs[1 - j] not in env:
                found = _transposed(equation, j, env[v].array)
                if found is not None:
                    result[i] = found
    return result


def _transposed(equation: Equation, j: int, weight: Array) -> Callable | None:
    """The product of data with its operand `j`, unless that is in order."""
    summed, shared = map(list, equation.params["dimension_numbers"])
    free = equation.inputs[j].axes_but(shared[j], summed[j])
    order = (*shared[j], *summed[j], *free)
    if order == tuple(range(len(order))):
        return None
    weight = weight.transpose(order)
    n = len(shared[j])
    shared[j], summed[j] = tuple(range(n)), tuple(range(n, len(order) - len(free)))
    numbers = tuple(summed), tuple(shared)
    params = {**equation.params, "dimension_numbers": numbers}

    def product(data: Array) -> Array:
        operands = (weight, data) if j == 0 else (data, weight)
        return lax.dot_general_p.bind(*operands, **params)

    return lambda *operands: [jax.vmap(product)(operands[1 - j])]
