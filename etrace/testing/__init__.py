import importlib as _importlib
from typing import Any as _Any

from ._cells import CELLS as CELLS, SPIKING as SPIKING
from ._dense import StateGroup as StateGroup, dense_reference as dense_reference
from ._marks import mixing_input as mixing_input
from ._models import LayerSpec as LayerSpec, NetSpec as NetSpec, RandomNet as RandomNet
from ._oracles import (
    bptt as bptt,
    over_batch as over_batch,
    squared_error as squared_error,
    truncated as truncated,
)
from ._parts import EXPRESSIONS as EXPRESSIONS, FORMS as FORMS
from ._problems import Problem as Problem, make_problem as make_problem
from ._readouts import READOUTS as READOUTS
from ._vectors import gradient_distance as gradient_distance

# The strategies need hypothesis, the oracles do not: the former are imported when first
# asked for.
_STRATEGIES = (
    "KINDS",
    "batch_sizes",
    "dtypes",
    "layer_specs",
    "masks",
    "net_specs",
    "problems",
    "sequence_lengths",
    "window_splits",
    "windows",
)

__all__ = [
    "CELLS",
    "EXPRESSIONS",
    "FORMS",
    "READOUTS",
    "SPIKING",
    "LayerSpec",
    "NetSpec",
    "Problem",
    "RandomNet",
    "StateGroup",
    "bptt",
    "dense_reference",
    "gradient_distance",
    "make_problem",
    "mixing_input",
    "over_batch",
    "squared_error",
    "truncated",
]


def __getattr__(name: str) -> _Any:
    if name in _STRATEGIES:
        return getattr(_importlib.import_module("._strategies", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
