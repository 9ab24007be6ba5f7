"""Groups of state leaves, and how they grow together."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from .._program.ir import Var
from .._program.labels import LABEL, Labels


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """State leaves that talk to each other element by element.

    `leaves` are indices into the hidden leaves; component s of position p is the
    element of `leaves[s]` that `positions[s]` (flat, one entry an element) maps to p.
    """

    leaves: tuple[int, ...]
    positions: tuple[np.ndarray, ...]
    size: int
    offset: int  # of its positions among those of all groups

    @property
    def components(self) -> int:
        return len(self.leaves)

    def labels(self, leaves: Sequence[Var]) -> Labels:
        """The position of every element of its leaves, among those of all groups."""
        pairs = zip(self.leaves, self.positions)
        numbers = {i: (self.offset + p).astype(LABEL) for i, p in pairs}
        return {leaves[i]: n.reshape(leaves[i].shape) for i, n in numbers.items()}


class Partition:
    """Global positions of all state elements, merged pairwise.

    The elements of some leaves have none: of those that are `still`.
    """

    def __init__(self, sizes: Sequence[int], still: Collection[int] = ()):
        sizes = [0 if i in still else n for i, n in enumerate(sizes)]
        ends = np.cumsum([0, *sizes])
        self.position = [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:])]
        self.group = np.arange(len(sizes))
        self.still = still

    def groups(self) -> tuple[Group, ...]:
        """The groups, positions numbered from zero; renumbers the partition."""
        result, offset = [], 0
        for g in np.unique(self.group):
            leaves = tuple(int(i) for i in np.flatnonzero(self.group == g))
            if leaves[0] in self.still:
                continue
            flat = np.concatenate([self.position[i] for i in leaves])
            order, first, inverse = np.unique(
                flat, return_index=True, return_inverse=True
            )
            rank = np.argsort(np.argsort(first))  # in order of appearance
            local = rank[inverse.reshape(-1)]
            ends = np.cumsum([self.position[i].size for i in leaves])[:-1]
            positions = tuple(np.split(local, ends))
            for i, p in zip(leaves, positions):
                self.position[i] = p + offset
            result.append(Group(leaves, positions, order.size, offset))
            offset += order.size
        return tuple(result)

    def mergeable(self, a: np.ndarray, b: np.ndarray):
        """A part of the pairs (a, b) that can be joined one to one, or None.

        A position holds one element of a leaf at most. So two can become one if they
        have no leaf in common, be it in two groups or in one: of a delay line with a
        delay for each neuron, a neuron meets another place.
        """
        leaves = self._leaves()
        apart = ~(leaves[a] & leaves[b]).any(axis=1) & (a != b)
        if not apart.any():
            return None
        pairs = np.unique(np.stack([a[apart], b[apart]]), axis=1)
        kinds = np.unique(leaves, axis=0, return_inverse=True)[1].reshape(-1)[pairs]
        for kind in np.unique(kinds, axis=1).T:
            here = pairs[:, (kinds == kind[:, None]).all(axis=0)]
            if all(len(np.unique(p)) == p.size for p in here):
                return here
        return None

    def _leaves(self) -> np.ndarray:
        """Which leaves each position has an element of, [positions, leaves]."""
        size = 1 + max(p.max(initial=0) for p in self.position)
        result = np.zeros((size, len(self.position)), bool)
        for leaf, own in enumerate(self.position):
            result[own, leaf] = True
        return result

    def merge(self, a: np.ndarray, b: np.ndarray) -> None:
        """Renames positions `b` to `a` and joins their groups."""
        group = {
            int(p): g for g, own in zip(self.group, self.position) for p in own.tolist()
        }
        ga, gb = group[int(a[0])], group[int(b[0])]
        renamed = dict(zip(b.tolist(), a.tolist()))
        for i in np.flatnonzero(self.group == gb):
            own = self.position[i]
            self.position[i] = np.array([renamed.get(p, p) for p in own.tolist()], int)
        self.group[self.group == gb] = ga


def connected(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """The smallest position that each is joined with, by way of others; -1 for those
    that no pair names."""
    root = np.arange(size)
    while True:
        before = root.copy()
        low = np.minimum(root[a], root[b])
        for x in (a, b):
            np.minimum.at(root, root[x], low)
            np.minimum.at(root, x, low)
        root = root[root]
        if (root == before).all():
            break
    named = np.zeros(size, bool)
    named[a] = named[b] = True
    return np.where(named, root, -1)
