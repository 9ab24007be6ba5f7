"""What a parameter influences, and where: the graph of a model's step, its report."""

from .cache import (
    LostCreditWarning as LostCreditWarning,
    UntracedParameterWarning as UntracedParameterWarning,
    digest as digest,
    graph_of as graph_of,
    warn_of_unheard as warn_of_unheard,
)
from .constants import fixed as fixed
from .credit import exits_of as exits_of, heard as heard, unheard as unheard
from .ends import ends_of as ends_of
from .graph import Graph as Graph, TraceSpec as TraceSpec, of_graph as of_graph
from .options import (
    GraphOptions as GraphOptions,
    MixingTails as MixingTails,
    Recurrence as Recurrence,
)
from .queries import (
    complete_groups as complete_groups,
    leaving as leaving,
    seen_at_exits as seen_at_exits,
)
from .report import Report as Report, Row as Row
from .sparsity import positions_of as positions_of, reach as reach
from .tables import table as table
