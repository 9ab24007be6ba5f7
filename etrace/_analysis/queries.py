"""What the graph alone says of the ways through a step."""

from collections.abc import Iterable, Mapping

import numpy as np

from .._program.ir import Edge, Var
from .._program.labels import UNSET
from .._program.primitive import Kind
from .graph import Graph, of_graph


@of_graph
def local_equations(graph: Graph, recurrent: bool = False) -> tuple[int, ...]:
    """The equations of the local region, in order.

    `recurrent`: with what of the recurrence the graph includes.
    """
    equations = graph.program.equations
    apart = graph.positions.inner if recurrent else graph.converging
    active, made = {*graph.old}, set()
    if recurrent and isinstance(graph.options.recurrence, float):
        made.update(new_values(graph))
        active |= made
    active.update(s.equation.outputs[0] for s in graph.sites if not s.direct)
    direct = {s.edge for s in graph.sites if s.direct}
    region = []
    for i, e in enumerate(equations):
        local = graph.operations.kinds[i] in (Kind.ELEMENTWISE, Kind.MOVEMENT)
        local |= recurrent and i in (graph.diagonals or {})
        local |= any((i, j) in apart for j in range(len(e.inputs)))
        local &= not any(v in made for v in e.outputs)
        enters = any(v in active or (i, j) in direct for j, v in enumerate(e.inputs))
        if local and enters:
            region.append(i)
            active.update(e.outputs)
    needed = {*graph.new, *map(graph.program.operand, graph.exits.open)}
    kept = []
    for i in reversed(region):
        if any(v in needed for v in equations[i].outputs):
            needed.update(equations[i].inputs)
            kept.append(i)
    return tuple(reversed(kept))


def new_values(graph: Graph) -> list[Var]:
    """The new state where it is computed: exits read it there."""
    copies = {e.outputs[0]: e.inputs[0] for e in graph.program.equations if e.outputs}
    return [copies[v] for v in graph.new]


@of_graph
def complete_groups(graph: Graph) -> frozenset[int]:
    """Groups whose remembered state parameters enter only by sites traced in full.

    There the gradient of the new state, the old one held, is the immediate part of the
    traces: no other path leads from a parameter to the state within a step.
    """
    program = graph.program
    moving = program.reached_from(graph.inputs["params"], graph.operations.passes)
    made_by = {v: i for i, e in enumerate(program.equations) for v in e.outputs}

    def complete(group: int) -> bool:
        own = [t for t in graph.traces if t.group == group]
        traced = {graph.sites[t.site].edge for t in own if (t.positions != UNSET).all()}
        leaves = graph.positions.groups[group].leaves
        pending = [graph.new[leaves[s]] for s in graph.remembered(group)]
        seen = set(pending)
        while pending:
            i = made_by.get(pending.pop())
            if i is None:
                return False  # a parameter itself
            for j, v in enumerate(program.equations[i].inputs):
                if v in moving and (i, j) not in traced:
                    if _ends_at(graph, (i, j)):
                        return False
                    if v not in seen:
                        seen.add(v)
                        pending.append(v)
        return True

    return frozenset(filter(complete, range(len(graph.positions.groups))))


@of_graph
def leaving(graph: Graph, group: int) -> Mapping[Edge, np.ndarray]:
    """The elements, where they are read, from which nothing returns to a group: of
    outputs and operations that do not lead to its new state, and its own at exits."""
    positions = graph.positions
    equations, kinds = graph.program.equations, graph.operations.kinds
    returning = {
        i for i, e in enumerate(equations) if positions.flows_into(group, e.outputs)
    }
    mixing = (i for i, kind in enumerate(kinds) if kind is Kind.MIXING)
    result = {
        (i, j): np.ones(v.shape, bool)
        for i in mixing
        if i not in returning
        for j, v in enumerate(equations[i].inputs)
        if (i, j) not in positions.inner
    }
    for edge, label in graph.exits.open.items():
        own = positions.group_of(label) == group
        result.setdefault(edge, own if edge[0] in returning else label != UNSET)
    return result


@of_graph
def seen_at_exits(graph: Graph) -> frozenset[int]:
    """Traces whose sites act on the losses of their step by the exits of one group.

    What the exits say at such a site, its x given, is the whole gradient of the step.
    """
    sites = [spec.site for spec in graph.traces]

    def seen(t: int) -> bool:
        spec, site = graph.traces[t], graph.sites[sites[t]]
        alone = sites.count(sites[t]) == 1 and (spec.positions != UNSET).all()
        if not alone:
            return False
        ends = _ends(graph, site.equation.outputs)
        return all(_is_left(graph, spec.group, edge) for edge in ends)

    return frozenset(filter(seen, range(len(sites))))


def _ends(graph: Graph, start: Iterable[Var]) -> list[Edge]:
    """Where values that depend on others by local paths are read by mixing operations,
    cut, or given out."""
    equations, kinds = graph.program.equations, graph.operations.kinds
    reached, result = set(start), []
    for i, e in enumerate(equations):
        edges = [(i, j) for j, v in enumerate(e.inputs) if v in reached]
        if not edges or kinds[i] is Kind.STOP:
            continue
        ends = any(_ends_at(graph, edge) for edge in edges)
        if ends or any(x in graph.positions.cuts for x in edges):
            result += edges
        else:
            reached.update(v for v in e.outputs if v.inexact)
    outputs = enumerate(graph.program.outputs)
    return result + [(len(equations), j) for j, v in outputs if v in reached]


def _ends_at(graph: Graph, edge: Edge) -> bool:
    """Whether the local ways from a site end at an edge, for some elements."""
    shut = graph.converging.get(edge)
    if shut is None:
        return graph.operations.kinds[edge[0]] is Kind.MIXING
    return bool(shut.any())


def _is_left(graph: Graph, group: int, edge: Edge) -> bool:
    """Whether all that has a position at an edge leaves the group there."""
    label, left = graph.exits.open.get(edge), leaving(graph, group).get(edge)
    if label is None or left is None or edge in graph.positions.cuts:
        return False
    own = graph.positions.group_of(label[label != UNSET]) == group
    is_output = edge[0] == len(graph.program.equations)
    return bool(own.all() and (is_output or left.all()))
