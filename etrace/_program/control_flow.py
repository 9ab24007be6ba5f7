"""What a loop, or a function with a derivative of its own, keeps apart.

Each axis of an operand is numbered, and the numbers are run through the body: of a
loop its round, of a function with a derivative of its own that derivative. An axis is
kept where no value of the body meets another number of it than its own; around a loop,
the numbers that come back must be those that went in.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from .blocks import Blocks
from .custom import inexact, pushforward
from .ir import Equation, Program
from .jaxprs import Loop
from .labels import MIXED, UNSET, Labels, joined


def find_body_blocks(equation: Equation, j: int, classify: Callable) -> Blocks | None:
    """The blocks of operand j of an equation with a body; None if all is one block.

    `classify` makes `Operations` of a program.
    """
    entered = _entered(equation, j)
    if entered is None:
        return None
    walk = functools.partial(walked, classify(entered[0]))
    return blocks_along(equation, j, lambda x: _around(equation, entered, x, walk))


def blocks_along(
    equation: Equation, j: int, through: Callable[[np.ndarray], Any]
) -> Blocks | None:
    """The blocks of operand j, by the axes whose numbers keep apart.

    `through` takes numbers of the operand to those of the results, UNSET where they
    depend on none of it, or to None if different ones meet.
    """
    shape, kept, found = equation.inputs[j].shape, [], []
    for axis, size in enumerate(shape):
        along = [-1 if d == axis else 1 for d in range(len(shape))]
        results = through(np.broadcast_to(np.arange(size).reshape(along), shape))
        if results is not None:
            kept.append(axis)
            found.append(results)
    sizes = [shape[a] for a in kept]
    if math.prod(sizes) == 1 and len(kept) < len(shape):
        return None
    strides = [math.prod(sizes[n + 1 :]) for n in range(len(sizes))]
    index = np.indices(shape)
    own = sum((s * index[a] for s, a in zip(strides, kept)), np.zeros(shape, int))
    return Blocks(
        math.prod(sizes) + 1,
        own,
        tuple(
            _numbered([r[n] for r in found], strides, v.shape, math.prod(sizes))
            for n, v in enumerate(equation.outputs)
        ),
    )


def keeps_positions(
    equation: Equation, weights: Collection[int], classify: Callable, most: int
) -> bool:
    """Whether all that a loop carries, and the `weights` among its operands, is kept
    apart in the same way: position by position, of no more than `most` numbers each.
    """
    assert equation.loop is not None
    first = equation.loop.constants + equation.loop.carry
    counts = set()
    for j, v in enumerate(equation.inputs):
        carried = equation.loop.constants <= j < first
        if not v.inexact or not v.size:
            continue
        blocks = find_body_blocks(equation, j, classify)
        if blocks is None:
            return False
        rounds = v.shape[0] if j >= first else 1
        if v.size > rounds * (blocks.count - 1) * most:
            return False
        if carried or j in weights:
            counts.add(blocks.count)
    return len(counts) == 1


def is_elementwise(equation: Equation, classify: Callable) -> bool:
    """Whether the derivative of a function, with one of its own, is element by element.

    Of operands that it broadcasts, the axes that they have stay apart.
    """
    shape = equation.outputs[0].shape
    for j, v in enumerate(equation.inputs):
        if not v.inexact or v.shape == shape == ():
            continue
        entered = _entered(equation, j)
        if entered is None:
            return False
        if v.shape == ():
            continue
        own = np.arange(v.size).reshape(v.shape)
        walk = functools.partial(walked, classify(entered[0]))
        results = _around(equation, entered, own, walk)
        if results is None:
            return False
        own = np.broadcast_to(own, shape)
        if not all(((r == own) | (r == UNSET)).all() for r in results):
            return False
    return True


def _entered(equation: Equation, j: int) -> tuple[Program, int] | None:
    """The program that operand j goes through, and as which of its inputs."""
    if equation.has_own_derivative:
        moving, derivative = inexact(equation), pushforward(equation)
        if derivative is None or j not in moving:
            return None
        return derivative, len(equation.inputs) + moving.index(j)
    own = j - (equation.loop.conditions if equation.loop else 0)
    return None if equation.body is None or own < 0 else (equation.body, own)


def _numbered(found: list, strides: list[int], shape: tuple[int, ...], none: int):
    """Block numbers of a result; what depends on nothing is a block of its own."""
    total, missing = np.zeros(shape, int), np.zeros(shape, bool)
    for numbers, stride in zip(found, strides):
        total = total + stride * numbers
        missing |= numbers == UNSET
    return np.where(missing, none, total)


def _around(
    equation: Equation,
    entered: tuple[Program, int],
    numbers: np.ndarray,
    walk: Callable,
):
    """The numbers of all results, or None if they meet others than their own."""
    (body, own), loop = entered, equation.loop or Loop(0, 0, 0)
    first = loop.constants + loop.carry
    if equation.loop and own >= first:  # one step of what the loop reads
        if (numbers != numbers[:1]).any():
            return None
        numbers = numbers[0]
    labels = {body.inputs[own]: numbers}
    while True:
        results = walk(labels)
        if results is None:
            return None
        carry = zip(body.inputs[loop.constants : first], results[: loop.carry])
        before = dict(labels)
        for v, out in carry:
            both = joined([labels.get(v, np.full(v.shape, UNSET)), out])
            if (both == MIXED).any():
                return None
            labels[v] = both
        if all(v in before and (before[v] == x).all() for v, x in labels.items()):
            shapes = [v.shape for v in equation.outputs]
            return [np.broadcast_to(r, s) for r, s in zip(results, shapes)]


def walked(operations: Any, labels: Labels) -> list[np.ndarray] | None:
    """The numbers of the outputs of a body; None if one has several."""
    outputs, found = operations.program.outputs, operations.carried(labels)
    results = [found.get(v, np.full(v.shape, UNSET)) for v in outputs]
    return None if any((r == MIXED).any() for r in results) else results
