"""Online learning by eligibility traces, for recurrent and spiking networks in JAX."""

from . import callbacks as callbacks, nn as nn, plot as plot
from ._algorithm import ETraceVjpAlgorithm as ETraceVjpAlgorithm
from ._analysis import (
    LostCreditWarning as LostCreditWarning,
    Report as Report,
    UntracedParameterWarning as UntracedParameterWarning,
)
from ._backward import LearningSignals as LearningSignals
from ._checkpoint import (
    check_description as check_description,
    describe as describe,
    restore as restore,
    save as save,
)
from ._data import MultiStepData as MultiStepData, SingleStepData as SingleStepData
from ._rules import (
    DNI as DNI,
    DRTRL as DRTRL,
    ESDRTRL as ESDRTRL,
    KFRTRL as KFRTRL,
    OSTL as OSTL,
    OTPE as OTPE,
    OTTT as OTTT,
    RFLO as RFLO,
    RTRL as RTRL,
    UORO as UORO,
    EProp as EProp,
    HybridDRTRL as HybridDRTRL,
    PPProp as PPProp,
    SnAp as SnAp,
    ThreeFactor as ThreeFactor,
)
from ._sequence import (
    evolve as evolve,
    learn as learn,
    value_and_grad as value_and_grad,
)
from ._stream import stream as stream
from ._synthesiser import fit_synthesiser as fit_synthesiser
from ._trace import Trace as Trace
from ._verify import (
    GradientCheck as GradientCheck,
    check_gradients as check_gradients,
)
from ._window import Window as Window
