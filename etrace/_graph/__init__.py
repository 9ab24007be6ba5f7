from ._graph import Graph as Graph
from ._graph import MixingTails as MixingTails
from ._graph import TraceSpec as TraceSpec
from ._lookup import graph_of as graph_of
from ._lookup import UntracedParameterWarning as UntracedParameterWarning
from ._report import Report as Report
from ._signals import LocalSignals as LocalSignals
from ._signals import Steps as Steps
