"""Where values flow: labels run backwards, from the new state.

A label says which position of a group an element will flow into, by ways on which
positions keep apart.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from .ir import Edge, Var
from .labels import BLOCKED, LABEL, MIXED, UNSET, Labels, joined, scattered
from .operations import Operations
from .primitive import Kind


def propagate_backwards(
    operations: Operations,
    seeds: Labels,
    *,
    through_mixing: int = BLOCKED,
    own: Mapping[Edge, np.ndarray] = MappingProxyType({}),
) -> Labels:
    """The position into which each element of each value flows.

    An element that reaches the seeds through a mixing operation gets
    `through_mixing`: BLOCKED, or UNSET to look at the position-local paths alone.
    Elements that enter their `own` recurrence at an edge are UNSET there in any case.
    """
    labels: Labels = {}
    for var, label in seeds.items():
        _join(labels, var, label)
    equations = operations.program.equations
    for i in reversed(range(len(equations))):
        if any(v in labels for v in equations[i].outputs):
            for j, v in enumerate(equations[i].inputs):
                label = pull(operations, labels, (i, j), through_mixing, own)
                if label is not None:
                    _join(labels, v, label)
    return labels


def pull(
    operations: Operations,
    labels: Labels,
    edge: Edge,
    through_mixing: int = BLOCKED,
    own: Mapping[Edge, np.ndarray] = MappingProxyType({}),
) -> np.ndarray | None:
    """Labels of one operand, from those of its equation's outputs."""
    i, j = edge
    equation = operations.program.equations[i]
    operand, kind = equation.inputs[j], operations.kinds[i]
    outputs = [labels.get(v) for v in equation.outputs]
    if not operand.inexact or kind is Kind.STOP or all(o is None for o in outputs):
        return None
    if kind is Kind.MIXING:
        if all(o is None or (o == UNSET).all() for o in outputs):
            return None
        label = _pull_mixed(operations, edge, outputs, through_mixing)
        stops = own.get(edge)
        if stops is None:
            return label
        return np.where(stops & (label == BLOCKED), UNSET, label)
    if kind is Kind.ELEMENTWISE:
        found = [o for o in outputs if o is not None]
        if edge in own:
            found = [np.where(own[edge], UNSET, o) for o in found]
        if operand.shape == equation.outputs[0].shape:
            return joined(found)
        ids = np.arange(operand.size).reshape(operand.shape)
        ids = np.broadcast_to(ids, equation.outputs[0].shape)
        return joined(
            [scattered(o, ids, operand.size).reshape(operand.shape) for o in found]
        )
    start = sum(v.size for v in equation.inputs[:j])
    parts = []
    for output, source in zip(outputs, operations.sources(i)):
        if output is not None:
            inside = (source >= start) & (source < start + operand.size)
            part = scattered(output[inside], source[inside] - start, operand.size)
            parts.append(part.reshape(operand.shape))
    return joined(parts)


def _pull_mixed(
    operations: Operations, edge: Edge, outputs: Sequence, through_mixing: int
) -> np.ndarray:
    """Of a mixing operation: the position of a block that flows into one alone."""
    operand, blocks = operations.program.operand(edge), operations.blocks(edge)
    if blocks is None:
        return np.full(operand.shape, through_mixing, LABEL)
    own = joined(
        [
            scattered(o, b, blocks.count)
            for o, b in zip(outputs, blocks.results)
            if o is not None
        ]
    )
    own = np.where((own == MIXED) | (own == BLOCKED), through_mixing, own)
    return blocks.to_operand(own)


def converging(
    operations: Operations, flow: Sequence[Labels]
) -> dict[Edge, np.ndarray]:
    """The mixing operations that lead what they read to one position, element by
    element: by edge, the elements they lead to none or to several."""
    result = {}
    for i, equation in enumerate(operations.program.equations):
        if operations.kinds[i] is not Kind.MIXING:
            continue
        found = {}
        for j, v in enumerate(equation.inputs):
            labels = [pull(operations, f, (i, j)) for f in flow]
            shut = np.ones(v.shape, bool)
            for label in labels:
                shut = shut if label is None else np.where(label >= 0, False, shut)
            found[i, j] = shut
        if not all(x.all() for x in found.values()):
            result.update(found)
    return result


def _join(labels: Labels, var: Var, label: np.ndarray) -> None:
    label = np.broadcast_to(label, var.shape)
    labels[var] = joined([labels[var], label]) if var in labels else label
