"""The state before the first step."""

from typing import TYPE_CHECKING

import jax
from jaxtyping import PyTree

from ._axes import repeat_over_batch
from ._model import initial_state
from ._trace import Trace

if TYPE_CHECKING:
    from ._algorithm import ETraceVjpAlgorithm

State = tuple[PyTree, PyTree, Trace]


def begun(algorithm: "ETraceVjpAlgorithm", inputs: tuple[PyTree, ...]) -> State:
    """The state before the first step; its trace is not made."""
    graph, batch = algorithm._graph(inputs)
    state = initial_state(algorithm.model, algorithm.hidden_filter)
    if algorithm.batched:
        state = repeat_over_batch(state, batch)
    hidden, other = jax.tree.map(lambda x: x.copy(), state)
    return hidden, other, Trace(None, graph)


def with_trace(algorithm: "ETraceVjpAlgorithm", state: State) -> State:
    """The same state, its trace made if it was not."""
    hidden, other, trace = state
    if trace.data is None:
        batch = len(jax.tree.leaves(hidden)[0]) if algorithm.batched else None
        data = algorithm._init_etrace_data(trace.graph, batch)
        trace = Trace(data, trace.graph)
    return hidden, other, trace
