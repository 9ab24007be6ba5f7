from ._batched import (
    Adjoint as Adjoint,
    Value as Value,
    inject as inject,
    take as take,
)
from ._graph import Graph as Graph, MixingTails as MixingTails, TraceSpec as TraceSpec
from ._local import (
    LocalRegion as LocalRegion,
    added as added,
    complete_groups as complete_groups,
)
from ._lookup import (
    UntracedParameterWarning as UntracedParameterWarning,
    graph_of as graph_of,
)
from ._program import Edge as Edge
from ._recurrence import Recurrence as Recurrence
from ._report import Report as Report
from ._steps import (
    Rolled as Rolled,
    Steps as Steps,
    inexact as inexact,
    is_inexact as is_inexact,
)
