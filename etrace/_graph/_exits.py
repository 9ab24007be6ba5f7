"""Where what a position holds is read by others.

Values belong to a position as long as nothing has mixed them: what depends locally on
the old state there, and what enters it in this step through sites. Where such a value
is read by a mixing operation or is an output, credit leaves the position. If the
operation leads back to the new state of the position's own group, the edge is *closed*
(the group's recurrence), otherwise it is an *exit*.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ._positions import UNSET, Labels, Positions
from ._primitives import NOTHING, Kind, Primitives
from ._program import Edge, Var


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
    primitives: Primitives, positions: Positions, entering: Mapping[Edge | Var, object]
) -> Exits:
    """Follows the labels of the old state, and of what enters through sites.

    `entering` holds the labels of sites, by the equation's output or, for a weight that
    is traced where it is read, by its edge.
    """
    labels = dict(positions.forward)
    walk = _Walk(primitives, positions, labels)
    closed = walk.leaving()[1]
    walk = _Walk(primitives, positions, walk.with_sites(entering))
    return Exits(walk.leaving()[0], closed)


class _Walk:
    def __init__(self, primitives: Primitives, positions: Positions, labels: Labels):
        self.primitives = primitives
        self.positions = positions
        self.labels = labels

    def with_sites(self, entering: Mapping) -> Labels:
        """Labels of everything that belongs to a position."""
        labels = dict(self.positions.forward)
        for i, equation in enumerate(self.primitives.program.equations):
            kind = self.primitives.kinds[i]
            for v in equation.outputs:
                if v in entering:
                    labels[v] = entering[v]
            if kind in (Kind.MIXING, Kind.STOP):
                continue
            operands = [
                self._operand(labels, entering, (i, j))
                for j in range(len(equation.inputs))
            ]
            if all(o is None for o in operands):
                continue
            if kind is Kind.MOVEMENT:
                found = self._moved(i, operands)
            else:
                found = self._combined(i, [o for o in operands if o is not None])
            for v, label in zip(equation.outputs, found):
                if v.inexact and (label != UNSET).any():
                    old = labels.get(v)
                    labels[v] = label if old is None else _first(old, label)
        return labels

    def _operand(self, labels: Labels, entering: Mapping, edge: Edge):
        if edge in entering:
            return entering[edge]
        label = labels.get(self.primitives.program.operand(edge))
        if label is None or edge not in self.positions.cuts:
            return label
        cut = self.positions.cuts[edge]
        return np.where(cut, UNSET, np.broadcast_to(label, cut.shape))

    def _moved(self, i: int, operands: list) -> list[np.ndarray]:
        inputs = self.primitives.program.equations[i].inputs
        flat = np.concatenate(
            [
                np.full(v.size, UNSET) if o is None else o.reshape(-1)
                for v, o in zip(inputs, operands)
            ]
        )
        return [
            np.where(source == NOTHING, UNSET, flat[source])
            for source in self.primitives.sources(i)
        ]

    def _combined(self, i: int, operands: list) -> list[np.ndarray]:
        """Where labels differ, the one that flows into the state."""
        outputs = self.primitives.program.equations[i].outputs
        result = np.full(outputs[0].shape, UNSET)
        for operand in operands:
            result = _first(result, np.broadcast_to(operand, result.shape))
        for operand in operands:
            label = np.broadcast_to(operand, result.shape)
            for backward in self.positions.backward:
                flows = backward.get(outputs[0])
                if flows is not None:
                    result = np.where((label >= 0) & (flows == label), label, result)
        return [result] * len(outputs)

    def leaving(self) -> tuple[dict[Edge, np.ndarray], dict[Edge, np.ndarray]]:
        """(exits, closed edges) of the labelled values."""
        exits, closed = {}, {}
        program, cuts = self.primitives.program, self.positions.cuts
        for i, equation in enumerate(program.equations):
            mixing = self.primitives.kinds[i] is Kind.MIXING
            for j, v in enumerate(equation.inputs):
                label = self.labels.get(v)
                if label is None or not (mixing or (i, j) in cuts):
                    continue
                if not mixing:
                    cut = cuts[i, j]
                    own = self.positions.forward.get(v, np.full(v.shape, UNSET))
                    label = np.where(cut, np.broadcast_to(own, cut.shape), UNSET)
                back = self._returns(equation.outputs, label, mixing)
                for where, found in ((exits, ~back), (closed, back)):
                    here = np.where(found, label, UNSET)
                    if (here >= 0).any():
                        where[i, j] = here
        for j, v in enumerate(program.outputs):
            if v in self.labels:
                exits[len(program.equations), j] = self.labels[v]
        return exits, closed

    def _returns(self, outputs, label: np.ndarray, mixing: bool) -> np.ndarray:
        """Where an operation leads back to the new state of the label's own group."""
        result = np.zeros(label.shape, bool)
        for g, backward in enumerate(self.positions.backward):
            own = self.positions.group_of(label) == g
            if mixing:
                result |= own & self.positions.flows_into(g, outputs)
                continue
            for v in outputs:
                if v in backward:
                    result |= own & (backward[v] != UNSET)
        return result


def _first(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a >= 0, a, b)
