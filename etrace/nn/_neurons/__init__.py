from ._adaptive import (
    ALIF as ALIF,
    GIF as GIF,
    ALIFState as ALIFState,
    GIFState as GIFState,
)
from ._base import AbstractNeuron as AbstractNeuron
from ._firing import FiringOptions as FiringOptions
from ._lif import (
    IF as IF,
    LIF as LIF,
    CurrentLIF as CurrentLIF,
    CurrentLIFState as CurrentLIFState,
    LeakyIntegrator as LeakyIntegrator,
    LeakyIntegratorState as LeakyIntegratorState,
    LIFState as LIFState,
)
from ._nonlinear import (
    AdEx as AdEx,
    AdExState as AdExState,
    ExpIF as ExpIF,
    Izhikevich as Izhikevich,
    IzhikevichState as IzhikevichState,
    PeakOptions as PeakOptions,
)
