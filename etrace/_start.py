"""The state before the first step."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._analysis import Graph
from ._axes import examples_in, repeat_over_batch
from ._model import initial_state
from ._rule import Rule
from ._trace import Trace, first_spec

State = tuple[PyTree, PyTree, Trace]


class Start(eqx.Module):
    """What a state is made of before the first step: that of one example."""

    hidden: PyTree
    other: PyTree
    graph: Graph = eqx.field(static=True)

    @staticmethod
    def of(algorithm: Rule, graph: Graph) -> "Start":
        state = initial_state(algorithm.model, algorithm.hidden_filter)
        return Start(*state, graph)

    def state(self, batch: int | None) -> State:
        """The state of a batch, or of one example; its trace is not made."""
        state = self.hidden, self.other
        if batch is not None:
            first = len(jax.tree.leaves(self.hidden))
            keys = [first + n for n in self.graph.raw_keys]
            state = repeat_over_batch(state, batch, keys)
        # A driver is to write over the state, and not over a parameter in it.
        hidden, other = jax.tree.map(lambda x: x.copy(), state)
        first = first_spec(self.graph, batch)
        first = None if first is None else jnp.ones(first.shape, first.dtype)
        return hidden, other, Trace(None, self.graph, first)


def with_trace(algorithm: Rule, state: State) -> State:
    """The same state, its trace made if it was not."""
    hidden, other, trace = state
    if trace.data is None:
        batch = examples_in(hidden) if algorithm.batched else None
        data = algorithm._start_data(trace.graph, batch)
        trace = dataclasses.replace(trace, data=data)
    return hidden, other, trace
