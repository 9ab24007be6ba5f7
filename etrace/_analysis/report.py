"""What is traced, what is not and why, and what it costs, as a table to print."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .credit import readers
from .graph import Graph, Occurrence
from .listing import listing
from .omissions import (
    Filters,
    entry,
    groups_at,
    note,
    of_functions,
    of_groups,
    of_parameters,
    of_size,
    of_states,
)
from .reasons import NOT_HIDDEN, NOT_LINEAR, NOT_READ, STOPPED, UNHEARD, Loss
from .tables import human_bytes, table


@dataclasses.dataclass(frozen=True)
class Row:
    """One place in the source where a parameter meets data.

    - `parameter`: where it is in the model, such as `.cell.weight_hh`.
    - `status`: `"traced"`; `"partly"` (some elements); `"now"` (it reaches the state
        but only its instantaneous gradient is known); `"output"` (it reaches no state,
        its instantaneous gradient is the whole gradient); `"unused"` (nothing reads it,
        or only where no gradient flows).
    - `primitive`: the operation by which it enters, or `"init_state"`.
    - `reason`: what is left out of its gradient, and why.
    - `groups`: the hidden groups its trace belongs to.
    - `trace_shapes`: of the arrays that its rule keeps for one example: for one trace
        per parameter, a single [components, b, p, o, c].
    - `times`: how often it meets data there in one step: once in every round of a loop.
    - `nbytes`: of all the traces that are kept.
    - `uses`: of how many meetings, here and elsewhere, the trace is one and the same.
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
    times: int = 1
    uses: int = 1

    @property
    def trace(self) -> str:
        """What is kept, in words."""
        if not self.trace_shapes:
            return "-"
        kept = " ".join(map(_kept, self.trace_shapes))
        if self.uses > 1:
            return f"{kept} of {self.uses} uses"
        return f"{self.times} x {kept}" if self.times > 1 else kept


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The graph of a model's step under one algorithm. Print it, or read the fields.

    - `rows`: one for each place where a parameter meets data; the rounds of a loop are
        one place.
    - `losses`: what no trace follows, with the reason, the line and a remedy.
    - `nbytes`: bytes of the whole trace state, for `batch` examples.
    - `nbytes_per_device`: the most that lies on one device.
    """

    graph: Graph
    name: str
    batch: int
    trace: Any  # shapes of what the rule stores
    first: Any  # shape of `Trace.first`, or None
    batched: bool  # whether they have a batch axis in front
    filters: Filters
    unheard: tuple[int, ...]  # groups that no signal reaches

    @property
    def nbytes(self) -> int:
        return _nbytes((self.trace, self.first))

    @property
    def nbytes_per_device(self) -> int:
        return _nbytes(jax.tree.map(_shard, (self.trace, self.first)))

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        found: dict[Row, list[Row]] = {}
        for occurrence in self.graph.occurrences:
            for row in self._rows(occurrence):
                alike = dataclasses.replace(row, nbytes=0)
                found.setdefault(alike, []).append(row)
        rows = (
            dataclasses.replace(
                alike, nbytes=sum(r.nbytes for r in rows), times=len(rows)
            )
            for alike, rows in found.items()
        )
        return (*rows, *self._other_rows())

    def _other_rows(self) -> Iterator[Row]:
        """Of the parameters that meet no data, and of what has no credit."""
        call, names = self.graph.call, self.graph.call.params.names()
        for p in call.initial.uncredited:
            where = ("init_state", "", "", "now", NOT_HIDDEN.text)
            yield Row(names[p], *where, (), (), 0)
        met = {p for o in self.graph.occurrences for p in o.parameters}
        for p in sorted({*range(len(names))} - met - {*call.initial.uncredited}):
            why = STOPPED if p in self.graph.read else NOT_READ
            yield Row(names[p], "", "", "", "unused", why, (), (), 0)

    def _rows(self, occurrence: Occurrence) -> Iterator[Row]:
        graph = self.graph
        names = graph.call.params.names()
        i, _ = occurrence.edge
        traces = [
            t
            for t, s in enumerate(graph.traces)
            if occurrence.site is not None and s.site == occurrence.site
        ]
        groups = tuple(graph.traces[t].group for t in traces)
        primitive, source = entry(graph, occurrence)
        shapes = ""
        if i < len(graph.program.equations):
            e = graph.program.equations[i]
            operands = " ".join(_shape(v.shape) for v in e.inputs)
            result = _shape(e.outputs[0].shape) if e.outputs else "nothing"
            shapes = f"{operands} → {result}" if primitive == e.name else result
        # Some rules keep no trace of each site.
        each = isinstance(self.trace, tuple) and len(self.trace) == len(graph.traces)
        size = sum(_nbytes(self.trace[t]) for t in traces) if each else 0
        uses = [self._held_with(t) for t in traces] if each else []
        kept = jax.tree.leaves([self.trace[own[0]] for own in uses])
        numbers = [x.shape for x in kept if jnp.issubdtype(x.dtype, jnp.inexact)]
        for n, p in enumerate(occurrence.parameters):
            yield Row(
                names[p],
                primitive,
                shapes,
                source,
                occurrence.status,
                self._reason(occurrence, groups, names[p]),
                groups,
                tuple(x[self.batched :] for x in numbers),
                0 if n else size,
                uses=max(map(len, uses), default=1),
            )

    def _held_with(self, t: int) -> list[int]:
        """The traces that are kept as one with trace t."""
        uses = self.graph.traces[t].uses
        held = [u for u in uses if isinstance(self.trace[u], tuple)]
        return [uses[0], *held] if held and t in (uses[0], *held) else [t]

    def _reason(
        self, occurrence: Occurrence, groups: tuple[int, ...], name: str
    ) -> str:
        """Why it is not (fully) traced or credited, and what its operation cuts."""
        i, _ = occurrence.edge
        places = [p for p in self.graph.too_large if isinstance(p, tuple) and p[0] == i]
        found = [why for p in places if (why := of_size(self.graph, p))]
        silent = [g for g in groups if g in self.unheard]
        parts = [
            note(self.graph, occurrence),
            *(f"group {g}: {UNHEARD.text}" for g in silent),
        ]
        parts += [f"{why.text}; {why.remedy}" for why in dict.fromkeys(found)]
        if occurrence.status != "output":
            own = (loss for loss in self._functions if name in loss.what)
            parts += [f"{f.reason}, at {f.primitive} in {f.source}" for f in own]
        return "; ".join(part.rstrip(".") for part in parts if part)

    @functools.cached_property
    def _functions(self) -> tuple[Loss, ...]:
        return tuple(of_functions(self.graph))

    def __str__(self) -> str:
        parts = [
            f"{self.name}: {human_bytes(self.nbytes)} of traces for batch {self.batch}"
            + self._on_devices()
        ]
        parts += ["", "Parameters", *self._parameter_table()]
        parts += ["", "Hidden groups", *self._group_table()]
        if self.losses:
            parts += ["", "Left out, since no trace follows it"]
            parts += [f"  {loss}" for loss in self.losses]
        return "\n".join(parts)

    __repr__ = __str__

    def _on_devices(self) -> str:
        shardings = [x.sharding for x in jax.tree.leaves(self.trace) if x.sharding]
        devices = set().union(*(s.device_set for s in shardings))
        if not devices:
            return ""
        return (
            f", {human_bytes(self.nbytes_per_device)} on each of {len(devices)} devices"
        )

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
                r.trace,
                human_bytes(r.nbytes) if r.nbytes else "-",
                r.source,
                r.reason,
            ]
            for r in self.rows
        ]
        return table(head, rows)

    def _group_table(self) -> list[str]:
        names = self.graph.coordinates.names()
        rows = [
            [
                str(n),
                ", ".join(names[k] for k in g.leaves),
                str(g.size),
                str(g.components) + self._wanted(n),
                "; ".join(readers(self.graph, n)) or "nothing",
            ]
            for n, g in enumerate(self.graph.positions.groups)
        ]
        head = ["group", "state leaves", "positions", "numbers each", "read by"]
        return table(head, rows)

    def _wanted(self, group: int) -> str:
        """How many numbers its positions would have, if that is too many."""
        graph = self.graph
        wanted = 0
        for place, numbers in graph.too_large.items():
            own = group in groups_at(graph, place)
            wanted = max(wanted, numbers if own and of_size(graph, place) else 0)
        return f" (of {wanted})" if wanted else ""

    @functools.cached_property
    def program(self) -> str:
        """The step as the analysis sees it, to print; see *How the analysis works*.

        One equation a line, and beside it what it does to positions, to which of the
        old state (by group) its results belong, into which of the new state they flow,
        and what happens where it reads: sites of weights, cuts, exits.
        """
        return listing(self.graph)

    @functools.cached_property
    def losses(self) -> tuple[Loss, ...]:
        """Everything that no trace follows, with the reason and a remedy."""
        graph, unheard = self.graph, self.unheard
        found = [*self._functions, *of_parameters(graph)]
        found += of_groups(graph, unheard)
        found += of_states(graph, self.filters, unheard)
        return tuple(dict.fromkeys(found))


def untraced(graph: Graph) -> str:
    """A message about the parameters that reach the state without a trace, or by a
    function that no trace follows, or ""."""
    untraced = (
        "these parameters reach the state but are not (fully) traced; they keep their "
        "exact instantaneous gradient. See print(algorithm.graph(*inputs)).",
        list(of_parameters(graph)),
    )
    not_linear = (
        "what these parameters did in the past is not credited as by backpropagation "
        "through time. See print(algorithm.graph(*inputs)).",
        [loss for loss in of_functions(graph) if loss.reason == NOT_LINEAR.text],
    )
    parts = [(said, losses) for said, losses in (untraced, not_linear) if losses]
    return "\n".join("\n  ".join([said, *map(str, ls)]) for said, ls in parts)


def silent(graph: Graph, unheard: Sequence[int]) -> str:
    """A message about groups that no signal reaches."""
    names = graph.call.params.names()
    sites = {t.site for t in graph.traces if t.group in unheard}
    found = (o.parameters for o in graph.occurrences if o.site in sites)
    parameters = dict.fromkeys(names[p] for own in found for p in own)
    lines = [f"  {loss}" for loss in of_groups(graph, unheard)]
    return (
        f"the past of {', '.join(parameters)} gets no credit: single-step signals do "
        "not reach the state that remembers it. See print(algorithm.graph(*inputs)).\n"
        + "\n".join(lines)
    )


def _shard(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What lies on one device."""
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _nbytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _shape(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _kept(shape: Sequence[int]) -> str:
    return "no memory" if 0 in shape else _shape(shape)
