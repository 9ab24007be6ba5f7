"""What is traced, what is not and why, and what it costs, as a table to print."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._model import real_names
from ._graph import Graph, Occurrence


@dataclasses.dataclass(frozen=True)
class Row:
    """One place where a parameter meets data.

    - `parameter`: where it is in the model, such as `.cell.weight_hh`.
    - `status`: `"traced"`; `"partly"` (some elements); `"now"` (it reaches the state
        but only its instantaneous gradient is known); `"output"` (it reaches no state,
        its instantaneous gradient is the whole gradient).
    - `groups`: the hidden groups its trace belongs to.
    - `trace_shapes`: of the arrays that its rule keeps for one example: for one trace
        per parameter, a single [components, b, p, o, c].
    """

    parameter: str
    primitive: str
    shapes: str
    source: str
    status: str
    reason: str
    groups: tuple[int, ...]
    trace_shapes: tuple[tuple[int, ...], ...]
    nbytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The graph of a model's step under one algorithm. Print it, or read the fields.

    - `rows`: one per occurrence of a parameter.
    - `nbytes`: bytes of the whole trace state, for `batch` examples.
    """

    graph: Graph
    name: str
    batch: int
    trace: Any  # shapes of what the rule stores
    batched: bool  # whether they have a batch axis in front

    @property
    def nbytes(self) -> int:
        return _nbytes(self.trace)

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for o in self.graph.occurrences for row in self._rows(o))

    def _rows(self, occurrence: Occurrence):
        graph = self.graph
        names = graph.call.params.names()
        i, _ = occurrence.edge
        traces = [
            t
            for t, s in enumerate(graph.traces)
            if occurrence.site is not None and s.site == occurrence.site
        ]
        primitive, shapes, source = "output", "", ""
        if i < len(graph.program.equations):
            e = graph.program.equations[i]
            primitive, source = e.name, _short(e.source)
            operands = " ".join(_shape(v.shape) for v in e.inputs)
            result = _shape(e.outputs[0].shape) if e.outputs else "nothing"
            shapes = f"{operands} → {result}"
        # Some rules keep no trace of each site.
        each = isinstance(self.trace, tuple) and len(self.trace) == len(graph.traces)
        size = sum(_nbytes(self.trace[t]) for t in traces) if each else 0
        kept = jax.tree.leaves([self.trace[t] for t in traces] if each else [])
        numbers = [x.shape for x in kept if jnp.issubdtype(x.dtype, jnp.inexact)]
        for n, p in enumerate(occurrence.parameters):
            yield Row(
                names[p],
                primitive,
                shapes,
                source,
                occurrence.status,
                occurrence.reason,
                tuple(graph.traces[t].group for t in traces),
                tuple(x[self.batched :] for x in numbers),
                0 if n else size,
            )

    def __str__(self) -> str:
        parts = [
            f"{self.name}: {human_bytes(self.nbytes)} of traces for batch {self.batch}"
        ]
        parts += ["", "Parameters", *self._parameter_table()]
        parts += ["", "Hidden groups", *self._group_table()]
        cuts = self._cut_lines()
        if cuts:
            parts += [
                "",
                "Cut (paths from the state to itself that no trace follows)",
                *cuts,
            ]
        return "\n".join(parts)

    __repr__ = __str__

    def _parameter_table(self) -> list[str]:
        head = ["parameter", "enters by", "shapes", "group", "status", "trace", "bytes"]
        head += ["where", "note"]
        rows = [
            [
                r.parameter,
                r.primitive,
                r.shapes,
                " ".join(map(str, r.groups)) or "-",
                {"output": "now (exact)"}.get(r.status, r.status),
                " ".join(map(_kept, r.trace_shapes)) or "-",
                human_bytes(r.nbytes) if r.nbytes else "-",
                r.source,
                r.reason,
            ]
            for r in self.rows
        ]
        return table(head, rows)

    def _group_table(self) -> list[str]:
        names = real_names(self.graph.call)
        rows = [
            [
                str(n),
                ", ".join(names[k] for k in g.leaves),
                str(g.size),
                str(g.components),
            ]
            for n, g in enumerate(self.graph.positions.groups)
        ]
        return table(["group", "state leaves", "positions", "numbers each"], rows)

    def _cut_lines(self) -> list[str]:
        if self.graph.options.follows_all:
            return []
        equations = self.graph.program.equations
        positions = self.graph.positions
        lines = [
            f"  {equations[i].name} at {_short(equations[i].source)}: the state enters "
            "its own recurrence"
            for i, j in self.graph.exits.closed
            if (i, j) not in positions.cuts
        ]
        lines += [
            f"  {equations[i].name} at {_short(equations[i].source)}: {mask.sum()} "
            "elements meet at another position than their own"
            for (i, _), mask in positions.cuts.items()
        ]
        names = real_names(self.graph.call)
        lines += [
            f"  {names[leaf]}: {mask.sum()} elements of its new value come from "
            "another position (moved, such as in a delay line)"
            for leaf, mask in positions.moved.items()
        ]
        return list(dict.fromkeys(lines))


def untraced(graph: Graph) -> str:
    """A message about the parameters that reach the state without a trace, or ""."""
    names = graph.call.params.names()
    lines = []
    for o in graph.occurrences:
        if o.status in ("now", "partly"):
            equation = graph.program.equations[o.edge[0]]
            where = ", ".join(names[p] for p in o.parameters)
            lines.append(f"  {where} at {_short(equation.source)}: {o.reason}")
    if not lines:
        return ""
    return (
        "these parameters reach the state but are not (fully) traced; they keep their "
        "exact instantaneous gradient. See print(algorithm.graph(*inputs)).\n"
        + "\n".join(lines)
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns; columns that are empty throughout are left out."""
    kept = [c for c in range(len(head)) if any(row[c] for row in rows)]
    grid = [[line[c] for c in kept] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*grid)]
    lines = [
        "  ".join(x.ljust(w) for x, w in zip(line, widths)).rstrip() for line in grid
    ]
    return [f"  {lines[0]}", f"  {'-' * max(map(len, lines))}"] + [
        f"  {line}" for line in lines[1:]
    ]


def human_bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _nbytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _shape(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _kept(shape: Sequence[int]) -> str:
    return "no memory" if 0 in shape else _shape(shape)


def _short(source: str) -> str:
    """`file.py:12 (function)` of a full source line."""
    match = re.match(r"(?P<path>.*?):(?P<line>\d+)(:\d+)?( \((?P<fun>.*)\))?$", source)
    if match is None:
        return source
    name = f"{os.path.basename(match['path'])}:{match['line']}"
    return f"{name} ({match['fun']})" if match["fun"] else name
