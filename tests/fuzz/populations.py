"""Which elements of the state are of one network, from the nodes alone."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .blocks import NONE, blocks, joined
from .programs import Nodes
from .tape import Node, Value

MOST_HEADS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Populations:
    """What a partition into positions and groups says of them.

    - `returning`: of the operands that mixing nodes read of the old state, the elements
        whose population the node leads back to.
    - `parts`: a number for each element of the state, the same for those of one group
        that mixing nodes read alike and lead back to alike.
    """

    returning: dict[tuple[Node, int], np.ndarray]
    parts: np.ndarray


class Classes:
    """Numbers, joined to classes."""

    def __init__(self, size: int) -> None:
        self.root = list(range(size))

    def find(self, i: int) -> int:
        while self.root[i] != i:
            i = self.root[i]
        return i

    def join(self, elements: Sequence[int]) -> None:
        for i in elements[1:]:
            self.root[self.find(int(i))] = self.find(int(elements[0]))


def populations(
    nodes: Nodes,
    position: np.ndarray,
    group: np.ndarray,
    read: Mapping[tuple[Node, int], tuple[np.ndarray, np.ndarray]],
) -> Populations:
    """`read`: the positions of what mixing nodes read, and whether it is the old state
    (or what will be the new one)."""
    size = max(position) + 1
    to = _reached(nodes, position)
    heads = []  # operand, its elements, positions read, of these the old ones, led to
    for (n, j), (label, old) in read.items():
        if n.output in to and (label != NONE).any():
            heads += _heads(n, j, label.reshape(-1), old.reshape(-1), to[n.output])
    classes = Classes(size)
    for *_, reads_old, leads in heads:
        classes.join(np.flatnonzero(reads_old & leads))
    population = np.array([classes.find(p) for p in range(size)])
    returning = {k: np.zeros(old.shape, bool) for k, (_, old) in read.items()}
    of_group = np.array([group[position == p].min() for p in range(size)])
    kinds: list[list] = [[] for _ in range(size)]
    for key, elements, reads, _, leads in heads:
        back = np.isin(population, population[leads])
        label, old = (x.reshape(-1) for x in read[key])
        returning[key].reshape(-1)[:] |= elements & old & back[label]
        opened = np.isin(population, population[reads & ~back])
        for p in range(size):
            mine = of_group == of_group[p]
            apart = (opened & mine).any() and (back & mine).any()
            kinds[p].append((bool(apart and opened[p]), bool(apart and back[p])))
    found = [(of_group[p], *kinds[p]) for p in position]
    numbers = {kind: n for n, kind in enumerate(dict.fromkeys(found))}
    return Populations(returning, np.array([numbers[kind] for kind in found]))


def _heads(
    n: Node, j: int, label: np.ndarray, old: np.ndarray, to: np.ndarray
) -> list[tuple]:
    """What a mixing node keeps apart: blocks that read no position in common."""
    apart, held = blocks(n, j), label != NONE
    classes = Classes(apart.count + max(label) + 1)
    for block, p in zip(apart.operand[held], label[held]):
        classes.join([block, apart.count + p])
    of_block = np.array([classes.find(b) for b in range(apart.count)])
    roots = np.unique(of_block[apart.operand[held]])
    if not 1 < len(roots) <= MOST_HEADS:
        roots, of_block = np.zeros(1, int), np.zeros(apart.count, int)
    result = []
    for root in roots:
        elements = of_block[apart.operand] == root
        reads, reads_old = (
            np.isin(np.arange(to.shape[1]), label[elements & here])
            for here in (held, old)
        )
        leads = to[of_block[apart.result] == root].any(0)
        result.append(((n, j), elements, reads, reads_old, leads))
    return result


def _reached(nodes: Nodes, position: np.ndarray) -> dict[Value, np.ndarray]:
    """The positions of the new state that each element of each value flows into, in
    any way, [size, positions]."""
    result: dict[Value, np.ndarray] = {}

    def add(v: Value, rows: np.ndarray) -> None:
        if v.inexact:
            result[v] = result.get(v, False) | rows

    start = 0
    for v in nodes.new:
        own = position[start : start + v.size]
        add(v, np.eye(max(position) + 1, dtype=bool)[own])
        start += v.size
    for n in reversed(nodes.nodes):
        if n.output not in result or n.kind == "stop":
            continue
        rows = result[n.output]
        if n.kind == "mixing":
            for j, v in enumerate(n.inputs):
                apart = blocks(n, j)
                add(v, joined(apart.result, rows, apart.count)[apart.operand])
        else:
            for v, own in zip(n.inputs, to_operands(nodes, n, rows)):
                add(v, own)
    return result


def to_operands(nodes: Nodes, n: Node, table: np.ndarray) -> list[np.ndarray]:
    """Rows of truth values of the result of an elementwise node or a movement, at the
    elements of each operand."""
    result, start = [], 0
    for v in n.inputs:
        rows = table
        if n.kind == "movement":
            at = nodes.sources[n]
            ours = (at >= start) & (at < start + v.size)
            to, rows = at[ours] - start, table[ours]
        else:
            ids = np.arange(v.size).reshape(v.shape)
            to = np.broadcast_to(ids, n.output.shape).reshape(-1)
        found = np.zeros((v.size, table.shape[1]), bool)
        np.logical_or.at(found, to, rows)
        result.append(found)
        start += v.size
    return result
