"""Which operations keep a weight from a trace."""

from collections.abc import Collection, Mapping

import numpy as np

from .._program.flow import pull
from .._program.ir import Edge, Var
from .._program.labels import BLOCKED, Labels
from .._program.operations import Operations
from .._program.primitive import Kind


def mixing_behind(
    operations: Operations,
    start: Collection[Var],
    flow: Labels,
    own: Mapping[Edge, np.ndarray],
) -> list[int]:
    """The first mixing operations on the ways from some values to a group.

    `flow`: the position of the group that values flow into; `own`: where they enter its
    own recurrence, which is left out by definition.
    """
    reached, found = set(start), []
    for i, e in enumerate(operations.program.equations):
        if reached.isdisjoint(e.inputs):
            continue
        if operations.kinds[i] is not Kind.MIXING:
            reached.update(e.outputs)
            continue
        for j, v in enumerate(e.inputs):
            if v in reached:
                label = pull(operations, flow, (i, j), own=own)
                if label is not None and (label == BLOCKED).any():
                    found.append(i)
                    break
    return found
