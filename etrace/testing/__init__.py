import importlib as _importlib
from typing import Any as _Any

from . import rules as rules
from ._cells import CELLS as CELLS, SPIKING as SPIKING
from ._dense import dense_reference as dense_reference
from ._groups import StateGroup as StateGroup
from ._marks import (
    local_output as local_output,
    mixing_input as mixing_input,
    new_state as new_state,
    site as site,
)
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
from ._reference import rule_reference as rule_reference
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
    "local_output",
    "mixing_input",
    "new_state",
    "over_batch",
    "rule_reference",
    "site",
    "squared_error",
    "truncated",
]


def __getattr__(name: str) -> _Any:
    if name in _STRATEGIES:
        return getattr(_importlib.import_module("._strategies", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
