"""Where what a position holds is read by others.

Values belong to a position as long as nothing has mixed them: what depends locally on
the old state there, and what enters it in this step through sites. Where such a value
is read by a mixing operation or is an output, credit leaves the position. If the
operation leads back to the new state of the position's own group, the edge is *closed*
(the group's recurrence), otherwise it is an *exit*.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from .._program.ir import Edge, Var
from .._program.labels import UNSET, Labels
from .._program.operations import Operations
from .._program.primitive import Kind
from .positions import Positions


@dataclasses.dataclass(frozen=True, eq=False)
class Exits:
    """The position of each element that leaves, UNSET for those that do not.

    - `open`: by edge, elements read by outputs and by mixing operations that do not
      lead back; also values that were cut because they meet at another position.
    - `closed`: by edge, elements of the old state that enter their own recurrence.
    """

    open: Mapping[Edge, np.ndarray]
    closed: Mapping[Edge, np.ndarray]


def find_exits(
    operations: Operations,
    positions: Positions,
    entering: Mapping[Edge | Var, object],
    converging: Mapping[Edge, np.ndarray],
) -> Exits:
    """Follows the labels of the old state, and of what enters through sites.

    `entering` holds the labels of sites, by the equation's output or, for a weight that
    is traced where it is read, by its edge. What they hold is not mixed where mixing
    operations are `converging`.
    """
    labels = dict(positions.forward)
    walk = _Walk(operations, positions, converging, labels)
    closed = walk.leaving()[1]
    labels = walk.with_sites(entering)
    walk = _Walk(operations, positions, converging, labels)
    return Exits(walk.leaving()[0], closed)


class _Walk:
    def __init__(
        self,
        operations: Operations,
        positions: Positions,
        converging: Mapping[Edge, np.ndarray],
        labels: Labels,
    ):
        self.operations = operations
        self.positions = positions
        self.converging = converging
        self.labels = labels

    def with_sites(self, entering: Mapping) -> Labels:
        """Labels of everything that belongs to a position."""
        labels = dict(self.positions.forward)
        for i, equation in enumerate(self.operations.program.equations):
            for v in equation.outputs:
                if v in entering:
                    labels[v] = entering[v]
            operands = [
                self._operand(labels, entering, (i, j))
                for j in range(len(equation.inputs))
            ]
            found = self.operations.arriving(i, operands, UNSET, self._mixed)
            for v, parts in zip(equation.outputs, found):
                if not v.inexact or all((x == UNSET).all() for x in parts):
                    continue
                parts = [labels[v], *parts] if v in labels else parts
                labels[v] = self._flowing(v, parts)
        return labels

    def _operand(self, labels: Labels, entering: Mapping, edge: Edge):
        if edge in entering:
            return entering[edge]
        label = labels.get(self.operations.program.operand(edge))
        if label is None or edge not in self.positions.cuts:
            return label
        cut = self.positions.cuts[edge]
        return np.where(cut, UNSET, np.broadcast_to(label, cut.shape))

    def _flowing(self, var: Var, parts: list[np.ndarray]) -> np.ndarray:
        """Where labels differ, the one that flows into the state."""
        result = functools.reduce(_first, parts)
        for label in parts:
            for flow in self.positions.flow:
                if var in flow:
                    flows = (label >= 0) & (flow[var] == label)
                    result = np.where(flows, label, result)
        return result

    def _mixed(self, edge: Edge, label: np.ndarray) -> list[np.ndarray]:
        """What a mixing operation leaves apart."""
        blocks = self.operations.blocks(edge)
        if blocks is None:
            outputs = self.operations.program.equations[edge[0]].outputs
            return [np.full(v.shape, UNSET) for v in outputs]
        passing = np.where(self._passes(edge, label), label, UNSET)
        own = blocks.joined(passing)
        return blocks.to_results(np.where(own >= 0, own, UNSET))

    def _passes(self, edge: Edge, label: np.ndarray) -> np.ndarray:
        """Which elements of an operand keep their label through a mixing operation:
        all where it is inner, else those that it leads to their own position."""
        if edge in self.positions.inner or edge not in self.converging:
            return np.asarray((label >= 0) & (edge in self.positions.inner))
        return np.asarray((label >= 0) & ~self.converging[edge])

    def _at_mixing(self, edge: Edge) -> np.ndarray:
        """The labels of what is mixed with other positions."""
        var = self.operations.program.operand(edge)
        label = self.labels[var]
        if edge not in self.positions.inner and var in self.positions.forward:
            own = self.positions.forward[var]
            staying = self._passes(edge, np.where(own >= 0, UNSET, label))
            return np.where(staying, UNSET, _first(own, label))
        return np.where(self._passes(edge, label), UNSET, label)

    def leaving(self) -> tuple[dict[Edge, np.ndarray], dict[Edge, np.ndarray]]:
        """(exits, closed edges) of the labelled values."""
        exits, closed = {}, {}
        program, cuts = self.operations.program, self.positions.cuts
        for i, equation in enumerate(program.equations):
            mixing = self.operations.kinds[i] is Kind.MIXING
            for j, v in enumerate(equation.inputs):
                label = self.labels.get(v)
                if label is None or not (mixing or (i, j) in cuts):
                    continue
                if mixing:
                    label = self._at_mixing((i, j))
                else:
                    cut = cuts[i, j]
                    own = self.positions.forward.get(v, np.full(v.shape, UNSET))
                    label = np.where(cut, np.broadcast_to(own, cut.shape), UNSET)
                back = self._returns((i, j), equation.outputs, label, mixing)
                for where, found in ((exits, ~back), (closed, back)):
                    here = np.where(found, label, UNSET)
                    if (here >= 0).any():
                        where[i, j] = here
        for j, v in enumerate(program.outputs):
            if v in self.labels:
                exits[len(program.equations), j] = self.labels[v]
        return exits, closed

    def _returns(self, edge: Edge, outputs, label, mixing: bool) -> np.ndarray:
        """Where an operation leads back to the population of the label's position; for
        what entered in this step, to its group."""
        result = np.zeros(label.shape, bool)
        for g, backward in enumerate(self.positions.backward):
            own = self.positions.group_of(label) == g
            if mixing:
                result |= own & self.positions.flows_into(g, outputs)
                continue
            for v in outputs:
                if v in backward:
                    result |= own & (backward[v] != UNSET)
        if edge in self.positions.returning:
            old = self.positions.forward[self.operations.program.operand(edge)] >= 0
            result = np.where(old, self.positions.returning[edge], result)
        return result


def _first(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a >= 0, a, b)
