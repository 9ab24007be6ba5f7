from ._batched import (
    Adjoint as Adjoint,
    Env as Env,
    Value as Value,
    inject as inject,
    run as run,
)
from ._graph import Graph as Graph, MixingTails as MixingTails, TraceSpec as TraceSpec
from ._local import (
    LocalRegion as LocalRegion,
    complete_groups as complete_groups,
    take as take,
)
from ._lookup import (
    UntracedParameterWarning as UntracedParameterWarning,
    graph_of as graph_of,
)
from ._program import Edge as Edge
from ._report import Report as Report
from ._steps import (
    Rolled as Rolled,
    Steps as Steps,
    inexact as inexact,
    is_inexact as is_inexact,
)
