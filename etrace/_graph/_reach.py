"""Which numbers of the state can influence which, whatever the parameters are.

For every value of the program: on which of some sources each of its elements may
depend, as boolean arrays [*shape, sources]. Where a weight is zero by construction (a
constant mask) nothing passes; a weight that happens to be zero does not count.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ._graph import Graph
from ._kinds import Kind
from ._partition import LABEL, UNSET
from ._primitives import NOTHING, Primitives
from ._program import Edge, Equation, Var

# Linear in each operand: what passes is what the operation makes of zeros and ones.
_MULTILINEAR = frozenset(
    "mul dot_general conv_general_dilated reduce_sum cumsum".split()
)
# Zero wherever their first operand is.
_KEEPING = frozenset("neg convert_element_type copy copy_p real imag div".split())

Flags = dict[Var, np.ndarray]


@functools.lru_cache(maxsize=256)
def reach(graph: Graph, n: int) -> tuple[np.ndarray, ...]:
    """Per site, which numbers of the state a weight can influence within `n` steps.

    [N, b, o]: within one step those of the positions that z[b, :, o] flows into, with
    each further step what the whole Jacobian leads to. Positions are complete: all
    their numbers are reached, or none.
    """
    position = positions_of(graph)
    result = []
    for s, site in enumerate(graph.sites):
        b, p, o, _ = site.form.sizes
        reached = np.zeros((position.max(initial=0) + 1, b * o), bool)
        for spec in graph.traces:
            if spec.site == s:
                offset = graph.positions.groups[spec.group].offset
                found, columns = spec.positions, np.arange(b * o).reshape(b, 1, o)
                columns = np.broadcast_to(columns, found.shape)
                traced = found != UNSET
                reached[found[traced] + offset, columns[traced]] = True
        numbers = reached[position]
        for step in range(1, n):
            more = numbers | _product(pattern(graph), numbers)
            if step == 1:  # what takes other ways to the state within a step
                more |= from_site(graph, s)
            more = _complete(more, position)
            if step > 1 and (more == numbers).all():
                break
            numbers = more
        result.append(numbers.reshape(-1, b, o))
    return tuple(result)


@functools.lru_cache(maxsize=256)
def pattern(graph: Graph) -> np.ndarray:
    """Which entries of ∂h_t/∂h_{t-1} may not be zero, [N, N]."""
    sources, start = {}, 0
    n = sum(v.size for v in graph.old)
    for v in graph.old:
        own = np.eye(n, dtype=bool)[start : start + v.size]
        sources[v] = own.reshape(*v.shape, n)
        start += v.size
    return _new_state(graph, _Walk(graph.primitives, sources, {}, n).run())


def from_site(graph: Graph, s: int) -> np.ndarray:
    """Which numbers of the new state may depend on z[b, :, o], [N, b * o]."""
    site = graph.sites[s]
    b, p, o, _ = site.form.sizes
    columns = np.broadcast_to(np.arange(b * o).reshape(b, 1, o), (b, p, o))
    own = np.zeros(b * p * o, int)  # the column of each element, as the site has them
    own[site.form.canonical(np.arange(b * p * o).reshape(site.shape))] = columns
    flags = own.reshape(*site.shape, 1) == np.arange(b * o)
    at_var = {} if site.direct else {site.equation.outputs[0]: flags}
    at_edge = {site.edge: flags} if site.direct else {}
    walk = _Walk(graph.primitives, at_var, at_edge, b * o)
    return _new_state(graph, walk.run())


class _Walk:
    """Carries `size` flags through the program, from values and from edges."""

    def __init__(
        self,
        primitives: Primitives,
        at_values: Flags,
        at_edges: Mapping[Edge, np.ndarray],
        size: int,
    ):
        self.primitives = primitives
        self.flags = dict(at_values)
        self.at_edges = at_edges
        self.size = size
        self.present: Flags = {}

    def run(self) -> Flags:
        for i, equation in enumerate(self.primitives.program.equations):
            kind = self.primitives.kinds[i]
            operands = [self._read((i, j), v) for j, v in enumerate(equation.inputs)]
            present = [self._present(v) for v in equation.inputs]
            if equation.outputs:
                self._mark(equation, i, present)
            if kind is Kind.STOP or all(o is None for o in operands):
                continue
            found = self._through(equation, i, kind, operands, present)
            for v, flags in zip(equation.outputs, found, strict=True):
                if v.inexact and v not in self.flags:
                    self.flags[v] = flags
        return self.flags

    def _read(self, edge: Edge, var: Var) -> np.ndarray | None:
        flags, more = self.flags.get(var), self.at_edges.get(edge)
        if more is None or flags is None:
            return flags if more is None else more
        return flags | more

    def _through(self, equation, i, kind, operands, present) -> list[np.ndarray]:
        if equation.name in _MULTILINEAR:
            parts = []
            for j, flags in enumerate(operands):
                if flags is not None:
                    values = [*present[:j], flags, *present[j + 1 :]]
                    parts.append(_applied(equation, values, j))
            return [functools.reduce(np.logical_or, parts)]
        if kind is Kind.ELEMENTWISE:
            shape = (*equation.outputs[0].shape, self.size)
            parts = [np.broadcast_to(o, shape) for o in operands if o is not None]
            return [functools.reduce(np.logical_or, parts)] * len(equation.outputs)
        if kind is Kind.MOVEMENT:
            flat = np.concatenate(
                [
                    np.zeros((v.size, self.size), bool)
                    if o is None
                    else np.broadcast_to(o, (*v.shape, self.size)).reshape(v.size, -1)
                    for v, o in zip(equation.inputs, operands)
                ]
            )
            return [
                np.where(source[..., None] == NOTHING, False, flat[source])
                for source in self.primitives.sources(i)
            ]
        found = [np.zeros((*v.shape, self.size), bool) for v in equation.outputs]
        for j, o in enumerate(operands):
            if o is not None:
                shape = equation.inputs[j].shape
                rows = np.broadcast_to(o, (*shape, self.size)).reshape(-1, self.size)
                found = [a | b for a, b in zip(found, self._mixed(i, j, rows))]
        return found

    def _mixed(self, i: int, j: int, rows: np.ndarray) -> list[np.ndarray]:
        """What an operand, in rows, reaches through a mixing operation."""
        blocks = self.primitives.blocks((i, j))
        if blocks is None:
            outputs, every = (
                self.primitives.program.equations[i].outputs,
                rows.any(axis=0),
            )
            return [np.broadcast_to(every, (*v.shape, self.size)) for v in outputs]
        reached = np.zeros((blocks.count, self.size), bool)
        np.logical_or.at(reached, blocks.operand.reshape(-1), rows)
        return blocks.to_results(reached)

    # ------------------------------------------------------------ what is zero for sure

    def _present(self, var: Var) -> np.ndarray:
        """Where a value may be anything but zero."""
        if var not in self.present:
            known = self.primitives.known(var)
            here = np.ones(var.shape, bool) if known is None else known != 0
            self.present[var] = np.asarray(here)
        return self.present[var]

    def _mark(self, equation: Equation, i: int, present: list[np.ndarray]) -> None:
        (out, *others), name = equation.outputs, equation.name
        if all(x.all() for x in present) or self.primitives.known(out) is not None:
            return
        if name in _MULTILINEAR:
            self.present[out] = _applied(equation, present, None)
        elif name in ("add", "add_any", "sub", "max", "min"):
            self.present[out] = np.broadcast_to(present[0] | present[1], out.shape)
        elif name in _KEEPING:
            self.present[out] = np.broadcast_to(present[0], out.shape)
        elif self.primitives.kinds[i] is Kind.MOVEMENT:
            flat = np.concatenate([x.reshape(-1) for x in present])
            for v, source in zip((out, *others), self.primitives.sources(i)):
                self.present[v] = (source == NOTHING) | flat[source]


def _applied(equation: Equation, values: list[np.ndarray], moving: int | None):
    """Where the operation gives anything but zero, for zeros and ones."""
    axes = [-1 if j == moving else None for j in range(len(values))]
    with jax.ensure_compile_time_eval():
        dtypes = [v.dtype for v in equation.inputs]
        arrays = [jnp.asarray(x, d) for x, d in zip(values, dtypes, strict=True)]
        fun = lambda *xs: equation.fun(*xs)[0]  # noqa: E731
        result = fun(*arrays) if moving is None else jax.vmap(fun, axes, -1)(*arrays)
        return np.asarray(result != 0)


def positions_of(graph: Graph) -> np.ndarray:
    """The position, among those of all groups, of each number of the state."""
    labels, end = {}, 0
    for g in graph.positions.groups:
        labels.update(g.labels(graph.old))
        end += g.size
    for v in graph.old:
        if v not in labels:  # nothing to credit: positions behind all others
            labels[v] = np.arange(end, end + v.size, dtype=LABEL)
            end += v.size
    return np.concatenate([labels[v].reshape(-1) for v in graph.old])


def _complete(numbers: np.ndarray, position: np.ndarray) -> np.ndarray:
    """All numbers of the positions that are touched."""
    touched = np.zeros((position.max(initial=0) + 1, numbers.shape[1]), bool)
    np.logical_or.at(touched, position, numbers)
    return touched[position]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float32) @ b.astype(np.float32)) > 0


def _new_state(graph: Graph, flags: Flags) -> np.ndarray:
    """Those of the new state, [N, sources]."""
    size = next(iter(flags.values())).shape[-1] if flags else 0
    rows = [
        flags[v].reshape(v.size, -1) if v in flags else np.zeros((v.size, size), bool)
        for v in graph.new
    ]
    return np.concatenate(rows)
