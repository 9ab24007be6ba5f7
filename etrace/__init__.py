"""Online learning by eligibility traces, for recurrent and spiking networks in JAX."""

from ._algorithm import ETraceVjpAlgorithm as ETraceVjpAlgorithm
from ._data import MultiStepData as MultiStepData, SingleStepData as SingleStepData
from ._graph import UntracedParameterWarning as UntracedParameterWarning
from ._rules import DRTRL as DRTRL
from ._sequence import (
    evolve as evolve,
    learn as learn,
    value_and_grad as value_and_grad,
)
