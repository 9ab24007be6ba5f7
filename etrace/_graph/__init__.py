from ._graph import Graph as Graph, MixingTails as MixingTails, TraceSpec as TraceSpec
from ._lookup import (
    UntracedParameterWarning as UntracedParameterWarning,
    graph_of as graph_of,
)
from ._report import Report as Report
from ._signals import LocalSignals as LocalSignals, Steps as Steps
