"""Positions that hold several elements of one leaf.

Compartments of a neuron, receptors of its synapses, what travels down its delay line: a
leaf `[neurons, C]` whose elements meet along C, and never across neurons, has neurons
for positions and C numbers in each. Which axes lie inside is seen from the meetings
that no position can hold as long as every element is one of its own.

A position of more than `position_size` numbers of one leaf is a network of its own:
there credit is cut, because a trace of every number by every weight would cost as much
as RTRL does.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ._blocks import first_labels
from ._kinds import Kind
from ._partition import joined
from ._positions import Positions
from ._primitives import Primitives
from ._program import Edge, Var

Pairs = tuple[np.ndarray, np.ndarray]
Place = Edge | int  # an operand, or a new leaf


@dataclasses.dataclass(frozen=True, eq=False)
class InnerAxes:
    """The axes that lie inside positions, by hidden leaf.

    `too_large`: where positions would have more numbers of a leaf than they may, how
    many.
    """

    axes: Mapping[int, set[int]]
    too_large: Mapping[Place, int]


def inner_axes(
    primitives: Primitives,
    positions: Positions,
    old: Sequence[Var],
    new: Sequence[Var],
    numbers: Sequence[int],
    most: int,
) -> InnerAxes:
    """Finds them in leaves of which a position has so many `numbers` already, and may
    have `most`."""
    result: dict[int, set[int]] = {}
    too_large: dict[Place, int] = {}
    for place, pairs in _meetings(primitives, positions, new):
        found = _along(pairs, positions, old)
        sizes = [numbers[n] * _product(old[n].shape, axes) for n, axes in found.items()]
        if max(sizes, default=0) > most:
            too_large[place] = max(sizes)
            continue
        for leaf, axes in found.items():
            together = result.get(leaf, set()) | axes
            size = _product(old[leaf].shape, together)
            if size * numbers[leaf] > most:
                too_large[place] = size * numbers[leaf]
            elif size < old[leaf].size:
                result[leaf] = together
    return InnerAxes(result, too_large)


def _meetings(
    primitives: Primitives, positions: Positions, new: Sequence[Var]
) -> Iterator[tuple[Place, Pairs]]:
    """Positions that meet where the state acts on itself, one place after the other."""
    equations = primitives.program.equations
    for i, equation in enumerate(equations):
        if primitives.kinds[i] is Kind.MIXING:
            for j, v in enumerate(equation.inputs):
                if v in positions.forward and (i, j) not in positions.inner:
                    for pairs in _in_blocks(primitives, positions, i, j):
                        yield (i, j), pairs
    for (i, j), cut in positions.cuts.items():
        label = positions.forward[equations[i].inputs[j]]
        label = np.broadcast_to(label, cut.shape)[cut]
        others = [positions.forward.get(v) for v in equations[i].inputs]
        others += [b.get(equations[i].outputs[0]) for b in positions.backward]
        for other in others:
            if other is not None:
                yield (i, j), (label, np.broadcast_to(other, cut.shape)[cut])
    for leaf in positions.moved:
        for g in positions.groups:
            if leaf in g.leaves:
                yield leaf, (positions.forward[new[leaf]], g.labels(new)[new[leaf]])


def _in_blocks(
    primitives: Primitives, positions: Positions, i: int, j: int
) -> Iterator[Pairs]:
    """Of a mixing operation: what meets in each block, and where the block flows."""
    equation = primitives.program.equations[i]
    blocks = primitives.blocks((i, j))
    if blocks is None or blocks.count == 1:
        return
    label = positions.forward[equation.inputs[j]]
    first = first_labels(label, blocks)
    flows = [
        (block, backward[v])
        for backward in positions.backward
        for v, block in zip(equation.outputs, blocks.to_results(first))
        if v in backward
    ]
    if any((to >= 0).any() for _, to in flows):
        meeting = [(blocks.to_operand(first), label), *flows]
        a, b = ([x.reshape(-1) for x in p] for p in zip(*meeting))
        yield np.concatenate(a), np.concatenate(b)


def _along(
    pairs: Pairs, positions: Positions, old: Sequence[Var]
) -> Mapping[int, set[int]]:
    """The axes along which the elements of each leaf meet; none if they do not meet in
    this way, or all with all."""
    a, b = (x.reshape(-1) for x in pairs)
    met = (a >= 0) & (b >= 0)
    root = joined(a[met], b[met], sum(g.size for g in positions.groups))
    result = {}
    for g in positions.groups:
        for leaf, places in zip(g.leaves, g.positions):
            own = root[g.offset + places]
            axes = _varying(old[leaf].shape, own)
            if axes is None or _product(old[leaf].shape, axes) == old[leaf].size > 1:
                return {}
            result[leaf] = axes
    return {leaf: axes for leaf, axes in result.items() if axes}


def _varying(shape: tuple[int, ...], root: np.ndarray) -> set[int] | None:
    """The axes along which the elements of one class differ; None if those of several
    classes do not differ along others."""
    named = np.flatnonzero(root >= 0)
    if not named.size:
        return set()
    index = np.stack(np.unravel_index(named, shape)) if shape else np.zeros((0, 1), int)
    classes, first, own = np.unique(root[named], return_index=True, return_inverse=True)
    differ = (index != index[:, first[own.reshape(-1)]]).any(axis=1)
    kept = index[~differ]
    apart = np.unique(kept, axis=1).shape[1] if kept.size else 1
    return {int(d) for d in np.flatnonzero(differ)} if apart == len(classes) else None


def _product(shape: tuple[int, ...], axes: set[int]) -> int:
    return math.prod(shape[d] for d in axes)
