"""Where the credit of a group leaves, and whether any arrives.

The signals of a single step come from its own outputs. What a group held in the past is
credited by them at its exits, so that one of these has to lead to an output within the
step. If they lead to what other groups remember alone (a queue in front of the outputs,
a count that is read before it is added to), every signal there is zero.
"""

from collections.abc import Iterable

import numpy as np

from .._program.flow import propagate_backwards, pull
from .._program.ir import Edge, Var
from .._program.labels import LABEL, UNSET, Labels
from .graph import Graph, of_graph


@of_graph
def heard(graph: Graph) -> frozenset[int]:
    """The groups with an exit that leads to an output of the same step."""
    groups = range(len(graph.positions.groups))
    return frozenset(
        g
        for g in groups
        if any(_leads_to_output(graph, edge, g) for edge in exits_of(graph, g))
    )


@of_graph
def unheard(graph: Graph) -> tuple[int, ...]:
    """The groups with traces that no signal of the same step reaches, though outputs of
    later steps depend on them.

    None where windows may go back to a later loss, and none for rules that follow the
    state wherever it goes.
    """
    if graph.options.follows_all or graph.options.remembers_all:
        return ()
    silent = {t.group for t in graph.traces} - heard(graph)
    if silent:
        needed = _needed_leaves(graph)
        groups = graph.positions.groups
        silent = {g for g in silent if needed & set(groups[g].leaves)}
    return tuple(sorted(silent))


def exits_of(graph: Graph, group: int) -> list[Edge]:
    """Where values of a group are read by others, or are outputs."""
    first = graph.new_edge(0)[1]
    return [
        (i, j)
        for (i, j), label in graph.exits.open.items()
        if (graph.positions.group_of(label) == group).any()
        and (i < len(graph.program.equations) or j < first)
    ]


def readers(graph: Graph, group: int) -> tuple[str, ...]:
    """What reads the values of a group: outputs, and the operations of its exits with
    what they lead to in the same step."""
    found = []
    for edge in exits_of(graph, group):
        if edge[0] == len(graph.program.equations):
            found.append("outputs")
            continue
        equation = graph.program.equations[edge[0]]
        flows = graph.positions.flows_into
        others = (g for g in range(len(graph.positions.groups)) if g != group)
        to = [f"group {g}" for g in others if flows(g, equation.outputs)]
        to += ["outputs"] * _leads_to_output(graph, edge, group)
        found.append(f"{equation.name} → {', '.join(to) or 'nothing'}")
    return tuple(dict.fromkeys(found))


def _leads_to_output(graph: Graph, edge: Edge, group: int) -> bool:
    """Whether what a group leaves at an exit flows into an output of the step."""
    if edge[0] == len(graph.program.equations):
        return graph.program.outputs[edge[1]].inexact
    label = graph.exits.open[edge]
    flows = pull(graph.operations, _to_outputs(graph), edge)
    if flows is None:
        return False
    flows = np.broadcast_to(flows, label.shape) != UNSET
    return bool((flows & (graph.positions.group_of(label) == group)).any())


@of_graph
def _to_outputs(graph: Graph) -> Labels:
    """Which elements of every value flow into an output: those that are not UNSET."""
    return _flowing_into(graph, graph.program.outputs[: graph.new_edge(0)[1]])


def _flowing_into(graph: Graph, values: Iterable[Var]) -> Labels:
    seeds = {v: np.zeros(v.shape, LABEL) for v in values if v.inexact}
    return propagate_backwards(graph.operations, seeds)


def _needed_leaves(graph: Graph) -> set[int]:
    """The hidden leaves on which outputs of the same or a later step depend."""
    labels, needed = _to_outputs(graph), set()
    while True:
        old = enumerate(graph.old)
        more = {k for k, v in old if v in labels and (labels[v] != UNSET).any()}
        if more == needed:
            return needed
        needed = more
        outputs = graph.program.outputs[: graph.new_edge(0)[1]]
        labels = _flowing_into(graph, [*outputs, *(graph.new[k] for k in needed)])
