"""How much of a group's own recurrence the local derivatives include.

The local rules cut it: gradients stop where the state enters an operation that leads
back to it. Some rules keep each neuron's own entry, or put a number in place of the
whole derivative of the state by the state.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .._program.evaluate import Value, mapped, take
from .._program.forms import LinearForm, linear_form
from .._program.ir import Equation, Var
from .._program.labels import BLOCKED, MIXED, UNSET
from .._program.operations import Operations
from .._program.primitive import Kind
from .exits import Exits
from .positions import Positions


@dataclasses.dataclass(frozen=True, eq=False)
class Diagonal:
    """The entries of one mixing operation that lead from a position to itself.

    `sources` say for each element of the result which element of operand `j` lies at
    its position, UNSET if none; one array for each that does. `entries` gives the
    derivatives there, from the operands.
    """

    j: int
    sources: tuple[np.ndarray, ...]
    entries: Callable[..., Sequence[Array]]

    def apply(self, known: Value, operands: list[Value]) -> Value:
        """The known result, as a function of the state by the entries alone."""
        state = operands[self.j]
        moving = state.array.reshape(len(state.array), -1)
        moving = moving - lax.stop_gradient(moving)
        held = [Value(lax.stop_gradient(o.array), o.depth) for o in operands]
        held[self.j] = Value(
            held[self.j].array[0], 0
        )  # the entries do not depend on it
        entries = mapped(self.entries, held)(*(o.array for o in held))
        total = known.array
        for source, entry in zip(self.sources, entries, strict=True):
            entry = entry if entry.ndim == 2 else entry[None]
            part = jnp.where(source >= 0, entry * take(moving, source), 0)
            total = total + part.reshape(total.shape)
        return Value(total, known.depth)


def check_single(positions: Positions, names: Sequence[str]) -> None:
    """Raises a ValueError if a group has more than one number a position."""
    for g in positions.groups:
        if g.components > 1:
            leaves = ", ".join(names[i] for i in g.leaves)
            raise ValueError(
                "The rule's leak stands for the derivative of one number per neuron by "
                f"itself, but the model's state has {g.components} that depend on each "
                f"other: {leaves}. Use a rule that follows the neuron's own dynamics, "
                "such as DRTRL or EProp, or exclude leaves by hidden_filter."
            )


def find_diagonals(
    operations: Operations,
    positions: Positions,
    exits: Exits,
    moving: Collection[Var],
) -> Mapping[int, Diagonal] | None:
    """By equation, the own entries of every recurrence.

    None if one is more than a product of the state with something else. `moving` are
    the values that depend on the state.
    """
    result = {}
    for (i, j), label in exits.closed.items():
        equation = operations.program.equations[i]
        if operations.kinds[i] is not Kind.MIXING:
            continue  # a value that was cut does not lead to its own position
        flows = _flows(positions, equation, label)
        form = None
        if len(equation.inputs) == 2 and equation.inputs[1 - j] not in moving:
            form = linear_form(equation, 1 - j)
        if form is None or flows is None or i in result:
            return None
        result[i] = _diagonal(equation, j, form, label, flows)
    return result


def _flows(
    positions: Positions, equation: Equation, label: np.ndarray
) -> np.ndarray | None:
    """The position each element of the result flows into; None if there are several,
    or if another mixing operation lies between."""
    result = np.full(equation.outputs[0].shape, UNSET)
    for g in np.unique(positions.group_of(label[label >= 0])):
        flows = positions.backward[g].get(equation.outputs[0], result)
        several = (flows >= 0) & (result >= 0)
        if (several | (flows == BLOCKED) | (flows == MIXED)).any():
            return None
        result = np.where(flows >= 0, flows, result)
    return result


def _diagonal(
    equation: Equation, j: int, form: LinearForm, label: np.ndarray, flows: np.ndarray
) -> Diagonal:
    b, _, o, c = form.sizes
    with jax.ensure_compile_time_eval():
        numbers = jnp.arange(1.0, label.size + 1).reshape(label.shape)
        operands = [numbers, jnp.zeros(equation.inputs[1 - j].shape)]
        x = form.local_input(*(operands if j == 0 else operands[::-1]))
        element = np.rint(np.asarray(x)).astype(int) - 1  # of the state, [b, p, c]
    at_x = np.where(element >= 0, label.reshape(-1)[element], UNSET)
    at_z = np.asarray(form.canonical(flows))  # [b, p, o]
    same = (at_z[..., None] == at_x[:, :, None]) & (at_z[..., None] >= 0)
    columns = _occurrences(same)  # [number, b, p, o], the index c
    # From canonical to the result's own order.
    order = np.asarray(form.canonical(np.arange(flows.size).reshape(flows.shape)))
    back = np.argsort(order.reshape(-1))
    kept = np.maximum(columns, 0)
    found = [np.take_along_axis(element, n.reshape(*n.shape[:2], -1), -1) for n in kept]
    sources = tuple(
        np.where(n >= 0, x, UNSET).reshape(-1)[back] for n, x in zip(columns, found)
    )

    def entries(*operands: Array) -> list[Array]:
        weight = form.canonical_weight(operands[1 - j])
        blocks = np.arange(b)[:, None, None]
        return [weight[blocks, np.arange(o), n].reshape(-1)[back] for n in kept]

    return Diagonal(j, sources, entries)


def _occurrences(same: np.ndarray) -> np.ndarray:
    """Indices along the last axis where `same` holds: the first, the second, …"""
    order = np.argsort(~same, axis=-1, kind="stable")
    counts = same.sum(axis=-1)
    most = np.arange(counts.max(initial=0))
    taken = np.where(most < counts[..., None], order[..., : len(most)], UNSET)
    return np.moveaxis(taken, -1, 0)
