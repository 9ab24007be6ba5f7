"""What an algorithm carries from call to call beside the model's own state."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._analysis import Graph


class Trace(eqx.Module):
    """The eligibility traces of one algorithm, and the graph they belong to.

    - `data`: what the rule stores; for most rules one array per trace of the graph.
      None for a zero trace that was not made.
    - `first`: whether no step was taken yet, so that the hidden state is that of
      `init_state`: one bool, with `batched=True` one per example. None if no parameter
      is in the initial state.
    """

    data: PyTree
    graph: Graph = eqx.field(static=True)
    first: PyTree = None  # an array, or its shape

    def carried(self, other: PyTree) -> PyTree:
        """What a step carries along beside the hidden state, see `Call.carried`."""
        return other if self.first is None else (other, self.first)

    def other(self, carried: PyTree) -> PyTree:
        """Undoes `carried`."""
        return carried if self.first is None else carried[0]

    def __repr__(self) -> str:
        # The graph has a report of its own, hundreds of lines long.
        first = "" if self.first is None else f", first={eqx.tree_pformat(self.first)}"
        return f"Trace(data={eqx.tree_pformat(self.data)}, graph=...{first})"


def first_spec(graph: Graph, batch: int | None) -> jax.ShapeDtypeStruct | None:
    """What `Trace.first` is of a batch, or of one example."""
    if not graph.call.initial.hidden:
        return None
    return jax.ShapeDtypeStruct(() if batch is None else (batch,), jnp.bool_)
