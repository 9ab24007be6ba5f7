"""What the solution of linear equations keeps apart.

Of `A x = b`, JAX has the derivative by

    dx = A^-1 (db - dA x)

So an element of b goes through the solution, and one of A through the product and then
the solution. How the solution is found (by factors of A, by iteration) has no
derivative.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from .blocks import Blocks
from .control_flow import blocks_along, walked
from .ir import Equation, Var
from .jaxprs import linear_solve
from .labels import UNSET
from .trace import trace_program


def find_solve_blocks(equation: Equation, j: int, classify: Callable) -> Blocks | None:
    """The blocks of operand j of a `custom_linear_solve`; None if all is one block.

    `classify` makes `Operations` of a program.
    """
    product, solution, (of_product, transposed, of_solution, last) = linear_solve(
        equation.params
    )
    constants = of_product + transposed + of_solution + last
    right = equation.inputs[constants:]
    own = equation.inputs[of_product + transposed : constants - last]
    solve = classify(trace_program(solution, _structs([*own, *right])))
    inner = solve.program.inputs[of_solution:]

    def solved(numbers: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        return walked(solve, dict(zip(inner, numbers, strict=True)))

    if j >= constants:
        nothing = [np.full(v.shape, UNSET) for v in right]

        def of_right(numbers: np.ndarray) -> list[np.ndarray] | None:
            k = j - constants
            return solved([*nothing[:k], numbers, *nothing[k + 1 :]])

        return blocks_along(equation, j, of_right)
    if j >= of_product:
        nothing = [np.full(v.shape, UNSET) for v in equation.outputs]
        return blocks_along(equation, j, lambda _: nothing)
    read = [*equation.inputs[:of_product], *right]
    multiply = classify(trace_program(product, _structs(read)))

    def of_matrix(numbers: np.ndarray) -> list[np.ndarray] | None:
        found = walked(multiply, {multiply.program.inputs[j]: numbers})
        return None if found is None else solved(found)

    return blocks_along(equation, j, of_matrix)


def _structs(values: Sequence[Var]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
