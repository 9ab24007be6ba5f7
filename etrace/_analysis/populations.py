"""Populations: which positions are of one network, however the state is stored.

Of a mixing operation let R be the positions whose old state it reads along local ways,
and F those whose new state its results flow into, by any way within the step. Positions
in both are of one population, and so are those that share a population with one of
them. A position of R enters its *own recurrence* there if F holds any of its
population. If not, the operation belongs to others: a later layer, another population.

Where an operation keeps heads apart, each is an operation of its own.

Layers stacked in one leaf, excitation and inhibition in one vector: where a leaf holds
positions that an operation reads (their old state, or what will be their new one) for
others of the same leaf, it is taken apart, as if its parts were leaves.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .._program.blocks import first_labels
from .._program.dependence import Dependence
from .._program.flow import propagate_backwards
from .._program.ir import Edge, Var
from .._program.labels import LABEL, UNSET, Labels
from .._program.operations import Operations
from .._program.primitive import Kind
from .._program.primitives import SCATTER_ADD
from .partition import Group, connected

_MOST_HEADS = 64  # of one operation; more are looked at together


@dataclasses.dataclass(frozen=True, eq=False)
class Populations:
    """What is known of them.

    - `returning`: by operand of a mixing operation, the elements of the old state that
        enter their own recurrence there.
    - `parts`: by leaf that has to be taken apart, the part of each element.
    """

    returning: Mapping[Edge, np.ndarray]
    parts: Mapping[int, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    """An operand of a mixing operation: the position whose state each element is of,
    whether it is the old state, and the head that reads it.

    `results` holds the heads of the elements of the results. UNSET for those of none.
    """

    edge: Edge
    labels: np.ndarray
    old: np.ndarray
    heads: np.ndarray
    results: Sequence[np.ndarray]


def find_populations(
    operations: Operations,
    groups: Sequence[Group],
    forward: Labels,
    backward: Sequence[Labels],
    inner: Collection[Edge],
    new: Sequence[Var],
    moving: Collection[Var],
) -> Populations:
    """Finds them, given the positions of values, where those flow to, and which values
    depend on data."""
    size = sum(g.size for g in groups)
    heads = _Heads(operations, size)
    coming = _coming(operations, groups, new, moving)
    heads.read(forward, coming, backward, inner)
    reads, of_old = heads.reads(), [r for r in heads.readings if r.old.any()]
    asked = np.flatnonzero((reads & ~heads.returns(backward)).any(axis=1))
    if not asked.size:  # each position that is read is also led back to
        return Populations({r.edge: r.old for r in of_old}, {})
    reached = heads.reached(asked, groups, new)
    together = heads.reads(of_old=True)
    together[asked] &= reached
    population = _joined(together)
    back = _by_population(reached, population)
    opened = _by_population(reads[asked] & ~back, population)
    returning = {r.edge: r.old & ~heads.among(asked, r, opened) for r in of_old}
    return Populations(returning, _parts(groups, opened, back))


def _coming(
    operations: Operations,
    groups: Sequence[Group],
    new: Sequence[Var],
    moving: Collection[Var],
) -> Labels:
    """The position that values will be of which flow into a new state by local ways,
    and that values are of which are made from these."""
    seeds = {v: label for g in groups for v, label in g.labels(new).items()}
    flow = propagate_backwards(operations, seeds, through_mixing=UNSET)
    result = {v: label for v, label in flow.items() if v in moving}
    for i, equation in enumerate(operations.program.equations):
        operands = [result.get(v) for v in equation.inputs]
        found = operations.arriving(i, operands, UNSET)
        for v, parts in zip(equation.outputs, found):
            if v.inexact and parts:
                own = result.get(v, np.full(v.shape, UNSET, LABEL))
                label = functools.reduce(np.maximum, parts)
                result[v] = np.where(own >= 0, own, label)
    return result


class _Heads:
    """What the mixing operations of a step read and lead to, numbered by head."""

    def __init__(self, operations: Operations, size: int):
        self.operations = operations
        self.size = size  # the number of positions
        self.number = 0
        self.readings: list[_Reading] = []

    def read(
        self,
        forward: Labels,
        coming: Labels,
        backward: Sequence[Labels],
        inner: Collection[Edge],
    ) -> None:
        """Finds all operands that hold what is of a position, old or new."""
        for i, equation in enumerate(self.operations.program.equations):
            leads = any(v in b for b in backward for v in equation.outputs)
            if self.operations.kinds[i] is not Kind.MIXING or not leads:
                continue
            for j, v in enumerate(equation.inputs):
                if (i, j) in inner or not (v in forward or v in coming):
                    continue
                nothing = np.full(v.shape, UNSET, LABEL)
                old, new = forward.get(v, nothing), coming.get(v, nothing)
                labels = np.where(old >= 0, old, new)
                if (labels >= 0).any():
                    own, results, number = _heads(self.operations, (i, j), labels)
                    own, *results = (
                        np.where(x >= 0, x + self.number, UNSET)
                        for x in (own, *results)
                    )
                    reading = _Reading((i, j), labels, old >= 0, own, results)
                    self.readings.append(reading)
                    self.number += number

    def reads(self, of_old: bool = False) -> np.ndarray:
        """Which heads read which positions, [heads, positions]; `of_old`: their old
        state."""
        result = self._none()
        for r in self.readings:
            held = (r.labels >= 0) & (r.old if of_old else True)
            result[r.heads[held], r.labels[held]] = True
        return result

    def returns(self, backward: Sequence[Labels]) -> np.ndarray:
        """Which heads lead to which positions by local ways."""
        result = self._none()
        for r in self.readings:
            outputs = self.operations.program.equations[r.edge[0]].outputs
            for v, head in zip(outputs, r.results):
                for label in (b[v] for b in backward if v in b):
                    both = (head >= 0) & (label >= 0)
                    result[head[both], label[both]] = True
        return result

    def _none(self) -> np.ndarray:
        return np.zeros((self.number, self.size), bool)

    def reached(
        self, asked: np.ndarray, groups: Sequence[Group], new: Sequence[Var]
    ) -> np.ndarray:
        """Which positions some heads lead to by any way, [asked, positions]."""
        at_edges = {
            r.edge: r.heads[..., None] == asked
            for r in self.readings
            if np.isin(r.heads, asked).any()
        }
        count = len(asked)
        walk = Dependence(self.operations, {}, at_edges, count, by_zeros=False)
        flags = walk.run()
        result = np.zeros((count, self.size), bool)
        for g in groups:
            for v, label in g.labels(new).items():
                if v in flags:
                    rows = flags[v].reshape(v.size, count)
                    np.logical_or.at(result.T, label.reshape(-1), rows)
        return result

    def among(
        self, asked: np.ndarray, reading: _Reading, marked: np.ndarray
    ) -> np.ndarray:
        """The elements of an operand whose positions are marked, [asked, positions],
        for the head that reads them."""
        number = np.full(self.number + 1, len(asked))  # the last: those not asked
        number[asked] = np.arange(len(asked))
        rows = np.concatenate([marked, np.zeros((1, self.size), bool)])
        return rows[number[reading.heads], reading.labels]


def _heads(
    operations: Operations, edge: Edge, labels: np.ndarray
) -> tuple[np.ndarray, Sequence[np.ndarray], int]:
    """The head of each element of an operand and of the results, and how many there
    are: what reads a position is one head."""
    equation, blocks = operations.program.equations[edge[0]], operations.blocks(edge)
    whole = (
        np.zeros(labels.shape, LABEL),
        [np.zeros(v.shape, LABEL) for v in equation.outputs],
        1,
    )
    # The summands of a sparse product each have a block: they are no heads.
    if blocks is None or equation.primitive is SCATTER_ADD:
        return whole
    first = first_labels(labels, blocks)
    if (first == first[0]).all():
        return whole
    held = labels >= 0
    size = int(blocks.count + labels.max() + 1)
    root = connected(blocks.operand[held], labels[held] + blocks.count, size)
    found, head = np.unique(root[: blocks.count], return_inverse=True)
    none = int(found[0] < 0)  # blocks that hold nothing of the state
    if not 1 < len(found) - none <= _MOST_HEADS:
        return whole
    head = (head.reshape(-1) - none).astype(LABEL)
    return blocks.to_operand(head), blocks.to_results(head), len(found) - none


def _joined(together: np.ndarray) -> np.ndarray:
    """The population of each position, from those that [heads, positions] hold
    together."""
    head, position = np.nonzero(together)
    first, size = together.argmax(axis=1), together.shape[1]
    root = connected(first[head], position, size)
    return np.where(root < 0, np.arange(size), root)


def _by_population(marked: np.ndarray, population: np.ndarray) -> np.ndarray:
    """The positions, [heads, positions], of whose population some are marked."""
    result = np.zeros_like(marked)
    np.logical_or.at(result.T, population, marked.T)
    return result[:, population]


def _parts(
    groups: Sequence[Group], opened: np.ndarray, back: np.ndarray
) -> dict[int, np.ndarray]:
    """By leaf, the part of each element: those that heads read alike and lead back to
    alike, [heads, positions]."""
    result = {}
    for g in groups:
        own = slice(g.offset, g.offset + g.size)
        apart = opened[:, own].any(axis=1) & back[:, own].any(axis=1)
        kinds = np.concatenate([opened[apart, own], back[apart, own]])
        found = np.unique(kinds, axis=1, return_inverse=True)[1].reshape(-1)
        for leaf, places in zip(g.leaves, g.positions):
            if apart.any() and len(np.unique(found[places])) > 1:
                result[leaf] = found[places]
    return result
