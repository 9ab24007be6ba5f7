"""What no trace follows from one step to the next, place by place."""

from collections.abc import Callable, Collection, Iterator

import numpy as np

from .._program.custom import is_assumed_linear, is_linear
from .._program.ir import Edge, Equation, Var
from .._program.labels import UNSET
from .._program.source import is_of_library, short
from .credit import exits_of
from .graph import Graph, Occurrence
from .inside import Place
from .reasons import (
    ANOTHERS_LEAK,
    ANOTHERS_MEMORY,
    INITIAL_BY_MIXING,
    NOBODYS_MEMORY,
    NOT_LINEAR,
    NOT_LOOKED_AT,
    ONLY_BY_MIXING,
    OWN_RECURRENCE,
    UNHEARD,
    Loss,
    Reason,
    moved_there,
    not_initial,
    other_position,
    too_large,
)

Filters = Callable[[Graph, Edge, int], bool]  # see `ETraceVjpAlgorithm._filters`


def of_parameters(graph: Graph) -> Iterator[Loss]:
    """Parameters that reach the state without a trace."""
    names = graph.call.params.names()
    for o in graph.occurrences:
        if o.status in ("now", "partly"):
            what, why = tuple(names[p] for p in o.parameters), why_of(graph, o)
            at = [*_mixing(graph, o), entry(graph, o)][0]
            yield Loss(what, *at, why.text, why.remedy)
    if graph.call.initial.error:
        why = not_initial(graph.call.initial.error)
        yield Loss(("init_state()",), "", "", why.text, why.remedy)


def _mixing(graph: Graph, occurrence: Occurrence) -> list[tuple[str, str]]:
    """The operations that keep parameters from a trace, and their lines."""
    equations = [graph.program.equations[i] for i in occurrence.mixing]
    return list(dict.fromkeys((e.name, short(e.source)) for e in equations))


def note(graph: Graph, occurrence: Occurrence) -> str:
    """Why parameters have no trace there, or not in full, and by which operations."""
    found = [f"{name} in {where}" for name, where in _mixing(graph, occurrence)]
    text = why_of(graph, occurrence).text
    return f"{text}: {', '.join(found)}" if found else text


def entry(graph: Graph, occurrence: Occurrence) -> tuple[str, str]:
    """The operation by which parameters enter, and the line of the user's code."""
    program, (i, _) = graph.program, occurrence.edge
    if i == len(program.equations):
        return "output", ""
    equation = program.equations[i]
    if not graph.is_initial(i):
        return equation.name, short(equation.source)
    made = program.needed([program.operand(occurrence.edge)])
    lines = [program.equations[m].source for m in made]
    own = [line for line in lines if not is_of_library(line)]
    return "init_state", short(own[-1]) if own else ""


def why_of(graph: Graph, occurrence: Occurrence) -> Reason:
    """Why parameters have no trace there, or not in full."""
    by_mixing = occurrence.reason == ONLY_BY_MIXING.text
    if by_mixing and graph.is_initial(occurrence.edge[0]):
        return INITIAL_BY_MIXING
    return Reason(occurrence.reason, occurrence.remedy)


def of_functions(graph: Graph) -> Iterator[Loss]:
    """Functions on the way to the state whose derivative is none, as far as is known.

    (On the way to outputs alone, what comes back is that of one step, as it should be.)
    """
    program, names = graph.program, graph.call.params.names()
    found = [
        (program.equations[i], why)
        for i in program.needed(graph.new)
        if (why := _of_function(program.equations[i])) is not None
    ]
    reached = [_reached(graph, v) for v in graph.inputs["params"]] if found else []
    for e, why in found:
        pairs = zip(names, reached)
        what = tuple(name for name, moving in pairs if not moving.isdisjoint(e.inputs))
        if what:
            yield Loss(what, e.name, short(e.source), why.text, why.remedy)


def _of_function(equation: Equation) -> Reason | None:
    if not is_linear(equation):
        return NOT_LINEAR
    return NOT_LOOKED_AT if is_assumed_linear(equation) else None


def _reached(graph: Graph, parameter: Var) -> set[Var]:
    """The values that depend on a parameter, in the same step or by the state."""
    start, size = {parameter}, 0
    while len(start) > size:
        size, reached = len(start), graph.program.reached_from(start)
        start |= {old for old, new in zip(graph.old, graph.new) if new in reached}
    return graph.program.reached_from(start)


def of_groups(graph: Graph, unheard: Collection[int]) -> Iterator[Loss]:
    """Groups that no signal reaches, at the places where others read them."""
    for g in unheard:
        for edge in exits_of(graph, g):
            yield _at(graph, edge, graph.exits.open[edge], UNHEARD)


def of_states(
    graph: Graph, filters: Filters, unheard: Collection[int]
) -> Iterator[Loss]:
    """Ways from the state that are left out, apart from those of `of_groups`."""
    if graph.options.follows_all:
        return
    positions, equations = graph.positions, graph.program.equations
    for edge, label in graph.exits.closed.items():
        if edge not in positions.cuts:
            yield _at(graph, edge, label, of_size(graph, edge) or OWN_RECURRENCE)
    for edge, label in graph.exits.open.items():
        silent = any(edge in exits_of(graph, g) for g in unheard)
        why = None if silent else _of_exit(graph, edge, label, filters)
        if why is not None:
            yield _at(graph, edge, label, why)
    most = graph.options.position_size
    for (i, j), mask in positions.cuts.items():
        label = positions.forward[equations[i].inputs[j]]
        why = of_size(graph, (i, j)) or other_position(int(mask.sum()), most)
        yield _at(graph, (i, j), label, why)
    names = graph.coordinates.names()
    for leaf, mask in positions.moved.items():
        why = of_size(graph, leaf) or moved_there(int(mask.sum()), most)
        yield Loss((names[leaf],), "", "", why.text, why.remedy)


def of_size(graph: Graph, place: Place) -> Reason | None:
    """Why the coupling at a place is left out, if only for the numbers that one
    position would have."""
    numbers, options = graph.too_large.get(place), graph.options
    if numbers is None or isinstance(options.recurrence, float) or options.follows_all:
        return None
    return too_large(numbers, options.position_size)


def groups_at(graph: Graph, place: Place) -> set[int]:
    """The groups whose old state is read at a place."""
    if isinstance(place, int):
        return {
            g for g, own in enumerate(graph.positions.groups) if place in own.leaves
        }
    label = graph.positions.forward[graph.program.operand(place)]
    return set(graph.positions.group_of(label[label >= 0]).tolist())


def _of_exit(
    graph: Graph, edge: Edge, label: np.ndarray, filters: Filters
) -> Reason | None:
    if not graph.leaves_by_mixing(edge):
        return None
    groups = np.unique(graph.positions.group_of(label[label != UNSET]))
    filtered = all(filters(graph, edge, int(g)) for g in groups)
    if _is_remembered(graph, edge, groups):
        return ANOTHERS_LEAK if filtered else ANOTHERS_MEMORY
    return NOBODYS_MEMORY if filtered else None


def _is_remembered(graph: Graph, edge: Edge, groups: np.ndarray) -> bool:
    """Whether another group than those that leave there keeps what it reads."""
    outputs = graph.program.equations[edge[0]].outputs
    return any(
        graph.positions.flows_into(g, outputs) and coupled.any()
        for g, coupled in enumerate(graph.couplings)
        if g not in groups
    )


def _at(graph: Graph, edge: Edge, label: np.ndarray, why: Reason) -> Loss:
    names, positions = graph.coordinates.names(), graph.positions
    groups = np.unique(positions.group_of(label[label != UNSET]))
    leaves = [names[k] for g in groups for k in positions.groups[g].leaves]
    equation = graph.program.equations[edge[0]]
    where = short(equation.source)
    return Loss(tuple(leaves), equation.name, where, why.text, why.remedy)
