"""Labels: of each element of a value, the position that it is of, or flows into."""

from collections.abc import Sequence

import numpy as np

from .ir import Var

LABEL = np.int32  # half the memory of a large network's analysis, and enough

UNSET = -1  # none
MIXED = -2  # several
BLOCKED = -3  # one, or several, through a mixing operation

Labels = dict[Var, np.ndarray]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """What several labels of the same elements say together."""
    result = parts[0]
    for part in parts[1:]:
        blocked = (result == BLOCKED) | (part == BLOCKED)
        clash = np.where(blocked, BLOCKED, MIXED)
        clash = np.where(result == part, result, clash)
        clash = np.where(part == UNSET, result, clash)
        result = np.where(result == UNSET, part, clash)
    return result


def scattered(labels: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """The same for labels that arrive at the same of `size` targets, [size]."""
    labels, targets = labels.reshape(-1), targets.reshape(-1)
    low = np.full(size, np.iinfo(LABEL).max, LABEL)
    high = np.full(size, UNSET, LABEL)
    definite = labels >= 0
    np.minimum.at(low, targets[definite], labels[definite])
    np.maximum.at(high, targets[definite], labels[definite])
    result = np.where(high < 0, UNSET, np.where(low == high, high, MIXED))
    result[targets[labels == MIXED]] = MIXED
    result[targets[labels == BLOCKED]] = BLOCKED
    return result
