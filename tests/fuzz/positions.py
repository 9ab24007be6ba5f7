"""Which elements of the state talk to each other one by one, from the nodes alone.

Every value carries, for each of its elements, the *set* of elements of the old state
that it depends on locally, and the sets of positions and groups of the new state that
it flows into.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .blocks import NONE, blocks, label_of_block
from .flows import Flows, Partition, by_leaf
from .populations import Classes, populations
from .programs import Nodes
from .tape import Node, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What the nodes say, given a partition.

    - `returning`: per group, of operands of mixing nodes, the elements that enter their
        own recurrence there.
    - `parts`: the part of its leaf and group that each element of the state is of.
    - `inner`: the operands of mixing nodes that mix nothing but what one position
        holds.
    - `leading`: per group, of operands of mixing nodes, the elements that these lead to
        one position alone.
    - `cuts`: where elements of several positions meet, by node and operand, those that
        do not go on: one label an element, NONE for those that do.
    - `closed`: per group, those of the cut elements that lead back to it.
    - `held`: per group, where weights meet data, the elements that are not traced: they
        do not reach the group, or by mixing.
    - `chains`: the operands of products that are products with a weight themselves, and
        part of the weight that is met.
    - `doubtful`: per group, the parameters where some of what they meet flows into it
        locally, but not by local paths alone.
    """

    partition: Partition
    returning: tuple[dict[tuple[Node, int], np.ndarray], ...]
    parts: np.ndarray
    inner: frozenset[tuple[Node, int]]
    leading: tuple[dict[tuple[Node, int], np.ndarray], ...]
    cuts: dict[tuple[Node, int], np.ndarray]
    closed: tuple[dict[tuple[Node, int], np.ndarray], ...]
    held: tuple[dict[Node, np.ndarray], ...]
    chains: frozenset[tuple[Node, int]]
    doubtful: tuple[dict[Node, frozenset[int]], ...]

    def silent(self) -> set[int]:
        """Parameters that may not be called traced: some of what they meet flows into a
        group locally and also by mixing."""
        every = (doubtful.values() for doubtful in self.doubtful)
        return {p for of_group in every for params in of_group for p in params}


def natural_partition(nodes: Nodes) -> Partition | None:
    """Elements that values depend on together share a position, and so do an element
    and those of other leaves that its new value is local to. None if two elements of
    one leaf would, or if what a mixing node keeps apart matters."""
    leaves = nodes.given[: len(nodes.new)]
    classes = Classes(sum(v.size for v in leaves))
    if _apart(nodes, _depend(nodes, leaves, classes)):
        return None
    roots = [classes.find(i) for i in range(len(classes.root))]
    position = np.unique(roots, return_inverse=True)[1]
    parts = [set(part.tolist()) for part in by_leaf(position, leaves)]
    if any(len(own) < v.size for own, v in zip(parts, leaves)):
        return None
    groups = Classes(len(leaves))
    for a, own in enumerate(parts):
        groups.join([a, *(b for b, other in enumerate(parts) if own & other)])
    of_leaf = [groups.find(a) for a in range(len(leaves))]
    of_leaf = np.unique(of_leaf, return_inverse=True)[1]
    return Partition(position, np.repeat(of_leaf, [v.size for v in leaves]))


def _coming(nodes: Nodes, alone: "Flows") -> dict[Value, np.ndarray]:
    """The positions that elements flow into locally, and those that elements are made
    from: one label an element."""
    result = {v: alone.one(v).reshape(v.shape) for v in nodes.given}
    for n in nodes.nodes:
        if not (n.output.data and n.output.inexact):
            continue
        own = alone.one(n.output).reshape(n.output.shape)
        parts = [result.get(v, np.full(v.shape, NONE)) for v in n.inputs]
        made = np.full(n.output.shape, NONE)
        if n.kind == "movement":
            flat, at = np.concatenate([p.reshape(-1) for p in parts]), nodes.sources[n]
            made = np.where(at >= 0, flat[at], NONE).reshape(n.output.shape)
        elif n.kind == "elementwise":
            made = np.max(
                [made, *(np.broadcast_to(p, made.shape) for p in parts)], axis=0
            )
        result[n.output] = np.where(own != NONE, own, made)
    return result


def parted(nodes: Nodes, partition: Partition) -> Partition:
    """With the groups taken apart where they hold populations apart."""
    while True:
        leaves = nodes.given[: len(nodes.new)]
        part = facts(nodes, partition).parts
        kinds = Classes(partition.position.size)
        of_leaf = np.repeat(np.arange(len(leaves)), [v.size for v in leaves])
        for same in (partition.position, of_leaf):
            pairs = np.stack([part, same], axis=1)
            for pair in np.unique(pairs, axis=0):
                kinds.join(np.flatnonzero((pairs == pair).all(axis=1)))
        roots = [kinds.find(i) for i in range(part.size)]
        group = np.unique(roots, return_inverse=True)[1]
        if max(group) == max(partition.group):
            return partition
        partition = Partition(partition.position, group)


def facts(nodes: Nodes, partition: Partition) -> Facts:
    flows = Flows(nodes, partition)
    walk = _Walk(nodes, partition, flows)
    cuts, read = walk.cuts, {}
    coming = _coming(nodes, Flows(nodes, partition, alone=True))
    for n in nodes.nodes:
        for j, v in enumerate(n.inputs):
            if n.kind == "mixing" and v.inexact and v.data and (n, j) not in walk.inner:
                old = walk.labels.get(v, np.full(v.shape, NONE))
                read[n, j] = np.where(old != NONE, old, coming[v]), old != NONE
    found = populations(nodes, partition.position, partition.group, read)
    # Where it enters its own recurrence, a group is left for weights too.
    own = {
        (n, j): at & flows.leads(n)[np.where(at, read[n, j][0], 0)]
        for (n, j), at in found.returning.items()
    }
    flows = Flows(nodes, partition, own)
    closed = tuple(
        {
            (n, j): (label != NONE) & (_group_of(label, partition) == g) & back
            for (n, j), label in cuts.items()
            for back in [flows.reach(n.output, g).reshape(n.output.shape)]
        }
        for g in partition.groups
    )
    met = [n for n in nodes.nodes if n.meets]
    held = tuple({n: ~flows.traced(n, g) for n in met} for g in partition.groups)
    leading = tuple(
        {k: x[g] for k, x in flows.leading.items() if x[g].any()}
        for g in partition.groups
    )
    chains = _chains(nodes)
    doubtful = tuple(
        {n: x for n in met if n not in chains.values() and (x := flows.doubted(n, g))}
        for g in partition.groups
    )
    for (n, j), first in reversed(chains.items()):  # the last is known first
        for g in partition.groups:
            if not held[g][n].all():
                leading[g][n, j] = np.ones(n.inputs[j].shape, bool)
                held[g][first] = np.zeros(first.output.shape, bool)
    returning = tuple(
        {
            k: x & (_group_of(read[k][0], partition) == g)
            for k, x in found.returning.items()
        }
        for g in partition.groups
    )
    inner = frozenset(walk.inner)
    return Facts(
        partition,
        returning,
        found.parts,
        inner,
        leading,
        cuts,
        closed,
        held,
        frozenset(chains),
        doubtful,
    )


def _group_of(label: np.ndarray, partition: Partition) -> np.ndarray:
    group = np.full(max(partition.position) + 2, NONE)  # the last one for NONE
    group[partition.position] = partition.group
    return group[label]


def _carries(node: Node) -> bool:
    return node.output.inexact and node.kind in ("elementwise", "movement")


def _chains(nodes: Nodes) -> dict[tuple[Node, int], Node]:
    """Where the result of a product with a weight enters another one and nothing else:
    both count as one product, with the product of the weights."""
    made = {n.output: n for n in nodes.nodes}
    read = [v for n in nodes.nodes for v in n.inputs] + [*nodes.new, *nodes.outputs]
    return {
        (n, j): made[v]
        for n in nodes.nodes
        for j, v in enumerate(n.inputs)
        if n.product and n.meets and v.data and read.count(v) == 1
        if v in made and made[v].product and made[v].meets
    }


def _apart(nodes: Nodes, sets: dict[Value, np.ndarray]) -> bool:
    """Whether a mixing node keeps apart some of what depends on the state locally."""
    return any(
        n.kind == "mixing" and v in sets and sets[v].any() and blocks(n, j).apart
        for n in nodes.nodes
        for j, v in enumerate(n.inputs)
    )


def _depend(nodes: Nodes, leaves: Sequence[Value], classes: Classes) -> dict:
    size = len(classes.root)
    own = np.split(np.eye(size, dtype=bool), np.cumsum([v.size for v in leaves])[:-1])
    sets = {v: part.reshape(*v.shape, size) for v, part in zip(leaves, own)}

    def of(v: Value) -> np.ndarray:
        return sets.get(v, np.zeros((*v.shape, size), bool))

    for n in filter(_carries, nodes.nodes):
        shape = (*n.output.shape, size)
        if n.kind == "movement":
            flat = np.concatenate([of(v).reshape(-1, size) for v in n.inputs])
            at = nodes.sources[n]
            sets[n.output] = (flat[at] & (at >= 0)[:, None]).reshape(shape)
            continue
        found = np.zeros(shape, bool)
        for v in n.inputs:
            found = found | _aligned(of(v), len(shape))
        sets[n.output] = found
        for element in found.reshape(-1, size):
            classes.join(np.flatnonzero(element))
    first = 0
    for leaf, new in zip(leaves, nodes.new):
        mine = range(first, first + leaf.size)
        for i, element in zip(mine, of(new).reshape(-1, size)):
            classes.join([i, *(j for j in np.flatnonzero(element) if j not in mine)])
        first += leaf.size
    return sets


def _aligned(x: np.ndarray, rank: int) -> np.ndarray:
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


class _Walk:
    """Follows the positions forwards. Where several meet, the one that the result flows
    into goes on."""

    def __init__(self, nodes: Nodes, partition: Partition, flows: Flows) -> None:
        self.partition, self.flows = partition, flows
        self.cuts: dict[tuple[Node, int], np.ndarray] = {}
        self.inner: set[tuple[Node, int]] = set()
        leaves = nodes.given[: len(nodes.new)]
        labels = {
            v: own.reshape(v.shape)
            for v, own in zip(leaves, by_leaf(partition.position, leaves))
        }
        for n in nodes.nodes:
            parts = [labels.get(v, np.full(v.shape, NONE)) for v in n.inputs]
            if not n.output.inexact or n.kind == "stop":
                continue
            if n.kind == "mixing":
                found = self._mixed(n, parts)
            elif n.kind == "movement":
                flat, at = (
                    np.concatenate([p.reshape(-1) for p in parts]),
                    nodes.sources[n],
                )
                found = np.where(at >= 0, flat[at], NONE)
            else:
                found = self._met(n, parts)
            labels[n.output] = found.reshape(n.output.shape)
        self.labels = labels

    def _mixed(self, n: Node, parts: Sequence[np.ndarray]) -> np.ndarray:
        found = None
        for j, label in enumerate(parts):
            if (label == NONE).all():
                continue
            apart = blocks(n, j)
            own = label_of_block(apart, label)
            if own is None:
                continue
            # NONE where nothing of this operand arrives.
            arrives = own[apart.result]
            joined = (
                arrives if found is None else np.where(found == NONE, arrives, found)
            )
            if ((arrives == NONE) | (arrives == joined)).all():
                found = joined
                self.inner.add((n, j))
        return np.full(n.output.size, NONE) if found is None else found

    def _met(self, n: Node, parts: Sequence[np.ndarray]) -> np.ndarray:
        shape = n.output.shape
        wide = [np.broadcast_to(_aligned(p, len(shape)), shape) for p in parts]
        result = np.max([np.full(shape, NONE), *wide], axis=0)
        conflict = np.any([(p != NONE) & (p != result) for p in wide], axis=0)
        kept = np.full(shape, NONE)
        for p in wide:
            for g in self.partition.groups:
                flows = self.flows.only(n.output, g).reshape(shape)
                arrives = (flows == p) & (p != NONE)
                kept = np.where(conflict & arrives & (kept == NONE), p, kept)
        for j, p in enumerate(wide):
            cut = conflict & (p != NONE) & (p != kept)
            if cut.any():
                self.cuts[n, j] = np.where(cut, p, NONE)
        return np.where(conflict, kept, result)
