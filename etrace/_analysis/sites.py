"""Sites: the operations where a weight meets data.

Whatever the operation, it is brought to one form, linear in the weight, see
`_program.forms`. A weight used element by element (a bias, a gain, a decay) is traced
at the place where it is read, with x = 1.
"""

import dataclasses
import math

import jax.numpy as jnp

from .._program.forms import LinearForm, linear_form
from .._program.ir import Edge, Equation, Var
from .._program.operations import Operations
from .._program.primitive import Kind


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One place where a weight expression meets data.

    `direct` sites are perturbed where the weight is read, the others at the
    operation's output. Both have shape `shape`.
    """

    edge: Edge
    weight: Var
    equation: Equation
    shape: tuple[int, ...]
    form: LinearForm
    direct: bool
    elementwise: bool = False


def make_site(operations: Operations, edge: Edge) -> Site:
    """The site at `edge`; where the weight is read, if no other form is known."""
    i, j = edge
    equation = operations.program.equations[i]
    weight = equation.inputs[j]
    if operations.kinds[i] is Kind.ELEMENTWISE:
        shape = equation.outputs[0].shape
        form = _direct(weight, shape)
        return Site(edge, weight, equation, shape, form, direct=True, elementwise=True)
    if operations.kinds[i] is Kind.MOVEMENT:
        form = _direct(weight, weight.shape)
        return Site(edge, weight, equation, weight.shape, form, direct=True)
    form = linear_form(equation, j)
    if form is None:
        form = _direct(weight, weight.shape)
        return Site(edge, weight, equation, weight.shape, form, direct=True)
    return Site(edge, weight, equation, equation.outputs[0].shape, form, direct=False)


def _direct(weight: Var, shape: tuple[int, ...]) -> LinearForm:
    """A weight used element by element, shared along the axes it is broadcast over."""
    full = weight.shape or (1,) * len(shape)
    own = [d for d, (a, b) in enumerate(zip(full, shape)) if a == b]
    shared = [d for d in range(len(shape)) if d not in own]
    b, p = (math.prod(shape[d] for d in dims) for dims in (own, shared))
    return LinearForm(
        (b, p, 1, 1),
        lambda *operands: jnp.ones((b, p, 1), weight.dtype),
        lambda z: z.transpose(own + shared).reshape(b, p, 1),
        lambda w: w.reshape(weight.shape),
    )
