"""Values that flow into several positions, copied before they part.

`sigmoid(w @ x) * h` has one gate for all neurons. Its weight acts on every neuron's
state, and what it did to each is a trace of its own. So the program is rewritten as if
every position had computed its own gate:

    g = sigmoid(w @ x);  h' = g * h    ->    g[n] = sigmoid((w @ x)[n]);  h' = g * h

where the copies of `w @ x` are one product, with as many places `p` as there are
copies. It is computed once; only its traces are many.

What a copy is for, its *destination*, is a position in some of the groups. Destinations
are found at the *ends*, where what parts is read by something that flows into one
position only, and run backwards from there. So a gate has as many copies as it has
destinations, however often its values part on the way: in `c' = f c + i v k^T` the
product `i v` goes to a row of the matrix, and `i` to all of it.

Destinations in different groups are different *families* of copies: of a gate for a
matrix `[d, d]` and its normaliser `[d]` there are d * d copies with a trace in the one
group, and d with a trace in the other.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from .._program.flow import pull
from .._program.forms import linear_form
from .._program.ir import Edge, Equation, Program, Var
from .._program.labels import BLOCKED, LABEL, MIXED, UNSET
from .._program.operations import NOTHING, Operations
from .._program.primitive import Kind
from .copies import Copies, CopyIndex, Plan, copied
from .positions import Positions

# A weight keeps its trace whole up to this many numbers, for one example and one number
# of the state a position.
MAX_TRACE = 2**24


def replicate(
    operations: Operations,
    positions: Positions,
    params: Iterable[Var],
    data: Iterable[Var],
) -> Program | None:
    """The program with a copy for every position of what parts to several.

    None if nothing with a weight in it does, or every such weight is too large. What
    positions meet in stays one value, as it belongs to none of them.
    """
    chain = _Chain(operations, positions, params, data)
    if not chain.equations:
        return None
    ends = _Ends(chain)
    copies = _Backwards(chain, ends).copies
    kept = chain.affordable(copies)
    if not kept:
        return None
    ways = {edge: way for edge, way in ends.ways(copies).items() if way is not None}
    return copied(operations, Plan(kept, copies, ways, chain.data))


class _Chain:
    """The equations between weights and the places where what they gave parts.

    Element by element, without a cut: there the state may enter.
    """

    def __init__(
        self,
        operations: Operations,
        positions: Positions,
        params: Iterable[Var],
        data: Iterable[Var],
    ):
        self.operations = operations
        self.positions = positions
        self.data = operations.program.reached_from(data)
        self.weights = operations.program.reached_from(params) - self.data
        self.parting = {
            v for f in positions.flow for v, own in f.items() if (own == MIXED).any()
        }
        self.equations: tuple[int, ...] = ()
        self.made: dict[Var, int] = {}
        if self.parting:
            self._find({i for i, _ in positions.cuts})

    def _find(self, cut: Collection[int]) -> None:
        behind, found = set(), []
        for i, e in enumerate(self.operations.program.equations):
            inner = self.operations.kinds[i] in (Kind.ELEMENTWISE, Kind.MOVEMENT)
            if i in cut or (inner and not behind.isdisjoint(e.inputs)):
                behind.update(e.outputs)
            elif self._belongs(i, self.made):
                found.append(i)
                self.made.update(dict.fromkeys(e.outputs, i))
        self.equations = tuple(found)

    def _belongs(self, i: int, made: Collection[Var]) -> bool:
        e, kind = self.operations.program.equations[i], self.operations.kinds[i]
        if self.parting.isdisjoint(e.outputs) or self.data.isdisjoint(e.outputs):
            return False
        if kind is Kind.MIXING:
            return self.trace(e) is not None
        if kind is Kind.MOVEMENT and any(
            (s == NOTHING).any() for s in self.operations.sources(i)
        ):
            return False
        meets = any(u in self.weights and u.inexact for u in e.inputs)
        inner = kind in (Kind.ELEMENTWISE, Kind.MOVEMENT)
        return (kind is Kind.ELEMENTWISE and meets) or (
            inner and any(u in made for u in e.inputs)
        )

    def trace(self, e: Equation) -> int | None:
        """The numbers in the trace of a product with a weight; None if it is none."""
        for j, u in enumerate(e.inputs):
            if u in self.weights and u.inexact:
                form = linear_form(e, j)
                return None if form is None else int(np.prod(form.sizes))
        return None

    def affordable(self, copies: Mapping[Var, Mapping[int, Copies]]) -> set[int]:
        """The equations of which copies are made."""
        kept: set[int] = set()
        made: set[Var] = set()
        for i in self.equations:
            e = self.operations.program.equations[i]
            number = max(
                sum(c.number for c in copies.get(v, {}).values()) for v in e.outputs
            )
            numbers = self.trace(e) if self.operations.kinds[i] is Kind.MIXING else 0
            if number * (numbers or 0) > MAX_TRACE or number < 2:
                continue
            if self._belongs(i, made):
                kept.add(i)
                made.update(e.outputs)
        return kept


@dataclasses.dataclass(frozen=True, eq=False)
class _End:
    """What is read at the end of a chain: which elements, and the positions where each
    goes; as in the operand, or as the equation spreads it.

    - `labels`: `[groups, *shape]`.
    """

    elements: np.ndarray
    labels: np.ndarray
    spread: bool


class _Ends:
    """Where the equations of a chain are read by others, and the destinations there.

    - `destinations`: `[groups, destinations]`, the position in each, or UNSET.
    - `family`: that of each destination.
    - `numbers`: by edge, the destination of each element that is read; -1 if none.
    """

    def __init__(self, chain: _Chain):
        self.chain = chain
        self.ends: dict[Edge, _End] = {}
        inside = set(chain.equations)
        for i, e in enumerate(chain.operations.program.equations):
            for j, v in enumerate(e.inputs):
                if v in chain.made and i not in inside:
                    end = _end(chain, (i, j))
                    if (end.labels != UNSET).any():
                        self.ends[i, j] = end
        groups = len(chain.positions.flow)
        rows = [e.labels.reshape(groups, -1) for e in self.ends.values()]
        every = np.concatenate([np.zeros((groups, 0), LABEL), *rows], axis=1)
        every = np.where(every >= 0, every, UNSET)
        goes = (every >= 0).any(axis=0)
        there = every[:, goes]
        names = ordered(there)
        _, first, own = np.unique(names, return_index=True, return_inverse=True)
        self.destinations = there[:, first]
        flat = np.full(every.shape[1], -1)
        flat[goes] = own.reshape(-1)
        ends = np.cumsum([row.shape[1] for row in rows])[:-1]
        parts = np.split(flat, ends) if rows else []
        self.numbers = {
            edge: part.reshape(end.elements.shape)
            for (edge, end), part in zip(self.ends.items(), parts, strict=True)
        }
        self.family = self._families()

    def _families(self) -> np.ndarray:
        """Destinations in the same groups are of one family, and those that one edge
        reads."""
        _, support = np.unique(ordered(self.destinations >= 0), return_inverse=True)
        support = support.reshape(-1)
        family = np.arange(support.max(initial=-1) + 1)
        for numbers in self.numbers.values():
            together = np.unique(family[support[numbers[numbers >= 0]]])
            if together.size:
                family[np.isin(family, together)] = together[0]
        return family[support]

    def ways(
        self, copies: Mapping[Var, Mapping[int, Copies]]
    ) -> Mapping[Edge, CopyIndex | None]:
        """What each edge reads of the copies; None if there are none for it."""
        return {edge: self._way(edge, copies) for edge in self.ends}

    def _way(
        self, edge: Edge, copies: Mapping[Var, Mapping[int, Copies]]
    ) -> CopyIndex | None:
        numbers, end = self.numbers[edge], self.ends[edge]
        v = self.chain.operations.program.operand(edge)
        if (numbers < 0).all():
            return None
        family = int(self.family[numbers[numbers >= 0][0]])
        own = copies.get(v, {}).get(family)
        if own is None:
            return None
        return CopyIndex(family, own.places(end.elements, numbers), end.spread)


def _end(chain: _Chain, edge: Edge) -> _End:
    operations, positions = chain.operations, chain.positions
    i, _ = edge
    equation, v = operations.program.equations[i], operations.program.operand(edge)
    pulled = [pull(operations, f, edge, own=positions.own) for f in positions.flow]
    nowhere = np.full(v.shape, UNSET, LABEL)
    labels = np.stack([nowhere if p is None else p for p in pulled])
    spread = _spread(operations, edge) if (labels == MIXED).any() else None
    if spread is None:
        return _End(np.arange(v.size).reshape(v.shape), labels, spread=False)
    (out,) = equation.outputs
    nowhere = np.full(out.shape, UNSET, LABEL)
    labels = np.stack([flow.get(out, nowhere) for flow in positions.flow])
    return _End(spread, labels, spread=True)


def _spread(operations: Operations, edge: Edge) -> np.ndarray | None:
    """Which element of an operand each number of the result comes from, if all do."""
    i, j = edge
    equation, v = operations.program.equations[i], operations.program.operand(edge)
    if len(equation.outputs) != 1:
        return None
    if operations.kinds[i] is Kind.ELEMENTWISE:
        elements = np.arange(v.size).reshape(v.shape)
        return np.broadcast_to(elements, equation.outputs[0].shape)
    if operations.kinds[i] is not Kind.MOVEMENT:
        return None
    start = sum(u.size for u in equation.inputs[:j])
    elements = np.asarray(operations.sources(i)[0] - start)
    return elements if ((elements >= 0) & (elements < v.size)).all() else None


class _Backwards:
    """Destinations, from the ends of a chain to its weights.

    - `copies`: by value and family.
    """

    def __init__(self, chain: _Chain, ends: _Ends):
        self.chain = chain
        self.ends = ends
        self.total = max(ends.destinations.shape[1], 1)
        # By value: elements with their destinations, and elements some way from which
        # goes to several positions whatever is copied.
        self.found: dict[Var, list[np.ndarray]] = {}
        self.stuck: dict[Var, np.ndarray] = {}
        for edge, end in ends.ends.items():
            v, numbers = chain.operations.program.operand(edge), ends.numbers[edge]
            mixed = (end.labels == MIXED).any(axis=0)
            self._add(v, end.elements, numbers, numbers >= 0, mixed)
        self.copies: dict[Var, Mapping[int, Copies]] = {}
        for i in reversed(chain.equations):
            self._equation(i)

    def _add(
        self,
        v: Var,
        elements: np.ndarray,
        destinations: np.ndarray,
        goes: np.ndarray,
        stuck: np.ndarray,
    ) -> None:
        keys = elements[goes].astype(np.int64) * self.total + destinations[goes]
        self.found.setdefault(v, []).append(np.unique(keys))
        if stuck.any():
            own = self.stuck.setdefault(v, np.zeros(v.size, bool))
            own[elements[stuck]] = True

    def _equation(self, i: int) -> None:
        operations = self.chain.operations
        e, kind = operations.program.equations[i], operations.kinds[i]
        keys = {v: self._keys(v) for v in e.outputs}
        if kind is Kind.ELEMENTWISE:  # all results of one element are copied alike
            together = np.unique(np.concatenate(list(keys.values())))
            keys = dict.fromkeys(e.outputs, together)
        for v in e.outputs:
            self.copies[v] = self._by_family(v, keys[v])
        if kind is Kind.MIXING:
            return
        for n, v in enumerate(e.outputs):
            out, destination = np.divmod(keys[v], self.total)
            stuck = np.flatnonzero(self.stuck.get(v, np.zeros(v.size, bool)))
            start = 0
            for u in e.inputs:
                if u in self.chain.made:
                    source = self._source(i, n, u, start)
                    for numbers, to in ((out, destination), (stuck, None)):
                        read = source[numbers]
                        inside = (read >= 0) & (read < u.size)
                        none = np.zeros(inside.shape, bool)
                        if to is None:
                            self._add(u, read, read, none, inside)
                        else:
                            self._add(u, read, to, inside, none)
                start += u.size

    def _source(self, i: int, n: int, u: Var, start: int) -> np.ndarray:
        """The element of an operand at each of result n; any other number if none."""
        operations = self.chain.operations
        if operations.kinds[i] is Kind.MOVEMENT:
            return operations.sources(i)[n].reshape(-1) - start
        shape = operations.program.equations[i].outputs[n].shape
        return np.broadcast_to(np.arange(u.size).reshape(u.shape), shape).reshape(-1)

    def _keys(self, v: Var) -> np.ndarray:
        """The pairs of an element and a destination that can have a trace."""
        found = [np.zeros(0, np.int64), *self.found.get(v, [])]
        keys = np.unique(np.concatenate(found))
        element, destination = np.divmod(keys, self.total)
        open_ = np.zeros(keys.shape, bool)
        for g, flow in enumerate(self.chain.positions.flow):
            if v in flow:
                reached = flow[v].reshape(-1)[element] != BLOCKED
                open_ |= reached & (self.ends.destinations[g, destination] >= 0)
        if v in self.stuck:
            open_ &= ~self.stuck[v][element]
        return keys[open_]

    def _by_family(self, v: Var, keys: np.ndarray) -> Mapping[int, Copies]:
        family = self.ends.family[keys % self.total]
        return {
            int(f): Copies(keys[family == f], self.total, v.size)
            for f in np.unique(family)
        }


def ordered(rows: np.ndarray) -> np.ndarray:
    """A number for each column, in their lexicographic order: numbers are sorted much
    faster than columns."""
    result = np.zeros(rows.shape[1], np.int64)
    for row in rows.astype(np.int64):
        low = row - row.min(initial=0)
        width = int(low.max(initial=0)) + 1
        if int(result.max(initial=0)) >= 2**62 // width:
            result = np.unique(result, return_inverse=True)[1].reshape(-1)
        result *= width
        result += low
    return result
