"""What traces have to remember."""

import collections
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from .._program.ir import Edge, Var
from .._program.labels import LABEL
from .._program.operations import Operations
from .._program.primitive import Kind
from .exits import Exits
from .options import GraphOptions
from .positions import Group, Positions
from .sites import Site


@dataclasses.dataclass(frozen=True, eq=False)
class TraceSpec:
    """The eligibility trace of one site in one group.

    `positions` says to which position of the group each element of the site belongs,
    in canonical form [b, p, o]; UNSET for those that are not traced here.
    `components` are those of the group that this trace holds.
    `uses` are the traces, in order, of all sites where the same weight is read in the
    same way for the same positions, this one too: substeps of a solver, say. They move
    alike, and a rule may keep their sum.
    """

    site: int
    group: int
    components: tuple[int, ...]
    positions: np.ndarray
    uses: tuple[int, ...] = ()


class Memory:
    """Which components of which group a trace has to remember.

    A component is remembered if something reads it one step later: a new state or an
    exit, by a position-local path. LSTM's h, read by the recurrence alone, is not.
    """

    def __init__(
        self,
        operations: Operations,
        positions: Positions,
        converging: Collection[Edge],
        exits: Exits,
        old: tuple[Var, ...],
        new: tuple[Var, ...],
        options: GraphOptions,
        diagonals: Collection[int] | None,
    ):
        self.operations = operations
        self.positions = positions
        self.converging = converging
        self.new = new
        self.options = options
        self.diagonals = diagonals
        n_equations = len(operations.program.equations)
        self.depends: dict[tuple[int, int], bool] = {}
        self.read: dict[int, bool] = {}
        for leaf in range(len(old)):
            reached = self._reached({old[leaf]})
            for other in range(len(new)):
                self.depends[other, leaf] = self._arrives(new[other], other, reached)
            operand = operations.program.operand
            read = [
                operand(edge)
                for edge in exits.open
                if not (edge[0] == n_equations and operand(edge) in new)
            ]
            self.read[leaf] = any(v in reached for v in read)

    def _arrives(self, var: Var, leaf: int, reached: set[Var]) -> bool:
        if var not in reached:
            return False
        label = self.positions.forward.get(var)
        if label is None:  # through the recurrence
            return True
        for g in self.positions.groups:
            if leaf in g.leaves:
                return bool((label == g.labels(self.new)[self.new[leaf]]).any())
        return False

    def _reached(self, start: set[Var], cut: bool = True) -> set[Var]:
        """Values that depend on `start` by local paths."""
        apart = self.positions.inner if cut else self.converging
        cuts = self.positions.cuts if cut else {}

        def passes(edge: Edge) -> bool:
            i, _ = edge
            local = self.operations.kinds[i] not in (Kind.MIXING, Kind.STOP)
            local |= self.diagonals is None or i in self.diagonals
            closed = edge in cuts and cuts[edge].all()
            return not closed and (local or edge in apart)

        return self.operations.program.reached_from(start, passes)

    def coupling(self, group: Group) -> np.ndarray:
        """Whether component i depends on j of the step before, [i, j]."""
        if isinstance(self.options.recurrence, float):
            return np.eye(group.components, dtype=bool)
        pairs = [[self.depends[i, j] for j in group.leaves] for i in group.leaves]
        return np.array(pairs, bool)

    def trace(
        self,
        sites: list[Site],
        index: int,
        group: int,
        positions: np.ndarray,
    ) -> TraceSpec:
        g = self.positions.groups[group]
        reached = self._reached(set(sites[index].equation.outputs), cut=False)
        leaves = {leaf for leaf in g.leaves if self.new[leaf] in reached}
        while True:
            more = {m for m in g.leaves if any(self.depends[m, k] for k in leaves)}
            if more <= leaves:
                break
            leaves |= more
        constant = isinstance(self.options.recurrence, float)
        if not (self.options.remembers_all or constant):
            leaves = {
                k
                for k in leaves
                if self.read[k] or any(self.depends[m, k] for m in g.leaves)
            }
        components = tuple(s for s, leaf in enumerate(g.leaves) if leaf in leaves)
        return TraceSpec(index, group, components, positions)


def with_uses(
    traces: Sequence[TraceSpec], sites: Sequence[Site]
) -> tuple[TraceSpec, ...]:
    """The same, each with its `uses`."""
    uses = collections.Counter(sites[spec.site].weight for spec in traces)
    alike: dict[Any, list[int]] = {}
    for t, spec in enumerate(traces):
        key: Any = t
        if uses[sites[spec.site].weight] > 1:
            site, positions = sites[spec.site], spec.positions.astype(LABEL)
            key = spec.group, spec.components, positions.shape, positions.tobytes()
            key += site.weight, site.direct, site.form.layout.tobytes()
        alike.setdefault(key, []).append(t)
    found = {t: tuple(same) for same in alike.values() for t in same}
    return tuple(dataclasses.replace(x, uses=found[t]) for t, x in enumerate(traces))
