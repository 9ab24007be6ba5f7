"""What a mixing operation keeps apart.

A sum over one axis, a product with batch dimensions, a sort of every row: positions
talk to each other there, but not across the other axes. Elements of one operand and of
the results fall into *blocks*; an element of a result depends on the elements of its
own block alone. An operation of which nothing is known is one block.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from .ir import Equation
from .labels import LABEL, scattered

# Pairs of an axis of the operand and the axis of every result that runs along it.
Axes = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The block of each element of an operand, and of each result."""

    count: int
    operand: np.ndarray
    results: tuple[np.ndarray, ...]

    def joined(self, labels: np.ndarray) -> np.ndarray:
        """What labels of the operand say together, in each block."""
        return scattered(labels, self.operand, self.count)

    def to_operand(self, of_blocks: np.ndarray) -> np.ndarray:
        """Something of each block, at the elements of the operand."""
        return np.asarray(of_blocks[self.operand])

    def to_results(self, of_blocks: np.ndarray) -> list[np.ndarray]:
        """Something of each block, at the elements of the results."""
        return [np.asarray(of_blocks[r]) for r in self.results]


def find_blocks(equation: Equation, j: int, known: Callable) -> Blocks | None:
    """The blocks of operand j; None if all is one block.

    `known` gives the value of an operand that follows from constants alone, or None.
    """
    primitive = equation.primitive
    if primitive.blocks is not None:
        return primitive.blocks(equation, j, known)
    axes = () if primitive.axes is None else primitive.axes(equation, j)
    return by_axes(equation, j, axes)


def by_axes(equation: Equation, j: int, axes: Axes) -> Blocks | None:
    """The blocks of operand j along some of its axes; None if all is one block."""
    shape = equation.inputs[j].shape
    sizes = [shape[a] for a, _ in axes]
    if math.prod(sizes) == 1 and len(axes) < max(len(shape), 1):
        return None
    return Blocks(
        math.prod(sizes),
        _numbers(sizes, [a for a, _ in axes], shape),
        tuple(_numbers(sizes, [b for _, b in axes], v.shape) for v in equation.outputs),
    )


def first_labels(labels: np.ndarray, blocks: Blocks) -> np.ndarray:
    """One of the labels in each block, -1 where there is none."""
    none = np.iinfo(LABEL).max
    low = np.full(blocks.count, none, LABEL)
    set_ = labels >= 0
    np.minimum.at(low, blocks.operand[set_], labels[set_])
    return np.where(low == none, -1, low)


def _numbers(sizes: Sequence[int], axes: Sequence[int], shape: tuple[int, ...]):
    """The number of the block at each element, [*shape]."""
    order = np.argsort(axes)
    numbers = np.arange(math.prod(sizes), dtype=LABEL).reshape(sizes).transpose(order)
    kept = [n if d in axes else 1 for d, n in enumerate(shape)]
    return np.broadcast_to(numbers.reshape(kept), shape)
