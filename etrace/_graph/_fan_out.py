"""Values that flow into several positions, copied before they part.

`sigmoid(w @ x) * h` has one gate for all neurons. Its weight acts on every neuron's
state, and what it did to each is a trace of its own. So the program is rewritten as if
every position had computed its own gate:

    g = sigmoid(w @ x);  h' = g * h    ->    g[n] = sigmoid((w @ x)[n]);  h' = g * h

where the copies of `w @ x` are one product, with as many places `p` as there are
copies. It is computed once; only its traces are many.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._flows import MIXED, pull
from ._kinds import Kind
from ._partition import LABEL, UNSET, Labels
from ._positions import Positions
from ._primitives import Primitives
from ._program import Edge, Equation, Program, Var, trace_program
from ._sites import LinearForm, linear_form

# A weight keeps its trace whole up to this many numbers, for one example and one number
# of the state a position.
MAX_TRACE = 2**24


def fan_out(
    primitives: Primitives,
    positions: Positions,
    params: Iterable[Var],
    data: Iterable[Var],
) -> Program | None:
    """The program with a copy for every position of what parts to several.

    None if nothing with a weight in it does, or every such weight is too large. What
    positions meet in stays one value, as it belongs to none of them.
    """
    copies = _Copies(primitives, {i for i, _ in positions.cuts}, params, data)
    for v, ways in _partings(primitives, positions).items():
        copies.plan(v, ways)
    return copies.program() if copies.number else None


@dataclasses.dataclass(frozen=True, eq=False)
class _Way:
    """What an edge reads of a value: which element of which copy, `copy * size +
    element`, in the shape of the operand, or of what the equation spreads it to."""

    places: np.ndarray
    spread: bool


@dataclasses.dataclass(frozen=True, eq=False)
class _After:
    """What an edge reads: the elements, and the positions where each goes; as in the
    operand, or as the equation spreads it."""

    elements: np.ndarray
    labels: Sequence[np.ndarray]
    spread: bool


def _partings(
    primitives: Primitives, positions: Positions
) -> Mapping[Var, Mapping[Edge, _Way]]:
    """Values that flow into several positions, by ways that lead to one each."""
    edges: dict[Var, list[Edge]] = {}
    for i, equation in enumerate(primitives.program.equations):
        for j, v in enumerate(equation.inputs):
            edges.setdefault(v, []).append((i, j))
    result = {}
    for v, readers in edges.items():
        flow = [
            labels
            for labels in positions.flow
            if v in labels and (labels[v] == MIXED).any()
        ]
        own = positions.own
        after = {edge: _after(primitives, flow, own, edge) for edge in readers if flow}
        ways = {edge: found for edge, found in after.items() if found is not None}
        if flow and len(ways) == len(readers):
            result[v] = _numbered(v, ways)
    return result


def _after(
    primitives: Primitives,
    flow: Sequence[Labels],
    own: Mapping[Edge, np.ndarray],
    edge: Edge,
) -> _After | None:
    """None if an element goes to several positions from there."""
    i, _ = edge
    equation, v = primitives.program.equations[i], primitives.program.operand(edge)
    elements = np.arange(v.size, dtype=LABEL).reshape(v.shape)
    nowhere = np.full(v.shape, UNSET, LABEL)
    pulled = [pull(primitives, labels, edge, own=own) for labels in flow]
    labels = [nowhere if p is None else p for p in pulled]
    if not any((label == MIXED).any() for label in labels):
        return _After(elements, labels, spread=False)
    spread = _spread(primitives, edge)
    if spread is None:
        return None
    (out,) = equation.outputs
    labels = [f.get(out, np.full(out.shape, UNSET, LABEL)) for f in flow]
    several = any((label == MIXED).any() for label in labels)
    return None if several else _After(spread, labels, spread=True)


def _spread(primitives: Primitives, edge: Edge) -> np.ndarray | None:
    """Which element of an operand each number of the result comes from, if all do."""
    i, j = edge
    equation, v = primitives.program.equations[i], primitives.program.operand(edge)
    if len(equation.outputs) != 1:
        return None
    if primitives.kinds[i] is Kind.ELEMENTWISE:
        elements = np.arange(v.size, dtype=LABEL).reshape(v.shape)
        return np.broadcast_to(elements, equation.outputs[0].shape)
    # A movement, as no other operation parts.
    start = sum(u.size for u in equation.inputs[:j])
    elements = np.asarray(primitives.sources(i)[0] - start)
    return elements if ((elements >= 0) & (elements < v.size)).all() else None


def _numbered(v: Var, found: Mapping[Edge, _After]) -> Mapping[Edge, _Way]:
    """One copy for each combination of positions that an element goes to."""
    parts = [[x.reshape(-1) for x in (f.elements, *f.labels)] for f in found.values()]
    rows = np.concatenate([np.stack(part) for part in parts], axis=1)
    goes = (rows[1:] >= 0).any(axis=0)
    there = rows if goes.all() else rows[:, goes]  # not one more copy of what is large
    _, index, own = np.unique(_ordered(there), return_index=True, return_inverse=True)
    elements = there[0, index]
    number = np.arange(len(index)) - np.searchsorted(elements, elements)
    copy = np.zeros(rows.shape[1], int)
    copy[goes] = number[own.reshape(-1)]
    ends = np.cumsum([len(elements) for elements, *_ in parts])[:-1]
    result = {}
    for (edge, f), c in zip(found.items(), np.split(copy, ends)):
        if any((x >= 0).any() for x in f.labels):
            places = np.asarray(c.reshape(f.elements.shape) * v.size + f.elements)
            result[edge] = _Way(places, f.spread)
    return result


def _ordered(rows: np.ndarray) -> np.ndarray:
    """A number for each column, in their lexicographic order: numbers are sorted much
    faster than columns."""
    result = np.zeros(rows.shape[1], np.int64)
    for row in rows:
        low = row - row.min(initial=0)
        width = int(low.max(initial=0)) + 1
        if int(result.max(initial=0)) >= 2**62 // width:
            result = np.unique(result, return_inverse=True)[1].reshape(-1)
        result *= width
        result += low
    return result


class _Copies:
    """Rewrites a program, equation by equation.

    What is copied is copied for all that read it: an operation that was one stays one,
    as credit may stop where the state enters it.
    """

    def __init__(
        self,
        primitives: Primitives,
        cut: Collection[int],
        params: Iterable[Var],
        data: Iterable[Var],
    ):
        self.old = primitives.program
        self.kinds = dict(zip(self.old.equations, primitives.kinds))
        self.cut = {self.old.equations[i] for i in cut if i < len(self.kinds)}
        self.data = self.old.reached_from(data)
        self.weights = self.old.reached_from(params) - self.data
        self.equations: list[Equation] = []
        self.constants = dict(self.old.constants)
        self.number: dict[Equation, int] = {}  # of copies
        self.ways: dict[Edge, _Way] = {}
        self.made: dict[Var, Var] = {}

    def plan(self, v: Var, ways: Mapping[Edge, _Way]) -> None:
        """Gives each of these edges copies of its own, if they are copies of what
        weights gave."""
        places = (int(way.places.max()) for way in ways.values())
        n = max(places, default=0) // max(v.size, 1) + 1
        before = self._weighted_before(v, n) if n > 1 else []
        if before:
            self.ways.update(ways)
            # What is copied already is copied as often with all that goes with it.
            shared = {self.number[e] for e in before if e in self.number}
            most = max(n, *shared) if shared else n
            for e, number in self.number.items():
                self.number[e] = most if number in shared else number
            self.number.update(dict.fromkeys(before, most))

    def program(self) -> Program:
        """The new program, without what nothing needs now."""
        for i, equation in enumerate(self.old.equations):
            if equation in self.number:
                self._copy(equation, self.number[equation])
            else:
                self._append(i, equation)
        new = dataclasses.replace(
            self.old, equations=tuple(self.equations), constants=self.constants
        )
        needless = set(self.old.equations) - _live(self.old)  # but the user's own
        kept = _live(new) | needless
        return dataclasses.replace(
            new, equations=tuple(e for e in new.equations if e in kept)
        )

    def _append(self, i: int, equation: Equation) -> None:
        """An equation of the old program, which may read copies."""
        inputs, arrived = list(equation.inputs), None
        for j, v in enumerate(equation.inputs):
            if (i, j) in self.ways:
                way = self.ways[i, j]
                inputs[j] = self._arranged(self.made[v], way.places, equation.source)
                if way.spread and self.kinds[equation] is Kind.MOVEMENT:
                    arrived = inputs[j]
        if arrived is not None:  # what is moved is there already
            (out,), source = equation.outputs, equation.source
            equation = _movement(lambda x: x, arrived, out, source)
        elif inputs != list(equation.inputs):
            equation = dataclasses.replace(equation, inputs=tuple(inputs))
        self.equations.append(equation)

    def _arranged(self, copies: Var, places: np.ndarray, source: str) -> Var:
        """The elements of copies, in the shape of the result they go into."""
        out = Var(places.shape, copies.dtype)
        size = int(np.prod(copies.shape[1:], dtype=int))
        apart = [d for d, k in enumerate(_varies(places % size)) if not k]
        order = (*apart, *out.axes_but(apart))
        axes = [places.shape[d] for d in order]

        def arrange(x):
            return x.reshape(axes).transpose(np.argsort(order))

        ids = np.arange(copies.size)
        if places.size != ids.size or (arrange(ids) != places).any():
            arrange = lambda x: x.reshape(-1)[places]  # noqa: E731
        self.equations.append(_movement(arrange, copies, out, source))
        return out

    def _weighted_before(self, v: Var, n: int) -> list[Equation]:
        """What leads to a value element by element, from where weights enter it on."""
        wanted, before = {v}, []
        for e in reversed(self.old.equations):
            if wanted.isdisjoint(e.outputs) or self.data.isdisjoint(e.outputs):
                continue
            before.append(e)
            if self.kinds[e] in (Kind.ELEMENTWISE, Kind.MOVEMENT):
                wanted.update(e.inputs)
        weighted: set[Var] = set()
        found = []
        if not self.cut.isdisjoint(before):
            return []
        for e in reversed(before):
            inner = self.kinds[e] in (Kind.ELEMENTWISE, Kind.MOVEMENT)
            if self._meets(e, n) or (inner and not weighted.isdisjoint(e.inputs)):
                weighted.update(e.outputs)
                found.append(e)
        return found if v in weighted else []

    def _meets(self, equation: Equation, n: int) -> bool:
        """Whether weights meet data here, with n copies of a trace affordable."""
        kind, read = self.kinds[equation], equation.inputs
        if kind is Kind.MIXING:
            form = self._form(equation)
            return form is not None and n * int(np.prod(form[1].sizes)) <= MAX_TRACE
        return kind is Kind.ELEMENTWISE and any(
            u in self.weights and u.inexact for u in read
        )

    def _form(self, equation: Equation) -> tuple[int, LinearForm] | None:
        for j, u in enumerate(equation.inputs):
            if u in self.weights and u.inexact:
                form = linear_form(equation, j)
                return None if form is None else (j, form)
        return None

    def _copy(self, equation: Equation, n: int) -> None:
        """n copies of what an equation gives; whoever reads one number, the first."""
        if self.kinds[equation] is Kind.MIXING:
            self._copy_product(equation, n)
        else:
            self._copy_mapped(equation, n)
        for u in equation.outputs:
            first = _movement(lambda x: x[0], self.made[u], u, equation.source)
            self.equations.append(first)

    def _copy_mapped(self, equation: Equation, n: int) -> None:
        read = [
            self._repeated(u, n, equation.source) if u in self.data else u
            for u in equation.inputs
        ]
        axes = [0 if u in self.data else None for u in equation.inputs]
        mapped = jax.vmap(equation.fun, axes)
        shapes = [jax.ShapeDtypeStruct(u.shape, u.dtype) for u in read]
        inner = trace_program(lambda *operands: list(mapped(*operands)), shapes)
        found = dict(zip(inner.inputs, read))
        self.constants.update(inner.constants)
        for e in inner.equations:
            inputs = tuple(found.get(u, u) for u in e.inputs)
            self.equations.append(
                dataclasses.replace(e, inputs=inputs, source=equation.source)
            )
        for u, copied in zip(equation.outputs, inner.outputs):
            self.made[u] = found.get(copied, copied)

    def _copy_product(self, equation: Equation, n: int) -> None:
        found = self._form(equation)
        assert found is not None
        (j, form), (z,) = found, equation.outputs
        b, p, o, c = form.sizes
        others = [k for k in range(len(equation.inputs)) if k != j]

        def in_order(weight: Any, *rest: Any) -> list[Any]:
            return [*rest[:j], weight, *rest[j:]]

        def product(*operands: Any) -> list[Array]:
            (once,) = equation.fun(*in_order(*operands))
            return [jnp.broadcast_to(once, (n, *z.shape))]

        def local_input(*operands: Any) -> Array:
            x = form.local_input(*in_order(*operands))
            return jnp.broadcast_to(x[:, None], (b, n, p, c)).reshape(b, n * p, c)

        def canonical(copies):
            if isinstance(copies, np.ndarray):
                each = np.stack([form.canonical(copy) for copy in copies])
            else:
                each = jax.vmap(form.canonical)(copies)
            return each.transpose(1, 0, 2, 3).reshape(b, n * p, o)

        copies = Var((n, *z.shape), z.dtype)
        many = LinearForm((b, n * p, o, c), local_input, canonical, form.weight)
        read = (equation.inputs[j], *(equation.inputs[k] for k in others))
        self.equations.append(
            Equation(
                "product", product, read, (copies,), {"form": many}, equation.source
            )
        )
        self.made[z] = copies

    def _repeated(self, v: Var, n: int, source: str) -> Var:
        """The copies that were made, or else, of what no weight gave, repetitions."""
        if v in self.made and self.made[v].shape[0] == n:
            return self.made[v]
        copies = Var((n, *v.shape), v.dtype)
        repeat = lambda x: jnp.broadcast_to(x, copies.shape)  # noqa: E731
        self.equations.append(_movement(repeat, v, copies, source))
        return copies


def _movement(fun: Callable, read: Var, out: Var, source: str) -> Equation:
    return Equation("broadcast_in_dim", lambda x: [fun(x)], (read,), (out,), {}, source)


def _live(program: Program) -> set[Equation]:
    """The equations that something needs."""
    read = [u for e in program.equations if e.effect for u in e.inputs]
    needed = program.needed([*program.outputs, *read])
    return {program.equations[i] for i in needed}


def _varies(x: np.ndarray) -> list[bool]:
    """Along which axes an array is not the same all over."""
    return [bool((x != x.take([0], axis=d)).any()) for d in range(x.ndim)]
