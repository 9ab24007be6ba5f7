from ._batched import (
    Env as Env,
    Value as Value,
    run as run,
    stopped as stopped,
    take as take,
)
from ._constants import fixed as fixed
from ._credit import exits_of as exits_of, heard as heard, unheard as unheard
from ._derivative import Arrived as Arrived, Way as Way
from ._ends import ends_of as ends_of
from ._graph import Graph as Graph, TraceSpec as TraceSpec, of_graph as of_graph
from ._ir import Edge as Edge, Var as Var
from ._local import LocalRegion as LocalRegion, added as added
from ._lookup import (
    LostCreditWarning as LostCreditWarning,
    UntracedParameterWarning as UntracedParameterWarning,
    digest as digest,
    graph_of as graph_of,
    warn_of_unheard as warn_of_unheard,
)
from ._options import (
    GraphOptions as GraphOptions,
    MixingTails as MixingTails,
    Recurrence as Recurrence,
)
from ._own import OwnPropagation as OwnPropagation
from ._propagation import (
    LocalPropagation as LocalPropagation,
    Propagation as Propagation,
)
from ._reach import positions_of as positions_of, reach as reach
from ._report import Report as Report, Row as Row
from ._steps import (
    Rolled as Rolled,
    Steps as Steps,
    inexact as inexact,
    is_inexact as is_inexact,
)
from ._tables import table as table
from ._values import StepValues as StepValues
from ._ways import (
    complete_groups as complete_groups,
    leaving as leaving,
    seen_at_exits as seen_at_exits,
)
