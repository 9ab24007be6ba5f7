"""What a mixing node keeps apart, found by differentiating it.

Elements of one operand and of the result fall into blocks: two elements of which one
depends on the other are in one block. A sum over the first axis has a block a column.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .tape import Node

NONE = -1  # no position


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The block of each element, flat, of an operand and of the result."""

    operand: np.ndarray
    result: np.ndarray

    @property
    def apart(self) -> bool:
        """Whether there is more than one."""
        return len(np.unique(self.operand)) > 1

    @property
    def count(self) -> int:
        return 1 + max(*self.operand, *self.result)


_found: dict[tuple, Blocks] = {}


def blocks(node: Node, j: int) -> Blocks:
    """The same for all nodes of one key."""
    if (node.key, j) not in _found:
        _found[node.key, j] = _blocks(node, j)
    return _found[node.key, j]


def _blocks(node: Node, j: int) -> Blocks:
    v, out = node.inputs[j], node.output
    if node.whole or not (v.inexact and out.inexact):
        return Blocks(np.zeros(v.size, int), np.zeros(out.size, int))
    depends = np.zeros((out.size, v.size), bool)
    jacobian = jax.jit(jax.jacrev(node.fun, j))
    # Each element is the largest once, and the smallest: of which an extremum depends.
    for trial in range(3 + 2 * v.size):
        generator = np.random.default_rng(trial)
        operands = [
            jnp.asarray(generator.normal(size=x.shape), x.dtype)
            if x.inexact
            else jnp.full(x.shape, trial % 2, x.dtype)
            for x in node.inputs
        ]
        element, sign = divmod(trial - 3, 2)
        if element >= 0:
            moved = operands[j].reshape(-1).at[element].add(9.0 * (-1) ** sign)
            operands[j] = moved.reshape(v.shape)
        try:
            found = np.asarray(jacobian(*operands))
        except ValueError:  # a loop without a derivative in reverse
            depends[:] = True
            break
        depends |= found.reshape(depends.shape) != 0
    number = np.arange(v.size)
    while True:  # the smallest number spreads through what is connected
        reached = np.where(depends, number, v.size).min(1, initial=v.size)
        through = np.where(depends, reached[:, None], v.size).min(0, initial=v.size)
        new = np.minimum(number, through)
        if (new == number).all():
            break
        number = new
    # What depends on nothing is a block of its own.
    _, numbers = np.unique([*number, *reached], return_inverse=True)
    return Blocks(*np.split(numbers, [v.size]))


def label_of_block(blocks: Blocks, label: np.ndarray) -> np.ndarray | None:
    """The one position in each block of an operand, NONE where there is none; None if
    a block has several, or if there is one block only."""
    if not blocks.apart:
        return None
    found = np.full(blocks.count, NONE)
    for block, position in zip(blocks.operand, label.reshape(-1)):
        if position != NONE and found[block] not in (NONE, position):
            return None
        found[block] = max(found[block], position)
    return found


def joined(blocks: Sequence[int], rows: np.ndarray, count: int) -> np.ndarray:
    """Rows of truth values, joined by block."""
    found = np.zeros((count, rows.shape[1]), bool)
    np.logical_or.at(found, blocks, rows)
    return found
