"""What an algorithm carries from call to call beside the model's own state."""

import equinox as eqx
from jaxtyping import PyTree

from ._graph import Graph


class Trace(eqx.Module):
    """The eligibility traces of one algorithm, and the graph they belong to.

    - `data`: what the rule stores; for most rules one array per trace of the graph.
      None for a zero trace that was not made.
    """

    data: PyTree
    graph: Graph = eqx.field(static=True)

    def __repr__(self) -> str:
        # The graph has a report of its own, hundreds of lines long.
        return f"Trace(data={eqx.tree_pformat(self.data)}, graph=...)"
