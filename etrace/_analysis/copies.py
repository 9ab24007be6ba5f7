"""Rewrites a program so that it has copies of some values.

`replicate` says of which, and what each is for.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._program.forms import LinearForm, linear_form, of_form
from .._program.ir import Edge, Equation, Program, Var
from .._program.operations import Operations
from .._program.primitive import Kind, Primitive
from .._program.trace import trace_program


@dataclasses.dataclass(frozen=True, eq=False)
class Copies:
    """The copies of one value, `[number, *shape]`.

    - `keys`: `element * total + destination`, of every copy that has one, in order.
    """

    keys: np.ndarray
    total: int
    size: int

    @functools.cached_property
    def first(self) -> np.ndarray:
        """Of each element, which of the keys is its first."""
        return np.searchsorted(self.keys, np.arange(self.size + 1) * self.total)

    @functools.cached_property
    def number(self) -> int:
        return int(np.diff(self.first).max(initial=0))

    def places(self, elements: np.ndarray, destinations: np.ndarray) -> np.ndarray:
        """`copy * size + element`, of the copies for such destinations. The first copy
        where there is none."""
        wanted = elements.astype(np.int64) * self.total + destinations
        at = np.searchsorted(self.keys, wanted)
        found = self.keys[np.minimum(at, len(self.keys) - 1)] == wanted
        found &= destinations >= 0
        return np.where(found, at - self.first[elements], 0) * self.size + elements

    @functools.cached_property
    def destinations(self) -> np.ndarray:
        """`[number, size]`, -1 where there is no such copy."""
        element, destination = np.divmod(self.keys, self.total)
        result = np.full((self.number, self.size), -1)
        result[np.arange(len(self.keys)) - self.first[element], element] = destination
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class CopyIndex:
    """What an edge reads of a value: which element of which copy, `copy * size +
    element`, in the shape of the operand, or of what the equation spreads it to."""

    family: int
    places: np.ndarray
    spread: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Of which equations there are copies, how many of each value in each family, and
    what reads which."""

    equations: Collection[int]
    copies: Mapping[Var, Mapping[int, Copies]]
    ways: Mapping[Edge, CopyIndex]
    data: Collection[Var]


def copied(operations: Operations, plan: Plan) -> Program:
    """The new program, without what nothing needs now."""
    old, rewriting = operations.program, _Rewriting(operations, plan)
    for i in range(len(old.equations)):
        if i in plan.equations:
            rewriting.copy(i)
        else:
            rewriting.keep(i)
    new = dataclasses.replace(
        old, equations=tuple(rewriting.equations), constants=rewriting.constants
    )
    needless = set(old.equations) - _live(old)  # but the user's own
    kept = _live(new) | needless
    return dataclasses.replace(
        new, equations=tuple(e for e in new.equations if e in kept)
    )


class _Rewriting:
    """Rewrites a program, equation by equation."""

    def __init__(self, operations: Operations, plan: Plan):
        self.operations = operations
        self.plan = plan
        self.equations: list[Equation] = []
        self.constants = dict(operations.program.constants)
        self.made: dict[tuple[Var, int], Var] = {}

    def keep(self, i: int) -> None:
        """An equation of the old program, which may read copies."""
        equation = self.operations.program.equations[i]
        inputs, arrived = list(equation.inputs), None
        for j, v in enumerate(equation.inputs):
            way = self.plan.ways.get((i, j))
            if way is not None and (v, way.family) in self.made:
                copies = self.made[v, way.family]
                inputs[j] = self._arranged(copies, way.places, equation.source)
                if way.spread and self.operations.kinds[i] is Kind.MOVEMENT:
                    arrived = inputs[j]
        if arrived is not None:  # what is moved is there already
            (out,), source = equation.outputs, equation.source
            equation = _movement(lambda x: x, arrived, out, source)
        elif inputs != list(equation.inputs):
            equation = dataclasses.replace(equation, inputs=tuple(inputs))
        self.equations.append(equation)

    def copy(self, i: int) -> None:
        """Copies of what an equation gives; whoever needs none reads the first."""
        equation, kind = self.operations.program.equations[i], self.operations.kinds[i]
        for v in equation.outputs if kind is Kind.MOVEMENT else equation.outputs[:1]:
            for family in self.plan.copies[v]:
                if kind is Kind.MIXING:
                    self._copy_product(equation, family)
                elif kind is Kind.MOVEMENT:
                    self._copy_moved(i, v, family)
                else:
                    self._copy_elementwise(equation, family)
        for v in equation.outputs:
            own = [self.made[v, f] for f in self.plan.copies[v] if (v, f) in self.made]
            if own:
                first = _movement(lambda x: x[0], own[0], v, equation.source)
                self.equations.append(first)
            elif equation not in self.equations:  # no copy of this result
                self.equations.append(equation)

    def _copy_product(self, equation: Equation, family: int) -> None:
        (z,) = equation.outputs
        n = self.plan.copies[z][family].number
        weight = next(
            j
            for j, u in enumerate(equation.inputs)
            if u.inexact and u not in self.plan.data
        )
        self.made[z, family] = self._append(product_of_copies(equation, weight, n))

    def _append(self, equation: Equation) -> Var:
        self.equations.append(equation)
        return equation.outputs[0]

    def _copy_elementwise(self, equation: Equation, family: int) -> None:
        out = equation.outputs[0]
        own = self.plan.copies[out][family]
        shape = (own.number, *out.shape)
        to = own.destinations.reshape(shape)
        read, axes = [], []
        for u in equation.inputs:
            if (u, family) in self.made:
                ids = np.arange(u.size).reshape(u.shape)
                places = self.plan.copies[u][family].places(
                    np.broadcast_to(ids, shape), to
                )
                narrow = _narrowed(places, u.shape)
                read.append(
                    self._arranged(self.made[u, family], narrow, equation.source)
                )
            elif u in self.plan.data or equation.has_own_derivative:
                # A function of the user's own takes operands of one shape.
                read.append(self._repeated(u, own.number, equation.source))
            else:
                read.append(u)
                axes.append(None)
                continue
            axes.append(0)
        self._mapped(equation, read, axes, family)

    def _mapped(
        self, equation: Equation, read: Sequence[Var], axes: Sequence, family: int
    ) -> None:
        mapped = jax.vmap(equation.fun, axes)
        shapes = [jax.ShapeDtypeStruct(u.shape, u.dtype) for u in read]
        inner = trace_program(lambda *operands: list(mapped(*operands)), shapes)
        self.constants.update(inner.constants)
        found, outputs = inner.applied(read)
        source = equation.source
        self.equations += [dataclasses.replace(e, source=source) for e in found]
        for v, new in zip(equation.outputs, outputs):
            self.made[v, family] = new

    def _copy_moved(self, i: int, out: Var, family: int) -> None:
        """A movement of copies: where each number of a copied result is found among
        the operands, laid end to end, and their copies."""
        equation = self.operations.program.equations[i]
        n = equation.outputs.index(out)
        own = self.plan.copies[out][family]
        shape = (own.number, *out.shape)
        source = np.broadcast_to(self.operations.sources(i)[n], shape)
        to = own.destinations.reshape(shape)
        read, start, end = [], 0, 0
        places = np.zeros(shape, np.int64)
        for u in equation.inputs:
            here = (source >= start) & (source < start + u.size)
            if here.any():
                elements = np.where(here, source - start, 0)
                copies = self.made.get((u, family), u)
                if copies is not u:
                    elements = self.plan.copies[u][family].places(elements, to)
                places = np.where(here, end + elements, places)
                read.append(copies)
                end += copies.size
            start += u.size
        if len(read) == 1:
            moved = self._arranged(read[0], places, equation.source)
        else:
            moved = Var(shape, out.dtype)
            gather = _Arrangement(places)
            self.equations.append(
                _movement_of(gather, tuple(read), moved, equation.source, places)
            )
        self.made[out, family] = moved

    def _arranged(self, copies: Var, places: np.ndarray, source: str) -> Var:
        """The elements of copies at some places, in their shape."""
        if np.array_equal(places, np.arange(copies.size).reshape(copies.shape)):
            return copies
        out = Var(places.shape, copies.dtype)
        fun = _Arrangement(places)
        self.equations.append(_movement_of(fun, (copies,), out, source, places))
        return out

    def _repeated(self, v: Var, n: int, source: str) -> Var:
        """Repetitions of what no weight gave."""
        shape = (n, *v.shape)
        places = np.broadcast_to(np.arange(v.size).reshape(v.shape), shape)
        return self._arranged(v, places, source)


class _Arrangement:
    """Takes elements of operands laid end to end.

    By a reshape, a transpose and a broadcast if that does, which is much faster than
    to look up each, and has such a transpose.
    """

    def __init__(self, places: np.ndarray):
        self.places = places
        self.regular = _regular(places)

    def __call__(self, *operands: Array) -> Array:
        flat = [x.reshape(-1) for x in operands]
        together = flat[0] if len(flat) == 1 else jnp.concatenate(flat)
        if self.regular is None:
            return together[self.places]
        low, high, sizes, order = self.regular
        part = together if (low, high) == (0, together.size) else together[low:high]
        part = part.reshape(sizes).transpose(order)
        return jnp.broadcast_to(part, self.places.shape)


def _regular(
    places: np.ndarray,
) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """From where to where, in which sizes, and in which order of axes: if places run
    through a range, axis by axis, or stay where they are along some."""
    if not places.size:
        return None
    low, high = int(places.min()), int(places.max()) + 1
    one = np.zeros(places.ndim, int)
    steps = []
    for d, n in enumerate(places.shape):
        at = one.copy()
        at[d] = min(1, n - 1)
        steps.append(int(places[tuple(at)] - places[tuple(one)]))
    sizes = [1 if s == 0 else n for s, n in zip(steps, places.shape)]
    order = sorted(range(places.ndim), key=lambda d: -steps[d])
    back = tuple(int(d) for d in np.argsort(order))
    moved = tuple(sizes[d] for d in order)
    if int(np.prod(moved)) != high - low:
        return None
    found = np.arange(low, high).reshape(moved).transpose(back)
    same = (np.broadcast_to(found, places.shape) == places).all()
    return (low, high, moved, back) if same else None


def product_of_copies(equation: Equation, j: int, n: int) -> Equation:
    """A product with the weight at operand j, computed once and given n times."""
    (z,), form = equation.outputs, linear_form(equation, j)
    assert form is not None
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

    def canonical(copies: Any) -> Any:
        if isinstance(copies, np.ndarray):
            each = np.stack([form.canonical(copy) for copy in copies])
        else:
            each = jax.vmap(form.canonical)(copies)
        return each.transpose(1, 0, 2, 3).reshape(b, n * p, o)

    copies = Var((n, *z.shape), z.dtype)
    many = LinearForm((b, n * p, o, c), local_input, canonical, form.weight)
    read = (equation.inputs[j], *(equation.inputs[k] for k in others))
    return Equation(of_form(many), product, read, (copies,), {}, equation.source)


def _movement(fun: Callable, read: Var, out: Var, source: str) -> Equation:
    places = np.arange(out.size).reshape(out.shape)
    return _movement_of(fun, (read,), out, source, places)


def _movement_of(
    fun: Callable, read: tuple[Var, ...], out: Var, source: str, places: np.ndarray
) -> Equation:
    call = lambda *operands: [fun(*operands)]  # noqa: E731
    primitive = Primitive("copies", Kind.MOVEMENT, sources=(places,))
    return Equation(primitive, call, read, (out,), {}, source)


def _live(program: Program) -> set[Equation]:
    """The equations that something needs."""
    read = [u for e in program.equations if e.effect for u in e.inputs]
    needed = program.needed([*program.outputs, *read])
    return {program.equations[i] for i in needed}


def _narrowed(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same for an operand of this shape that is broadcast, if all that one of its
    elements meets are in one copy."""
    full = shape or (1,) * (places.ndim - 1)
    narrow = places[(slice(None), *(slice(n) for n in full))]
    same = (narrow == places).all()
    return narrow.reshape(len(places), *shape) if same else places
