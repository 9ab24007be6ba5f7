"""Positions that hold several elements of one leaf.

Compartments of a neuron, receptors of its synapses, what travels down its delay line: a
leaf `[neurons, C]` whose elements meet along C, and never across neurons, has neurons
for positions and C numbers in each. A vector of all voltages and, behind them, all
adaptations has two. Which elements lie inside is seen from the meetings that no
position can hold as long as every element is one of its own.

A position of more than `position_size` numbers of one leaf is a network of its own:
there credit is cut, because a trace of every number by every weight would cost as much
as RTRL does.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .._program.blocks import first_labels
from .._program.ir import Edge, Var
from .._program.operations import Operations
from .._program.primitive import Kind
from .partition import connected
from .positions import Positions

Pairs = tuple[np.ndarray, np.ndarray]
Place = Edge | int  # an operand, or a new leaf


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """What lies inside positions, by hidden leaf.

    - `axes`: those along which the elements of a position differ, wherever it lies.
    - `ranks`: else, which of its position's elements each is: the first, the second...
    - `too_large`: where positions would have more numbers of a leaf than they may, how
        many.
    """

    axes: Mapping[int, set[int]]
    ranks: Mapping[int, np.ndarray]
    too_large: Mapping[Place, int]


def find_inside(
    operations: Operations,
    positions: Positions,
    old: Sequence[Var],
    new: Sequence[Var],
    numbers: Sequence[int],
    most: int,
) -> Inside:
    """Finds it in leaves of which a position has so many `numbers` already, and may
    have `most`."""
    axes: dict[int, set[int]] = {}
    ranks: dict[int, np.ndarray] = {}
    too_large: dict[Place, int] = {}
    for place, pairs, mixed in _meetings(operations, positions, new):
        along, among = _inside(pairs, positions, old, mixed)
        sizes = [numbers[n] * _product(old[n].shape, own) for n, own in along.items()]
        sizes += [numbers[n] * int(own.max() + 1) for n, own in among.items()]
        if max(sizes, default=0) > most:
            too_large[place] = max(sizes)
            continue
        for leaf, own in along.items():
            together = axes.get(leaf, set()) | own
            size = _product(old[leaf].shape, together)
            if size * numbers[leaf] > most:
                too_large[place] = size * numbers[leaf]
            elif size < old[leaf].size:
                axes[leaf] = together
        for leaf, own in among.items():
            ranks.setdefault(leaf, own)
    ranks = {leaf: own for leaf, own in ranks.items() if leaf not in axes}
    return Inside(axes, ranks, too_large)


def _meetings(
    operations: Operations, positions: Positions, new: Sequence[Var]
) -> Iterator[tuple[Place, Pairs, bool]]:
    """Positions that meet where the state acts on itself, one place after the other,
    and whether they do so in a mixing operation."""
    equations = operations.program.equations
    for i, equation in enumerate(equations):
        if operations.kinds[i] is Kind.MIXING:
            for j, v in enumerate(equation.inputs):
                if v in positions.forward and (i, j) not in positions.inner:
                    for pairs in _in_blocks(operations, positions, new, i, j):
                        yield (i, j), pairs, True
    for (i, j), cut in positions.cuts.items():
        label = positions.forward[equations[i].inputs[j]]
        label = np.broadcast_to(label, cut.shape)[cut]
        others = [positions.forward.get(v) for v in equations[i].inputs]
        others += [b.get(equations[i].outputs[0]) for b in positions.backward]
        for other in others:
            if other is not None:
                pairs = label, np.broadcast_to(other, cut.shape)[cut]
                yield (i, j), pairs, False
    for leaf in positions.moved:
        for g in positions.groups:
            if leaf in g.leaves:
                pairs = positions.forward[new[leaf]], g.labels(new)[new[leaf]]
                yield leaf, pairs, False


def _in_blocks(
    operations: Operations, positions: Positions, new: Sequence[Var], i: int, j: int
) -> Iterator[Pairs]:
    """Of a mixing operation: what meets in each block, and where the block flows."""
    equation = operations.program.equations[i]
    blocks = operations.blocks((i, j))
    if blocks is None or blocks.count == 1:
        return
    label = positions.forward[equation.inputs[j]]
    first = first_labels(label, blocks)
    meeting = blocks.to_operand(first), label
    # Of a block, and of the new state that depends on it alone: the first position.
    found = dict(zip(equation.outputs, blocks.to_results(first), strict=True))
    led = operations.carried({v: x for v, x in found.items() if v.inexact})
    own = {v: x for g in positions.groups for v, x in g.labels(new).items()}
    flows = [(led[v], to) for v, to in own.items() if v in led]
    if any(((a >= 0) & (to >= 0)).any() for a, to in flows):
        a, b = ([x.reshape(-1) for x in p] for p in zip(meeting, *flows))
        yield np.concatenate(a), np.concatenate(b)


def _inside(
    pairs: Pairs, positions: Positions, old: Sequence[Var], mixed: bool
) -> tuple[dict[int, set[int]], dict[int, np.ndarray]]:
    """By leaf, the axes along which its elements meet or, where they meet in another
    way, the rank of each among those that it meets. Nothing if a mixing operation keeps
    none apart from the others."""
    a, b = (x.reshape(-1) for x in pairs)
    met = (a >= 0) & (b >= 0)
    root = connected(a[met], b[met], sum(g.size for g in positions.groups))
    axes, ranks = {}, {}
    if mixed and len(np.unique(root[root >= 0])) == 1:
        return axes, ranks
    for g in positions.groups:
        for leaf, places in zip(g.leaves, g.positions):
            own, size = root[g.offset + places], old[leaf].size
            rank = _ranks(own)
            along = _varying(old[leaf].shape, own)
            if along is not None and (
                _product(old[leaf].shape, along) < size or size == 1
            ):
                axes[leaf] = along
            elif rank.any():
                ranks[leaf] = rank
    return {leaf: own for leaf, own in axes.items() if own}, ranks


def _ranks(root: np.ndarray) -> np.ndarray:
    """Of each element, how many before it have the same root; 0 for those of none."""
    order = np.argsort(root, kind="stable")
    ordered = root[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty(root.size, int)
    rank[order] = np.arange(root.size) - first
    return np.where(root >= 0, rank, 0)


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
