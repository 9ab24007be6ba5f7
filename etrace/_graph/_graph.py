"""The graph of one model's step: which weight enters which state, and where.

`analyse` traces the step function of one example and finds the hidden groups, the
sites and, for each site, the traces it needs. `Graph` is what the rest of the library
works on; it is static (no array of the model in it) and compared by identity.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from .._model import Call, Spec, join_complex, split_complex
from ._positions import (
    BLOCKED,
    MIXED,
    UNSET,
    Labels,
    Positions,
    find_positions,
    propagate_backwards,
    pull,
)
from ._primitives import Kind, Primitives
from ._program import Edge, Program, Var, trace_program
from ._sites import Site, make_site

MixingTails = Literal["now", "local"]


@dataclasses.dataclass(frozen=True, eq=False)
class TraceSpec:
    """The eligibility trace of one site in one group.

    `positions` says to which position of the group each element of the site belongs,
    in canonical form [b, p, o]; UNSET for those that are not traced here.
    `components` are those of the group that this trace holds.
    """

    site: int
    group: int
    components: tuple[int, ...]
    positions: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Occurrence:
    """One place where a parameter meets data, and what becomes of it there."""

    parameters: tuple[int, ...]  # leaves of the parameter tree
    edge: Edge
    site: int | None
    status: Literal["traced", "partly", "now", "output"]
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """See the module's docstring. Static: it may sit in the structure of a pytree."""

    call: Call
    outputs: Spec  # of the model's outputs
    program: Program
    primitives: Primitives
    positions: Positions
    sites: tuple[Site, ...]
    traces: tuple[TraceSpec, ...]
    occurrences: tuple[Occurrence, ...]
    weight_equations: tuple[int, ...]
    old: tuple[Var, ...]  # hidden leaves before the step, complex ones as two
    new: tuple[Var, ...]  # ... and after it
    mixing_tails: MixingTails
    remembers_all: bool

    def trace_shape(self, t: int) -> tuple[int, ...]:
        """[components, b, p, o, c] of one trace, for one example."""
        spec = self.traces[t]
        return (len(spec.components), *self.sites[spec.site].form.sizes)

    def trace_dtype(self, t: int) -> Any:
        """That of the weight the trace is a derivative by."""
        return self.sites[self.traces[t].site].weight.dtype

    @functools.cached_property
    def inputs(self) -> Mapping[str, tuple[Var, ...]]:
        return _split(self.program.inputs, _argument_sizes(self.call))


def analyse(
    call: Call,
    constants: tuple[np.ndarray | None, ...],
    mixing_tails: MixingTails,
    remember_all: bool,
) -> Graph:
    """Analyses one step of a model.

    **Arguments:**

    - `call`: the step, with the shapes of all its arguments.
    - `constants`: the values of the model's constant arrays where they are known
        (they may say where a movement takes its elements from).
    - `mixing_tails`: what to do with a weight whose path to the state has a mixing
        operation in it: `"now"` leaves it untraced, `"local"` traces its local part.
    - `remember_all`: whether traces hold every component they reach, or only those
        that a position-local path reads one step later.
    """
    call.check()
    program = _trace(call)
    arguments = _split(program.inputs, _argument_sizes(call))
    known = {
        v: c
        for v, c in zip(arguments["consts"], constants, strict=True)
        if c is not None
    }
    primitives = Primitives(program, known)
    old = arguments["hidden"]
    n = len(old)
    first = len(program.outputs) - len(call.other.leaves) - n
    new = program.outputs[first : first + n]
    positions = find_positions(primitives, old, new)
    finder = _SiteFinder(call, primitives, positions, new, mixing_tails)
    finder.run(arguments)
    memory = _Memory(primitives, positions, old, new)
    traces = tuple(
        memory.trace(finder.sites, *found, remember_all) for found in finder.found
    )
    outputs, _, _ = jax.eval_shape(call.step, *(s.tree() for s in call.specs))
    return Graph(
        call,
        Spec.of(outputs),
        program,
        primitives,
        positions,
        tuple(finder.sites),
        traces,
        tuple(finder.occurrences),
        finder.weight_equations(),
        old,
        new,
        mixing_tails,
        remember_all,
    )


def _argument_sizes(call: Call) -> dict[str, int]:
    hidden = call.hidden.leaves
    return {
        "params": len(call.params.leaves),
        "consts": len(call.consts.leaves),
        "hidden": len(hidden)
        + sum(np.issubdtype(x.dtype, np.complexfloating) for x in hidden),
        "other": len(call.other.leaves),
        "inputs": len(call.inputs.leaves),
    }


def _split(flat, sizes: dict[str, int]) -> dict[str, tuple]:
    ends = np.cumsum(list(sizes.values()))
    return {
        name: tuple(flat[end - size : end])
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _trace(call: Call) -> Program:
    """The step as a program of flat real hidden leaves."""
    specs = call.specs

    def flat_step(*leaves):
        parts: dict[str, Any] = _split(leaves, _argument_sizes(call))
        parts["hidden"] = join_complex(parts["hidden"], call.hidden.leaves)
        trees = [s.treedef.unflatten(p) for s, p in zip(specs, parts.values())]
        outputs, hidden, other = call.step(*trees)
        return (
            *jax.tree.leaves(outputs),
            *split_complex(jax.tree.leaves(hidden)),
            *jax.tree.leaves(other),
        )

    def real(x):
        part = jax.eval_shape(jax.numpy.real, x)
        return [part, part] if np.issubdtype(x.dtype, np.complexfloating) else [x]

    arguments = [x for s in specs[:2] for x in s.leaves]
    arguments += [part for x in call.hidden.leaves for part in real(x)]
    arguments += [x for s in specs[3:] for x in s.leaves]
    n_hidden = _argument_sizes(call)["hidden"]
    n_out = len(jax.eval_shape(flat_step, *arguments))
    first = n_out - len(call.other.leaves) - n_hidden
    return trace_program(flat_step, arguments, range(first, first + n_hidden))


class _SiteFinder:
    """Follows every parameter to its meetings with data."""

    def __init__(
        self,
        call: Call,
        primitives: Primitives,
        positions: Positions,
        new: tuple[Var, ...],
        mixing_tails: MixingTails,
    ):
        self.call = call
        self.primitives = primitives
        self.positions = positions
        self.reach = positions.backward
        self.flow = self.reach
        if mixing_tails == "local":
            self.flow = tuple(
                propagate_backwards(
                    primitives,
                    {
                        new[leaf]: (g.offset + p).reshape(new[leaf].shape)
                        for leaf, p in zip(g.leaves, g.positions)
                    },
                    through_mixing=UNSET,
                )
                for g in positions.groups
            )
        self.local = mixing_tails == "local"
        self.sites: list[Site] = []
        self.found: list[tuple[int, int, np.ndarray]] = []  # site, group, positions
        self.occurrences: list[Occurrence] = []
        self.parameters: dict[Var, frozenset[int]] = {}
        self.data: set[Var] = set()

    def run(self, arguments: Mapping[str, tuple[Var, ...]]) -> None:
        for k, v in enumerate(arguments["params"]):
            self.parameters[v] = frozenset([k])
        for name in ("hidden", "other", "inputs"):
            self.data.update(arguments[name])
        for i, equation in enumerate(self.primitives.program.equations):
            is_new_state = equation.source == "the new state"
            if is_new_state or any(v in self.data for v in equation.inputs):
                self.data.update(equation.outputs)
                for j, v in enumerate(equation.inputs):
                    if self.parameters.get(v) and v.inexact:
                        self._meeting((i, j), v)
            elif self.primitives.kinds[i] is not Kind.STOP:
                used = [self.parameters.get(v, frozenset()) for v in equation.inputs]
                for v in equation.outputs:
                    self.parameters[v] = frozenset().union(*used)
        end = len(self.primitives.program.equations)
        for j, v in enumerate(self.primitives.program.outputs):
            if v not in self.data and self.parameters.get(v) and v.inexact:
                self._record((end, j), v, None, "output", "reaches no state")

    def weight_equations(self) -> tuple[int, ...]:
        """Equations of parameters and constants that the sites' weights need."""
        needed = {s.weight for s in self.sites}
        result = []
        for i, e in reversed(list(enumerate(self.primitives.program.equations))):
            if any(v in needed for v in e.outputs):
                result.append(i)
                needed.update(e.inputs)
        return tuple(reversed(result))

    def _record(self, edge: Edge, weight: Var, site, status, reason: str) -> None:
        parameters = tuple(sorted(self.parameters[weight]))
        self.occurrences.append(Occurrence(parameters, edge, site, status, reason))

    def _labels(self, flow: tuple[Labels, ...], edge: Edge, site: Site | None):
        """Per group: where the site's elements flow, or None if they do not."""
        i, _ = edge
        outputs = self.primitives.program.equations[i].outputs
        for g, labels in enumerate(flow):
            if site is not None and not site.direct:
                label = labels.get(outputs[0])
            else:
                label = pull(self.primitives, labels, edge)
                if site is not None and label is not None and label.shape != site.shape:
                    label = labels[outputs[0]]  # a scalar, traced where it is broadcast
            if label is not None and (label != UNSET).any():
                yield g, label

    def _meeting(self, edge: Edge, weight: Var) -> None:
        site = make_site(self.primitives, edge)
        if not any(True for _ in self._labels(self.reach, edge, site)):
            self._record(edge, weight, None, "output", "reaches no state")
            return
        name = self.primitives.program.equations[edge[0]].name
        if site is None:
            self._record(
                edge, weight, None, "now", f"{name} is not a traceable operation"
            )
            return
        total, traced, reasons = 0, 0, set()
        found = []
        for g, label in self._labels(self.flow, edge, site):
            local = np.where(label >= 0, label - self.positions.groups[g].offset, UNSET)
            total = max(total, (label != UNSET).sum())
            traced = max(traced, (label >= 0).sum())
            reasons |= _reasons(label)
            if (label >= 0).any():
                found.append((len(self.sites), g, site.form.canonical(local)))
        if not found:
            reason = "; ".join(sorted(reasons)) or "reaches the state only by mixing"
            self._record(edge, weight, None, "now", reason)
            return
        # A layer's weights reach later layers by mixing; that credit is dropped by
        # definition (D-RTRL), so only the groups reached locally count.
        reasons = set().union(
            *(
                _reasons(label)
                for g, label in self._labels(self.flow, edge, site)
                if any(g == h for _, h, _ in found)
            )
        )
        self.found += found
        self.sites.append(site)
        status = "partly" if reasons else "traced"
        reason = (
            f"{traced} of {total} elements; " + "; ".join(reasons) if reasons else ""
        )
        if self.local and self._has_mixing_tail(edge, site):
            reason = "the local part of a mixing tail (mixing_tails='local')"
        self._record(edge, weight, len(self.sites) - 1, status, reason)

    def _has_mixing_tail(self, edge: Edge, site: Site) -> bool:
        groups = {g for site, g, _ in self.found if site == len(self.sites) - 1}
        return any(
            (label == BLOCKED).any()
            for g, label in self._labels(self.reach, edge, site)
            if g in groups
        )


def _reasons(label: np.ndarray) -> set[str]:
    reasons = set()
    if (label == BLOCKED).any():
        reasons.add("a mixing operation lies between the weight and the state")
    if (label == MIXED).any():
        reasons.add("one value flows into several positions of the state")
    return reasons


class _Memory:
    """Which components of which group a trace has to remember.

    A component is remembered if something reads it one step later: a new state or an
    exit, by a position-local path. LSTM's h, read by the recurrence alone, is not.
    """

    def __init__(
        self,
        primitives: Primitives,
        positions: Positions,
        old: tuple[Var, ...],
        new: tuple[Var, ...],
    ):
        self.primitives = primitives
        self.positions = positions
        self.new = new
        n_equations = len(primitives.program.equations)
        self.depends: dict[tuple[int, int], bool] = {}
        self.read: dict[int, bool] = {}
        for leaf in range(len(old)):
            reached = self._reached({old[leaf]})
            for other in range(len(new)):
                self.depends[other, leaf] = self._arrives(new[other], other, reached)
            exits = [
                self._operand(edge)
                for edge in positions.exits
                if not (edge[0] == n_equations and self._operand(edge) in new)
            ]
            self.read[leaf] = any(v in reached for v in exits)

    def _operand(self, edge: Edge) -> Var:
        program = self.primitives.program
        i, j = edge
        if i == len(program.equations):
            return program.outputs[j]
        return program.equations[i].inputs[j]

    def _arrives(self, var: Var, leaf: int, reached: set[Var]) -> bool:
        label = self.positions.forward.get(var)
        if var not in reached or label is None:
            return False
        for g in self.positions.groups:
            if leaf in g.leaves:
                own = g.offset + g.positions[g.leaves.index(leaf)]
                return bool((label.reshape(-1) == own).any())
        return False

    def _reached(self, start: set[Var], cut: bool = True) -> set[Var]:
        """Values that depend on `start` by local paths."""
        reached = set(start)
        for i, equation in enumerate(self.primitives.program.equations):
            if self.primitives.kinds[i] in (Kind.MIXING, Kind.STOP):
                continue
            for j, v in enumerate(equation.inputs):
                whole = cut and (i, j) in self.positions.cuts
                if v in reached and not (whole and self.positions.cuts[i, j].all()):
                    reached.update(o for o in equation.outputs if o.inexact)
        return reached

    def trace(
        self,
        sites: list[Site],
        index: int,
        group: int,
        positions: np.ndarray,
        remember_all: bool,
    ) -> TraceSpec:
        g = self.positions.groups[group]
        reached = self._reached(set(sites[index].equation.outputs), cut=False)
        leaves = {leaf for leaf in g.leaves if self.new[leaf] in reached}
        while True:
            more = {m for m in g.leaves if any(self.depends[m, k] for k in leaves)}
            if more <= leaves:
                break
            leaves |= more
        if not remember_all:
            leaves = {
                k
                for k in leaves
                if self.read[k] or any(self.depends[m, k] for m in g.leaves)
            }
        components = tuple(s for s, leaf in enumerate(g.leaves) if leaf in leaves)
        return TraceSpec(index, group, components, positions)
