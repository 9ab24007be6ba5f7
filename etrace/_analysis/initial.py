"""The initial state as a function of the parameters: a site of the first step.

A learnt initial state h_0 = φ(θ) enters the first step as if it were added there,

    h  =  h_given + select(first, φ(θ) - stop_gradient(φ(θ)), 0)

which is h_given, whatever that is, with the gradient of φ. So it is a weight that is
used element by element like any other: "now" takes its gradient through every path of
the first step, its trace begins as ∂h_1/∂h_0 along local paths, and moves by D alone,
since `first` is False from then on. Only leaves in which there is a parameter are
changed: a model without them has the program that it wrote.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._model import Call, Initial
from .._program.ir import Program
from .._program.trace import trace_program


def find_initial(call: Call, constants: Sequence[np.ndarray | None]) -> Initial:
    """What `init_state` makes of the parameters.

    `constants` are the values of the model's constant arrays where they are known.
    """
    params = call.params.leaves
    arrays = [*params, *call.consts.leaves]
    try:
        forward = trace_program(lambda *arrays: _inexact(call, arrays), arrays)
        read = _read(forward, len(params))
        return _dependences(call, forward, read) if read else Initial()
    except Exception as error:  # whatever a function of the user's may raise
        what = str(error).strip().splitlines() or [""]
        found = Initial(error=f"{type(error).__name__}: {what[0]}")
    # A constant may have to be known, such as a size: does that leave any parameter?
    if any(c is None for c in constants):
        return found
    known = lambda *params: _inexact(call, (*params, *constants))  # noqa: E731
    try:
        forward = trace_program(known, params)
    except Exception:
        return found
    return found if _read(forward, len(params)) else Initial()


def _read(forward: Program, number: int) -> tuple[int, ...]:
    """Which of so many parameters are read."""
    reading = {v for e in forward.equations for v in e.inputs} | {*forward.outputs}
    return tuple(p for p, v in enumerate(forward.inputs[:number]) if v in reading)


def _dependences(call: Call, forward: Program, read: tuple[int, ...]) -> Initial:
    """JAX says what depends on what: of its derivative it leaves out what is zero."""
    number, total = len(call.params.leaves), len(forward.inputs)

    def pulled(*arrays: Array) -> Sequence[Array]:
        """The cotangents of the parameters, from arrays and cotangents of the state."""
        params, consts = arrays[:number], arrays[number:total]
        _, pull = jax.vjp(lambda *params: _inexact(call, (*params, *consts)), *params)
        return pull(list(arrays[total:]))

    given = (*forward.inputs, *forward.outputs)
    back = trace_program(
        pulled, [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in given]
    )
    flows = [back.reached_from([v]) for v in back.inputs[total:]]
    into = [{p for p, v in enumerate(back.outputs) if v in flow} for flow in flows]
    hidden = len(call.hidden.leaves)
    return Initial(
        tuple(k for k, params in enumerate(into[:hidden]) if params),
        tuple(sorted(set().union(*into[hidden:]))),
        read,
    )


def _inexact(call: Call, arrays: Sequence[Any]) -> list[Array]:
    """The hidden leaves of the initial state, and what else may be differentiated."""
    number = len(call.params.leaves)
    params = call.params.treedef.unflatten(arrays[:number])
    consts = call.consts.treedef.unflatten(arrays[number:])
    hidden, other = map(jax.tree.leaves, call.initial_state(params, consts))
    return hidden + [x for x in other if jnp.issubdtype(x.dtype, jnp.inexact)]


def step_from_initial(
    call: Call,
    params: PyTree,
    consts: PyTree,
    hidden: PyTree,
    carried: PyTree,
    inputs: tuple[PyTree, ...],
) -> tuple[PyTree, PyTree, PyTree]:
    """`Call.step`, with the gradient of `init_state` if the step is the first:
    (outputs, hidden, carried) of the next step."""
    if not call.initial.hidden:
        return call.step(params, consts, hidden, carried, inputs)
    other, first = carried
    leaves = jax.tree.leaves(hidden)
    initial = jax.tree.leaves(call.initial_state(params, consts)[0])
    for k in call.initial.hidden:
        leaves[k] = leaves[k] + _gradient_alone(initial[k], first)
    hidden = call.hidden.treedef.unflatten(leaves)
    outputs, hidden, other = call.step(params, consts, hidden, other, inputs)
    return outputs, hidden, (other, jnp.zeros_like(first))


def _gradient_alone(initial: Array, first: Bool[Array, ""]) -> Array:
    """Zero, with the gradient of an initial state where it is the first step's."""
    # An infinity that is left to itself would be a NaN.
    zeros: Any = jnp.zeros_like(initial)
    finite = jnp.where(jnp.isfinite(initial), initial, zeros)
    return lax.select(first, finite - lax.stop_gradient(finite), zeros)
