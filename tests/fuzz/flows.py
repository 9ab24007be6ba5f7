"""Where the elements of every value flow, from the nodes alone."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .blocks import NONE, blocks, joined
from .populations import to_operands
from .programs import Nodes
from .tape import Node, Value


def by_leaf(flat: np.ndarray, leaves: Sequence[Value]) -> list[np.ndarray]:
    """One array for all leaves, leaf by leaf."""
    return np.split(flat, np.cumsum([v.size for v in leaves])[:-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The position and the group of each element of the state, leaf after leaf."""

    position: np.ndarray
    group: np.ndarray

    @property
    def groups(self) -> range:
        return range(max(self.group) + 1)

    def same(self) -> np.ndarray:
        """Which pairs of elements share a position."""
        return np.equal.outer(self.position, self.position)

    def shared(self, leaves: Sequence[tuple[int, ...]]) -> bool:
        """Whether two elements of one leaf share a position."""
        ends = np.cumsum([int(np.prod(s)) for s in leaves])
        parts = np.split(self.position, ends[:-1])
        return any(len(np.unique(part)) < part.size for part in parts)


class Flows:
    """For each element of each value, the positions it flows into locally `[size, R]`,
    and the groups it reaches through mixing `[size, G]`."""

    def __init__(
        self,
        nodes: Nodes,
        partition: Partition,
        own: dict[tuple[Node, int], np.ndarray] | None = None,
        alone: bool = False,
    ) -> None:
        self.alone = alone  # whether ways through mixing do not count
        self.nodes, self.partition, self.own = nodes, partition, own or {}
        self.local: dict[Value, np.ndarray] = {}
        self.mixed: dict[Value, np.ndarray] = {}
        self.leading: dict[tuple[Node, int], np.ndarray] = {}
        positions = max(partition.position) + 1
        self.of_position = np.zeros((positions, len(partition.groups)), bool)
        self.of_position[partition.position, partition.group] = True
        leaves = nodes.given[: len(nodes.new)]
        for new, own in zip(nodes.new, by_leaf(partition.position, leaves)):
            nothing = np.zeros((new.size, len(partition.groups)), bool)
            self._add(new, np.eye(positions, dtype=bool)[own], nothing)
        for n in reversed(nodes.nodes):
            if n.output in self.local and n.kind != "stop":
                self._pull(n)

    def _add(self, v: Value, local: np.ndarray, mixed: np.ndarray) -> None:
        if v.inexact:
            self.local[v] = self.local.get(v, False) | local
            self.mixed[v] = self.mixed.get(v, False) | mixed

    def _pull(self, n: Node) -> None:
        tables = self.local[n.output], self.mixed[n.output]
        if n.kind == "mixing":
            for j, v in enumerate(n.inputs):
                self._add(v, *self._through(n, j))
            return
        local, mixed = (to_operands(self.nodes, n, t) for t in tables)
        for v, *found in zip(n.inputs, local, mixed):
            self._add(v, *found)

    def _through(self, n: Node, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Of an operand of a mixing node: a block that flows into one position of a
        group is local to it, any other reaches the group by mixing."""
        apart, v = blocks(n, j), n.inputs[j]
        tables = self.local[n.output], self.mixed[n.output]
        local, mixed = (joined(apart.result, t, apart.count) for t in tables)
        number = local @ self.of_position.astype(int)
        one = (number == 1) & ~mixed & apart.apart
        mixed = mixed | ((number > 0) & ~one)
        local = local & (one @ self.of_position.T)
        if v.inexact and one[apart.operand].any():
            self.leading[n, j] = one[apart.operand].T.reshape(-1, *v.shape)
        mixed = mixed[apart.operand]
        if (n, j) in self.own:
            mixed = mixed & ~self.own[n, j].reshape(-1, 1)
        mixed = mixed & (not self.alone)
        return local[apart.operand], mixed

    def leads(self, n: Node) -> np.ndarray:
        """Whether a mixing node leads to the group of each position by more than values
        that several of them share."""
        if n.output not in self.local:
            return np.zeros(len(self.of_position), bool)
        local, mixed = self.local[n.output], self.mixed[n.output]
        number = local @ self.of_position.astype(int)
        return self.of_position @ ((number == 1) | mixed).any(0)

    def reach(self, v: Value, g: int) -> np.ndarray:
        """Which elements of a value reach a group in any way."""
        if v not in self.local:
            return np.zeros(v.size, bool)
        return self.mixed[v][:, g] | (self.local[v] @ self.of_position)[:, g]

    def one(self, v: Value) -> np.ndarray:
        """The one position that each element flows into locally, or NONE."""
        if v not in self.local:
            return np.full(v.size, NONE)
        own = self.local[v]
        return np.where(own.sum(1) == 1, own.argmax(1), NONE)

    def only(self, v: Value, g: int) -> np.ndarray:
        """The one position of a group that each element flows into, or NONE."""
        if v not in self.local:
            return np.full(v.size, NONE)
        own = self.local[v] & self.of_position[:, g]
        one = (own.sum(1) == 1) & ~self.mixed[v][:, g]
        return np.where(one, own.argmax(1), NONE)

    def doubted(self, node: Node, g: int) -> frozenset[int]:
        """Parameters that meet data there, and flow into a group locally and also by
        mixing. (What flows into several positions may be traced, way by way.)"""
        at = node.inputs if node.kind == "movement" else [node.output] * 99
        found: set[int] = set()
        for j in node.meets:
            v = at[j]
            if v in self.local:
                flows = (self.local[v] & self.of_position[:, g]).any(1)
                if (flows & self.mixed[v][:, g]).any():
                    found |= node.inputs[j].params
        return frozenset(found)

    def traced(self, node: Node, g: int) -> np.ndarray:
        """The elements at which a weight meets data that are traced in a group: those
        that flow into it by local paths alone, be it into several positions."""
        if node.kind == "movement":
            return np.concatenate([self._locally(v, g) for v in node.inputs])
        return self._locally(node.output, g).reshape(node.output.shape)

    def _locally(self, v: Value, g: int) -> np.ndarray:
        if v not in self.local:
            return np.zeros(v.size, bool)
        flows = (self.local[v] & self.of_position[:, g]).any(1)
        return flows & ~self.mixed[v][:, g]
