"""The program of a step, one equation a line, with what the analysis says beside it.

The tool with which a wrong classification is found: of every value, which positions of
the old state it belongs to and into which of the new state it flows; of every equation,
what it does to positions, and what happens where it reads: sites, cuts, exits.
"""

import itertools
import string
from collections.abc import Iterator

import numpy as np
from jax.core import ShapedArray

from .._program.ir import Edge, Var
from .._program.labels import BLOCKED, MIXED, UNSET
from .._program.source import short
from .graph import Graph
from .tables import table

_HEAD = ("equation", "does", "belongs to", "flows into", "here", "where")


def listing(graph: Graph) -> str:
    """The program as a table."""
    return "\n".join(table(_HEAD, [*_rows(graph, _Names(graph))]))


def _rows(graph: Graph, names: "_Names") -> Iterator[tuple[str, ...]]:
    equations, kinds = graph.program.equations, graph.operations.kinds
    for v in graph.old:
        yield names.typed(v), "", *_sides(graph, (v,)), "", ""
    for i, (e, kind) in enumerate(zip(equations, kinds, strict=True)):
        made = ", ".join(map(names.typed, e.outputs)) or "_"
        read = ", ".join(map(names.read, e.inputs))
        is_new_state = e.source == "the new state"
        yield (
            f"{made} = {e.name}({read})",
            kind.value,
            *_sides(graph, e.outputs),
            _here(graph, names, i),
            "" if is_new_state else short(e.source),
        )
    outputs = ", ".join(map(names.read, graph.program.outputs))
    here = _here(graph, names, len(equations))
    yield f"return {outputs}", "", "", "", here, ""


def _sides(graph: Graph, values: tuple[Var, ...]) -> tuple[str, str]:
    """(which positions values belong to, into which they flow), by group."""
    belongs, flows = list[str](), list[str]()
    for v in values:
        for g, group in enumerate(graph.positions.groups):
            label = graph.positions.forward.get(v)
            if label is not None:
                own = graph.positions.group_of(label) == g
                belongs += _said(g, own, "")
            label = graph.positions.flow[g].get(v)
            if label is not None:
                flows += _said(g, label >= 0, "")
                flows += _said(g, label == MIXED, " by several")
                flows += _said(g, label == BLOCKED, " by mixing")
    return ", ".join(dict.fromkeys(belongs)), ", ".join(dict.fromkeys(flows))


def _said(group: int, where: np.ndarray, how: str) -> list[str]:
    if not where.any():
        return []
    part = "" if where.all() else f" ({where.sum()} of {where.size})"
    return [f"{group}{how}{part}"]


def _here(graph: Graph, names: "_Names", i: int) -> str:
    """What happens where an equation reads its operands."""
    inputs = graph.program.outputs
    if i < len(graph.program.equations):
        inputs = graph.program.equations[i].inputs
    found = []
    for s, site in enumerate(graph.sites):
        if site.edge[0] == i:
            traces = [t for t, spec in enumerate(graph.traces) if spec.site == s]
            kept = ", ".join(f"trace {t}" for t in traces) or "no trace"
            found.append(f"site of {names.read(site.weight)} ({kept})")
    for j, v in enumerate(inputs):
        found += [f"{what} {names.read(v)}" for what in _of_edge(graph, (i, j))]
    return "; ".join(dict.fromkeys(found))


def _of_edge(graph: Graph, edge: Edge) -> Iterator[str]:
    """What happens to what is read at an edge."""
    closed = graph.exits.closed.get(edge)
    marks = {
        "cut:": graph.positions.cuts.get(edge),
        "own recurrence:": None if closed is None else closed != UNSET,
        "cut for weights:": graph.positions.own.get(edge),
    }
    for what, where in marks.items():
        if where is not None and where.any():
            yield what
    leaving = graph.exits.open.get(edge)
    if leaving is not None and (leaving != UNSET).any():
        groups = np.unique(graph.positions.group_of(leaving[leaving != UNSET]))
        yield f"exit of {', '.join(map(str, groups))}:"


class _Names:
    """What values are called: as in the model, else by letters, as JAX does."""

    def __init__(self, graph: Graph):
        call, self.known = graph.call, graph.operations.known
        groups = {
            "params": call.params.names(),
            "consts": call.consts.names(),
            "hidden": [_state(n) for n in graph.coordinates.names()],
            "other": [_state(n) for n in call.carried.names()],
            "inputs": [f"inputs{n}" for n in call.inputs.names()],
        }
        self.names: dict[Var, str] = {}
        for kind, names in groups.items():
            self.names.update(zip(graph.inputs[kind], names, strict=True))
        letters = _letters()
        for e in graph.program.equations:
            for v in e.outputs:
                self.names[v] = next(letters)
        for name, v in zip(groups["hidden"], graph.new, strict=True):
            self.names[v] = f"new {name}"

    def read(self, v: Var) -> str:
        if v in self.names:
            return self.names[v]
        value = self.known(v) if v.size == 1 else None
        return _short(v) if value is None else f"{value.item():.4g}"

    def typed(self, v: Var) -> str:
        return f"{self.read(v)}: {_short(v)}"


def _short(v: Var) -> str:
    """Dtype and shape, as JAX writes them."""
    return ShapedArray(v.shape, v.dtype).str_short(short_dtypes=True)


def _state(name: str) -> str:
    return name if name.startswith("state") else f"state{name}"


def _letters() -> Iterator[str]:
    """a, b, ..., z, aa, ab, ..."""
    for n in itertools.count(1):
        for found in itertools.product(string.ascii_lowercase, repeat=n):
            yield "".join(found)
