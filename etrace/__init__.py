"""Online learning by eligibility traces, for recurrent and spiking networks in JAX."""

from ._algorithm import ETraceVjpAlgorithm as ETraceVjpAlgorithm
from ._data import MultiStepData as MultiStepData
from ._data import SingleStepData as SingleStepData
from ._graph import UntracedParameterWarning as UntracedParameterWarning
from ._rules import DRTRL as DRTRL
from ._sequence import evolve as evolve
from ._sequence import learn as learn
from ._sequence import value_and_grad as value_and_grad
