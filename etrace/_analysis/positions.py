"""Positions: which elements of the state talk to each other one by one.

Integer labels are run through the program. *Forwards* from the old state, a label
says which position a value belongs to; *backwards* from the new state, which position
it will flow into. State leaves whose elements meet pairwise form one *group*; where a
value would arrive at another position than its own, the path is *cut*. A mixing
operation is *inner* to a value of which it mixes what belongs to one position only.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .._program.blocks import first_labels
from .._program.flow import propagate_backwards
from .._program.ir import Edge, Var
from .._program.labels import BLOCKED, LABEL, MIXED, UNSET, Labels
from .._program.operations import Operations
from .._program.primitive import Kind
from .partition import Group, Partition
from .populations import Populations, find_populations


@dataclasses.dataclass(frozen=True, eq=False)
class Positions:
    groups: tuple[Group, ...]
    forward: Labels  # global position of every value that is local to the old state
    backward: tuple[Labels, ...]  # per group: the position a value flows into
    cuts: dict[Edge, np.ndarray]  # elements that arrive at another position
    inner: frozenset[Edge]  # of mixing operations, where positions are not mixed
    returning: Mapping[Edge, np.ndarray]  # elements that enter their own recurrence
    own: Mapping[Edge, np.ndarray]  # those where what weights did to them is cut, too
    flow: tuple[Labels, ...]  # as `backward`, but for what enters the own recurrence
    moved: dict[int, np.ndarray]  # elements of new leaves that come from elsewhere
    parts: Mapping[int, np.ndarray]  # of leaves that hold populations apart

    def flows_into(self, group: int, values: Iterable[Var]) -> bool:
        """Whether one of some values flows into the new state of a group."""
        backward = self.backward[group]
        return any((backward[v] != UNSET).any() for v in values if v in backward)

    def own_products(self, operations: Operations) -> dict[Edge, np.ndarray]:
        """Where weights are multiplied with what enters its own recurrence, by element:
        what other weights did to it before stops there."""
        kinds = operations.kinds
        own = self.own.items()
        return {e: stops for e, stops in own if kinds[e[0]] is Kind.ELEMENTWISE}

    def group_of(self, labels: np.ndarray) -> np.ndarray:
        """The group of each global position (UNSET where there is none)."""
        bounds = np.array([g.offset for g in self.groups])
        found = np.searchsorted(bounds, labels, side="right") - 1
        return np.where(labels >= 0, found, UNSET)


def find_positions(
    operations: Operations,
    old: Sequence[Var],
    new: Sequence[Var],
    params: Iterable[Var],
    data: Iterable[Var],
) -> Positions:
    """Groups the hidden leaves `old`, whose next values are `new`.

    A clock, a key, a recording in the state: what no parameter can reach has no
    influence to carry. It is of no group, whatever its dtype.
    """
    still = _still(operations, old, new, params)
    partition = Partition([v.size for v in old], still)
    known: dict[Any, Labels] = {}
    while True:
        groups = partition.groups()
        backward = tuple(_backward(operations, g, new, known) for g in groups)
        walk = _ForwardWalk(operations, old, groups, backward)
        pairs = walk.run(partition)
        if pairs is None:
            pairs = walk.arrivals(partition, new)
        if pairs is None:
            break
        partition.merge(*pairs)
    moved = {leaf: label != own for leaf, label, own in walk.arrived(new)}
    moved = {leaf: m for leaf, m in moved.items() if m.any()}
    inner = frozenset(walk.inner)
    moving = operations.program.reached_from(data)
    found = find_populations(
        operations, groups, walk.labels, backward, inner, new, moving
    )
    flow, own = backward, _own(walk, found)
    own.update(_before_products(operations, own, moving))
    if own:
        seeds = [g.labels(new) for g in groups]
        flow = tuple(propagate_backwards(operations, s, own=own) for s in seeds)
    return Positions(
        groups,
        walk.labels,
        backward,
        walk.cuts,
        inner,
        found.returning,
        own,
        flow,
        moved,
        found.parts,
    )


def _backward(
    operations: Operations, group: Group, new: Sequence[Var], known: dict[Any, Labels]
) -> Labels:
    """The position into which each element of each value flows. It is `known`, but for
    the offset, of a group that has not grown."""
    key = group.leaves, *(p.tobytes() for p in group.positions)
    if key not in known:
        own = dataclasses.replace(group, offset=0).labels(new)
        known[key] = propagate_backwards(operations, own)
    found = known[key].items()
    return {v: np.where(x >= 0, x + LABEL(group.offset), x) for v, x in found}


def _still(
    operations: Operations,
    old: Sequence[Var],
    new: Sequence[Var],
    params: Iterable[Var],
) -> frozenset[int]:
    """The leaves whose values no parameter can change, by any number of steps."""
    moving = set(params)
    while True:
        moving = operations.program.reached_from(moving, operations.passes)
        more = [a for a, b in zip(old, new) if b in moving and a not in moving]
        if not more:
            break
        moving.update(more)
    return frozenset(i for i, v in enumerate(new) if v not in moving)


def _own(walk: "_ForwardWalk", found: Populations) -> dict[Edge, np.ndarray]:
    """Where gradients of weights stop as well, which acted on the old state before: a
    threshold in `U @ spike(v - threshold)`. They keep the ways that are local.

    Not where several positions share all that comes out, which is no recurrence but a
    tail of the weight: the mean in a norm of the new state.
    """
    result = {}
    for (i, j), returning in found.returning.items():
        equation = walk.operations.program.equations[i]
        label, own = walk.labels[equation.inputs[j]], np.zeros(returning.shape, bool)
        for g, backward in zip(walk.groups, walk.backward):
            flows = [backward[v] for v in equation.outputs if v in backward]
            if any(((f >= 0) | (f == BLOCKED)).any() for f in flows):
                own |= (label >= g.offset) & (label < g.offset + g.size)
        if (own & returning).any():
            result[i, j] = own & returning
    return result


def _before_products(
    operations: Operations, own: Mapping[Edge, np.ndarray], moving: Collection[Var]
) -> dict[Edge, np.ndarray]:
    """The same for a product written out, `sum(W * s, axis=1)`: they stop where s
    enters the multiplication, so that W itself is traced there."""
    equations, result = operations.program.equations, {}
    made = {v: i for i, e in enumerate(equations) for v in e.outputs}
    for (i, j), stops in own.items():
        k = made.get(equations[i].inputs[j])
        if k is None or operations.kinds[k] is not Kind.ELEMENTWISE:
            continue
        inputs = equations[k].inputs
        weights = [v.inexact and v not in moving and v.size > 1 for v in inputs]
        if any(weights) and operations.blocks((i, j)) is not None:
            data = (n for n, weight in enumerate(weights) if not weight)
            result.update({(k, n): stops for n in data})
    return result


def _clashing(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The pairs of different positions that meet; None if there are none."""
    apart = [(x >= 0) & (y >= 0) & (x != y) for x, y in zip(a, b, strict=True)]
    if not any(d.any() for d in apart):
        return None
    first, second = (
        np.concatenate([x[d] for x, d in zip(labels, apart)]) for labels in (a, b)
    )
    return first, second


class _ForwardWalk:
    """Carries the labels of the old state forwards, deciding conflicts on the way."""

    def __init__(
        self,
        operations: Operations,
        old: Sequence[Var],
        groups: Sequence[Group],
        backward: Sequence[Labels],
    ):
        self.operations = operations
        self.groups = groups
        self.backward = backward
        self.labels: Labels = {}
        self.cuts: dict[Edge, np.ndarray] = {}
        self.inner: set[Edge] = set()
        for g in groups:
            labels = g.labels(old).items()
            self.labels.update((v, label) for v, label in labels if v.inexact)

    def run(self, partition: Partition):
        """Labels every local value. Stops at positions to merge, which it returns."""
        for i, equation in enumerate(self.operations.program.equations):
            operands = [self.labels.get(v) for v in equation.inputs]
            if all(o is None for o in operands):
                continue
            if self.operations.kinds[i] is Kind.MIXING:
                pairs = self._mixing(partition, i, operands)
            else:
                pairs = self._local(partition, i, operands)
            if pairs is not None:
                return pairs
        return None

    def _set(self, var: Var, label: np.ndarray) -> None:
        if var.inexact and (label >= 0).any():
            self.labels[var] = label

    def _mixing(self, partition: Partition, i: int, operands):
        """A mixing operation, of which operands may be mixed within positions only.

        What it reads of several states meets there, as in an elementwise operation: a
        voltage and the ring buffer that it is written to.
        """
        outputs = self.operations.program.equations[i].outputs
        found: list = [np.full(v.shape, UNSET, LABEL) for v in outputs]
        for j, label in enumerate(operands):
            blocks = None if label is None else self.operations.blocks((i, j))
            if label is None or blocks is None:
                continue
            own = blocks.joined(label)
            first = blocks.to_operand(first_labels(label, blocks))
            results = blocks.to_results(own)
            pairs = _clashing([first, *found], [label, *results])
            if pairs is not None:
                pairs = partition.mergeable(*pairs)
                if pairs is not None:
                    return pairs
            elif (own != MIXED).all():
                found = [np.where(o >= 0, o, r) for o, r in zip(found, results)]
                self.inner.add((i, j))
        for v, label in zip(outputs, found):
            self._set(v, label)
        return None

    def _local(self, partition: Partition, i: int, operands):
        """An elementwise operation or a movement; returns positions to merge, if any.

        Where several operands meet, it is elementwise, and its results are alike.
        """
        outputs = self.operations.program.equations[i].outputs
        found = self.operations.arriving(i, operands, UNSET)
        if not found or len(found[0]) < 2 or not any(v.inexact for v in outputs):
            for v, ways in zip(outputs, found):
                for label in ways:
                    self._set(v, label)
            return None
        given = (j for j, o in enumerate(operands) if o is not None)
        labels = dict(zip(given, found[0], strict=True))
        result = functools.reduce(np.maximum, labels.values())
        apart = [(o >= 0) & (o != result) for o in labels.values() if o is not result]
        conflict = functools.reduce(np.logical_or, apart, np.zeros((), bool))
        if conflict.any():
            for o in labels.values():
                differ = (o >= 0) & (o != result)
                pairs = partition.mergeable(result[differ], o[differ])
                if pairs is not None:
                    return pairs
            result = self._resolve(i, labels, result, conflict, outputs)
        for v in outputs:
            self._set(v, result)
        return None

    def _resolve(self, i, labels, result, conflict, outputs) -> np.ndarray:
        """Keeps the operand whose position the output flows into, cuts the others."""
        kept = np.full(result.shape, UNSET, LABEL)
        for label in labels.values():
            arrives = np.zeros(result.shape, bool)
            for backward in self.backward:
                for v in outputs:
                    arrives |= backward.get(v, np.full(result.shape, UNSET)) == label
            kept = np.where(conflict & arrives & (kept == UNSET), label, kept)
        for j, label in labels.items():
            cut = conflict & (label >= 0) & (label != kept)
            if cut.any():
                self.cuts[i, j] = cut
        return np.where(conflict, kept, result)

    def arrived(self, new: Sequence[Var]):
        """Per new leaf that is local to the old state: (leaf, labels, own labels)."""
        for g in self.groups:
            for leaf in g.leaves:
                label = self.labels.get(new[leaf])
                if label is not None:
                    own = g.labels(new)[new[leaf]]
                    yield leaf, label, np.where(label >= 0, own, UNSET)

    def arrivals(self, partition: Partition, new: Sequence[Var]):
        """A leaf whose new value is local to another leaf belongs to its group."""
        for _, label, own in self.arrived(new):
            other = label != own
            pairs = partition.mergeable(label[other], own[other])
            if pairs is not None:
                return pairs
        return None
