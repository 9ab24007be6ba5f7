"""Populations: which positions are of one network, however the state is stored.

Of a mixing operation let R be the positions whose old state it reads along local ways,
and F those whose new state its results flow into, by any way within the step. Positions
in both are of one population, and so are those that share a population with one of
them. A position of R enters its *own recurrence* there if F holds any of its
population. If not, the operation belongs to others: a later layer, another population.

Where an operation keeps heads apart, each is an operation of its own.

Layers stacked in one leaf, excitation and inhibition in one vector: where a leaf holds
positions that an operation reads for others of the same leaf, it is taken apart, as if
its parts were leaves.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ._blocks import first_labels
from ._dependence import Dependence
from ._kinds import Kind
from ._partition import LABEL, UNSET, Group, Labels, joined
from ._primitives import Primitives
from ._program import Edge, Var

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
    """An operand of a mixing operation that holds old state, and the head to which each
    of its elements and those of the results belong; UNSET for those of none."""

    edge: Edge
    labels: np.ndarray
    heads: np.ndarray
    results: Sequence[np.ndarray]
    number: int


def find_populations(
    primitives: Primitives,
    groups: Sequence[Group],
    forward: Labels,
    backward: Sequence[Labels],
    inner: Collection[Edge],
    new: Sequence[Var],
) -> Populations:
    """Finds them, given the positions of values and where those flow to."""
    readings = list(_readings(primitives, forward, backward, inner))
    whole = {r.edge: r.labels >= 0 for r in readings}
    size = sum(g.size for g in groups)
    starts = np.cumsum([0, *(r.number for r in readings)])
    reads = _pairs(
        [(n, r.heads, r.labels) for n, r in zip(starts, readings)], starts[-1], size
    )
    returns = _pairs(
        [
            (n, heads, b[v])
            for n, r in zip(starts, readings)
            for v, heads in zip(
                primitives.program.equations[r.edge[0]].outputs, r.results
            )
            for b in backward
            if v in b
        ],
        starts[-1],
        size,
    )
    asked = np.flatnonzero((reads & ~returns).any(axis=1))
    if not asked.size:  # each position that is read is also led back to
        return Populations(whole, {})
    number = np.full(starts[-1] + 1, UNSET)
    number[asked] = np.arange(asked.size)
    reached = _reached(primitives, groups, new, readings, starts, number)
    together = reads.copy()
    together[asked] &= reached
    population = _joined(together)
    ends = np.zeros((asked.size, size), bool)  # by population
    np.logical_or.at(ends.T, population, reached.T)
    back = ends[:, population]
    returning = {}
    for n, r in zip(starts, readings):
        head = number[np.where(r.heads >= 0, n + r.heads, -1)]
        own = (head == UNSET) | back[head, r.labels]
        returning[r.edge] = own & whole[r.edge]
    opened = np.zeros((asked.size, size), bool)
    np.logical_or.at(opened.T, population, (reads[asked] & ~back).T)
    parts = _parts(groups, opened[:, population], back)
    return Populations(returning, parts)


def _readings(
    primitives: Primitives,
    forward: Labels,
    backward: Sequence[Labels],
    inner: Collection[Edge],
) -> Iterator[_Reading]:
    for i, equation in enumerate(primitives.program.equations):
        leads = any(v in b for b in backward for v in equation.outputs)
        if primitives.kinds[i] is Kind.MIXING and leads:
            for j, v in enumerate(equation.inputs):
                if v in forward and (i, j) not in inner:
                    yield _reading(primitives, (i, j), forward[v])


def _reading(primitives: Primitives, edge: Edge, labels: np.ndarray) -> _Reading:
    """What reads one position is one head, and so is what other operations would be."""
    outputs = primitives.program.equations[edge[0]].outputs
    whole = np.zeros(labels.shape, LABEL), [np.zeros(v.shape, LABEL) for v in outputs]
    blocks = primitives.blocks(edge)
    # The summands of a sparse product each have a block: they are no heads.
    name = primitives.program.equations[edge[0]].name
    if blocks is None or name == "scatter-add":
        return _Reading(edge, labels, *whole, 1)
    first = first_labels(labels, blocks)
    if (first == first[0]).all():
        return _Reading(edge, labels, *whole, 1)
    held = labels >= 0
    size = int(blocks.count + labels.max() + 1)
    root = joined(blocks.operand[held], labels[held] + blocks.count, size)
    found, head = np.unique(root[: blocks.count], return_inverse=True)
    none = int(found[0] < 0)  # blocks that hold nothing of the state
    if not 1 < len(found) - none <= _MOST_HEADS:
        return _Reading(edge, labels, *whole, 1)
    head = (head.reshape(-1) - none).astype(LABEL)
    heads, results = blocks.to_operand(head), blocks.to_results(head)
    return _Reading(edge, labels, heads, results, len(found) - none)


def _pairs(
    found: Sequence[tuple[int, np.ndarray, np.ndarray]], heads: int, size: int
) -> np.ndarray:
    """Which heads have which positions, [heads, size]."""
    result = np.zeros((heads, size), bool)
    for start, head, label in found:
        both = (head >= 0) & (label >= 0)
        result[start + head[both], label[both]] = True
    return result


def _reached(
    primitives: Primitives,
    groups: Sequence[Group],
    new: Sequence[Var],
    readings: Sequence[_Reading],
    starts: np.ndarray,
    number: np.ndarray,
) -> np.ndarray:
    """Of the heads with a number: the positions that results flow into by any way."""
    count, at_edges = int(number.max()) + 1, {}
    for n, r in zip(starts, readings):
        own = number[np.where(r.heads >= 0, n + r.heads, -1)]
        if (own >= 0).any():
            at_edges[r.edge] = own[..., None] == np.arange(count)
    flags = Dependence(primitives, {}, at_edges, count, by_zeros=False).run()
    reached = np.zeros((count, sum(g.size for g in groups)), bool)
    for g in groups:
        for v, label in g.labels(new).items():
            if v in flags:
                np.logical_or.at(
                    reached.T, label.reshape(-1), flags[v].reshape(v.size, count)
                )
    return reached


def _joined(together: np.ndarray) -> np.ndarray:
    """The population of each position, from those that [heads, size] hold together."""
    head, position = np.nonzero(together)
    first = together.argmax(axis=1)
    size = together.shape[1]
    root = joined(first[head], position, size)
    return np.where(root < 0, np.arange(size), root)


def _parts(
    groups: Sequence[Group], opened: np.ndarray, back: np.ndarray
) -> dict[int, np.ndarray]:
    """By leaf, the part of each element: those that heads read alike and lead back to
    alike, [heads, size]."""
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
