"""Where parameters meet data: every meeting, and what becomes of it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np

from .._program.flow import propagate_backwards, pull
from .._program.ir import Edge, Var
from .._program.labels import BLOCKED, MIXED, UNSET, Labels
from .._program.operations import Operations
from .._program.primitive import Kind
from .faults import mixing_behind
from .options import MixingTails
from .positions import Positions
from .reasons import (
    BEHIND_MIXING,
    LOCAL_PART,
    ONLY_BY_MIXING,
    SEVERAL_POSITIONS,
    Reason,
    not_traceable,
    together,
)
from .sites import Site, make_site


@dataclasses.dataclass(frozen=True, eq=False)
class Occurrence:
    """One place where a parameter meets data, and what becomes of it there.

    `mixing`: the operations behind it that keep it from a trace, as they mix.
    """

    parameters: tuple[int, ...]  # leaves of the parameter tree
    edge: Edge
    site: int | None
    status: Literal["traced", "partly", "now", "output"]
    reason: str
    remedy: str = ""
    mixing: tuple[int, ...] = ()

    def followed(self) -> "Occurrence":
        """What becomes of it where credit takes every path."""
        if self.status == "output":
            return self
        return Occurrence(self.parameters, self.edge, None, "traced", "")


class Meetings:
    """Follows every parameter to its meetings with data."""

    def __init__(
        self,
        operations: Operations,
        positions: Positions,
        new: tuple[Var, ...],
        mixing_tails: MixingTails,
        first: Var | None = None,
    ):
        self.operations = operations
        self.positions = positions
        self.new = new
        self.reach = positions.backward
        self.local = mixing_tails == "local"
        self.first = first  # whether the step is the first, read by the initial state
        self.flow = self._local_flow if self.local else positions.flow
        self.sites: list[Site] = []
        self.found: list[tuple[int, int, np.ndarray]] = []  # site, group, positions
        self.occurrences: list[Occurrence] = []
        # By output or edge: the position of each element of a traced site.
        self.entering: dict[Edge | Var, np.ndarray] = {}
        self.parameters: dict[Var, frozenset[int]] = {}
        self.data: set[Var] = set()

    def run(self, arguments: Mapping[str, tuple[Var, ...]]) -> None:
        for k, v in enumerate(arguments["params"]):
            self.parameters[v] = frozenset([k])
        for name in ("hidden", "other", "inputs"):
            self.data.update(arguments[name])
        for i, equation in enumerate(self.operations.program.equations):
            is_new_state = equation.source == "the new state"
            meets_data = any(v in self.data for v in equation.inputs)
            if is_new_state or meets_data or equation.axes:
                self.data.update(equation.outputs)
                differentiable = any(v.inexact for v in equation.outputs)
                for j, v in enumerate(equation.inputs):
                    if differentiable and self.parameters.get(v) and v.inexact:
                        self._meeting((i, j), v)
            elif self.operations.kinds[i] is not Kind.STOP:
                used = [self.parameters.get(v, frozenset()) for v in equation.inputs]
                for v in equation.outputs:
                    self.parameters[v] = frozenset().union(*used)
        end = len(self.operations.program.equations)
        for j, v in enumerate(self.operations.program.outputs):
            if v not in self.data and self.parameters.get(v) and v.inexact:
                self._record((end, j), v, None, "output", "reaches no state")

    def _record(
        self,
        edge: Edge,
        weight: Var,
        site,
        status,
        reason: str,
        remedy: str = "",
        mixing: tuple[int, ...] = (),
    ) -> None:
        parameters = tuple(sorted(self.parameters[weight]))
        found = Occurrence(parameters, edge, site, status, reason, remedy, mixing)
        self.occurrences.append(found)

    def _mixing(self, flow: tuple[Labels, ...], edge: Edge, site: Site):
        """The operations between a site and the state that mix."""
        found: set[int] = set()
        own = {} if self.local else self.positions.own
        for g, label in self._labels(flow, edge, site):
            if (label == BLOCKED).any():
                start = site.equation.outputs
                found.update(mixing_behind(self.operations, start, flow[g], own))
        return tuple(sorted(found))

    def _labels(self, flow: tuple[Labels, ...], edge: Edge, site: Site):
        """Per group: where the site's elements flow, or None if they do not."""
        i, _ = edge
        outputs = self.operations.program.equations[i].outputs
        for g, labels in enumerate(flow):
            if not site.direct:
                label = labels.get(outputs[0])
            else:
                label = pull(self.operations, labels, edge)
                if label is not None and label.shape != site.shape:
                    label = labels[outputs[0]]  # a scalar, traced where it is broadcast
            if label is not None and (label != UNSET).any():
                yield g, label

    def _meeting(self, edge: Edge, weight: Var) -> None:
        site = make_site(self.operations, edge)
        if not any(True for _ in self._labels(self.reach, edge, site)):
            self._record(edge, weight, None, "output", "reaches no state")
            return
        name = self.operations.program.equations[edge[0]].name
        total, traced, reasons = 0, 0, set()
        found, flow = [], self.flow
        if self.first in site.equation.inputs:
            # It goes the way of the old state, whose mixing paths are left out.
            flow = self._local_flow
        for g, label in self._labels(flow, edge, site):
            local = np.where(label >= 0, label - self.positions.groups[g].offset, UNSET)
            total = max(total, (label != UNSET).sum())
            traced = max(traced, (label >= 0).sum())
            reasons |= _reasons(label)
            if (label >= 0).any():
                found.append((len(self.sites), g, site.form.canonical(local)))
                place = site.edge if site.direct else site.equation.outputs[0]
                own = self.entering.get(place, np.full(label.shape, UNSET))
                self.entering[place] = np.where((own < 0) & (label >= 0), label, own)
        if not found:
            unknown = site.direct and self.operations.kinds[edge[0]] is Kind.MIXING
            if unknown:
                reasons = {not_traceable(name)}
            why = together([*reasons] or [ONLY_BY_MIXING])
            mixing = self._mixing(flow, edge, site) if BEHIND_MIXING in reasons else ()
            self._record(edge, weight, None, "now", *why, mixing)
            return
        reasons, groups = set(), {g for _, g, _ in found}
        for g, label in self._labels(flow, edge, site):
            # A layer's weights reach later layers by mixing alone; that credit is
            # dropped by definition (D-RTRL), and does not count.
            by_mixing = g not in groups and not self._reaches_locally(g, edge, site)
            reasons |= _reasons(label) - ({BEHIND_MIXING} if by_mixing else set())
        self.found += found
        self.sites.append(site)
        status = "partly" if reasons else "traced"
        reason, remedy = together([*reasons])
        if reasons:
            some = f"{traced} of {total} elements" if traced < total else "some groups"
            reason = f"{some}; {reason}"
        if self.local and self._has_mixing_tail(edge, site):
            reason, remedy = together([LOCAL_PART])
        mixing = self._mixing(flow, edge, site) if BEHIND_MIXING in reasons else ()
        self._record(edge, weight, len(self.sites) - 1, status, reason, remedy, mixing)

    @functools.cached_property
    def _local_flow(self) -> tuple[Labels, ...]:
        """Where values flow by position-local paths, whatever other paths there are."""
        return tuple(
            propagate_backwards(
                self.operations,
                g.labels(self.new),
                through_mixing=UNSET,
                own=self.positions.own,
            )
            for g in self.positions.groups
        )

    def _reaches_locally(self, group: int, edge: Edge, site: Site) -> bool:
        return any(g == group for g, _ in self._labels(self._local_flow, edge, site))

    def _has_mixing_tail(self, edge: Edge, site: Site) -> bool:
        groups = {g for site, g, _ in self.found if site == len(self.sites) - 1}
        return any(
            (label == BLOCKED).any()
            for g, label in self._labels(self.reach, edge, site)
            if g in groups
        )


def _reasons(label: np.ndarray) -> set[Reason]:
    reasons = set()
    if (label == BLOCKED).any():
        reasons.add(BEHIND_MIXING)
    if (label == MIXED).any():
        reasons.add(SEVERAL_POSITIONS)
    return reasons
