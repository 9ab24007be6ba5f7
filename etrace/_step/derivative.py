"""The derivative within a step, backwards along its equations.

All that rules ask for is a walk. Cotangents are given at some values, go back from one
equation to the next, end where the way is stopped, and are read where they arrive:

    f = ∂h_t/∂z             from the new state to the sites, along local paths
    D = ∂h_t/∂h_{t-1}       from the new state to the old one, along local paths
    B_t = ∂L_t/∂h_{t-1}     from the exits to the old state, along local paths
    λ_t, and "now"          from the outputs to the exits, and to the parameters

What an equation does to cotangents is JAX's own derivative of it, found once for all
walks.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._program.evaluate import Env, Value, aligned, operation
from .._program.ir import Edge, Program, Var

Cotangents = Mapping[Var, Array]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """Where a walk may go, and where it leads.

    - `values`: where cotangents are read.
    - `equations`: those that it goes through, in the order of the program; all if None.
    - `stops`: by edge, the elements that go no further there.
    - `shapes`: by edge where cotangents are read, too, the shape that the value is
        spread to there.
    - `instead`: by equation, another function to differentiate, of its known result
        and its operands.
    """

    program: Program
    values: Collection[Var]
    equations: Sequence[int] | None = None
    stops: Mapping[Edge, np.ndarray] = dataclasses.field(default_factory=dict)
    shapes: Mapping[Edge, Shape] = dataclasses.field(default_factory=dict)
    instead: Mapping[int, Callable[[Value, list[Value]], Value]] = dataclasses.field(
        default_factory=dict
    )

    @functools.cached_property
    def operands(self) -> Mapping[int, tuple[int, ...]]:
        """By equation that leads somewhere, in reverse order, the operands that do."""
        leading, found = set(self.values), {}
        everything = range(len(self.program.equations))
        for i in everything if self.equations is None else self.equations:
            e = self.program.equations[i]
            if e.primitive.flat:  # what depends on its results need have no derivative
                continue
            own = [
                j
                for j, v in enumerate(e.inputs)
                if v.inexact and (v in leading or (i, j) in self.shapes)
                if not ((i, j) in self.stops and self.stops[i, j].all())
            ]
            if own:
                leading.update(v for v in e.outputs if v.inexact)
                found[i] = tuple(own)
        return dict(reversed(found.items()))

    def shape(self, edge: Edge) -> Shape | None:
        """What a value is spread to where it is read, if to anything."""
        stop = self.stops.get(edge)
        return self.shapes.get(edge) if stop is None else stop.shape


@dataclasses.dataclass(frozen=True)
class Arrived:
    """Cotangents where a walk has led: none stands for zero."""

    values: Cotangents
    edges: Mapping[Edge, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Derivative:
    """That of k steps of a batch, at their values.

    `size` is (k, batch).
    """

    program: Program
    env: Env
    size: tuple[int, int]
    _found: dict = dataclasses.field(default_factory=dict)

    def back(
        self,
        way: Way,
        seeds: Iterable[tuple[Var, Array]],
        *,
        each: bool = True,
        only: Mapping[Edge, Array] = {},  # noqa: B006 (read only)
    ) -> Arrived:
        """Goes a way, from cotangents `seeds` of values.

        **Arguments:**

        - `each`: whether cotangents are those of every step and example, [k * batch,
            ...]; if not, they are summed over what has no such axis, such as weights.
        - `only`: by edge, what to add to the cotangent of the equation's result on its
            way to that operand alone, [k * batch, ...].
        """
        at: dict[Var, Array] = {}
        edges: dict[Edge, Array] = {}
        for v, x in seeds:
            at[v] = at[v] + x if v in at else x
        more = {i for i, _ in only}
        for i, operands in way.operands.items():
            outputs = self.program.equations[i].outputs
            if i not in more and not any(v in at for v in outputs):
                continue
            own = [at.get(v) for v in outputs if v.inexact]
            for j, x in self._pulled(way, i, operands, own, each, only):
                if (i, j) in way.stops:
                    x = jnp.where(way.stops[i, j], 0, x)
                if (i, j) in way.shapes:
                    edges[i, j] = x
                v, x = self.at_operand((i, j), x, each)
                at[v] = at[v] + x if v in at else x
        return Arrived(at, edges)

    def prepare(self, way: Way) -> None:
        """Differentiates the equations of a way, before a loop that goes it."""
        for i, operands in way.operands.items():
            self._linear(way, i, operands, each=True)

    def at_operand(
        self, edge: Edge, cotangent: Array, each: bool = True
    ) -> tuple[Var, Array]:
        """A cotangent where a value is read, as one of the value."""
        v = self.program.operand(edge)
        lead = 1 if each else self.env[v].lead
        return v, narrowed(cotangent, lead, v.shape)

    def natural(self, v: Var, cotangent: Array) -> Array:
        """The sum of what is given for every step and example, [k * batch, ...], over
        what a value is the same for."""
        depth = self.env[v].depth
        if depth == 2:
            return cotangent
        x = cotangent.reshape(*self.size, *cotangent.shape[1:])
        return x.sum(0) if depth else x.sum((0, 1))

    def _pulled(
        self,
        way: Way,
        i: int,
        operands: tuple[int, ...],
        own: Sequence[Array | None],
        each: bool,
        only: Mapping[Edge, Array],
    ) -> Iterable[tuple[int, Array]]:
        """Cotangents of operands, from those of the results."""
        apart = [j for j in operands if (i, j) in only]
        together = tuple(j for j in operands if j not in apart)
        if together and any(x is not None for x in own):
            yield from self._linear(way, i, together, each)(own)
        for j in apart:
            v = self.program.equations[i].outputs[0]
            more = only[i, j] if each else self.natural(v, only[i, j])
            total = more if own[0] is None else own[0] + more
            yield from self._linear(way, i, (j,), each)([total])

    def _linear(
        self, way: Way, i: int, wanted: tuple[int, ...], each: bool
    ) -> Callable[[Sequence[Array | None]], Iterable[tuple[int, Array]]]:
        """From cotangents of the inexact results to those of some operands."""
        equation = self.program.equations[i]
        moving = wanted
        if equation.body is not None:  # to be differentiated once
            moving = tuple(j for j, v in enumerate(equation.inputs) if v.inexact)
        values = [self.env[v] for v in equation.inputs]
        changes = []
        for j in moving if each else ():
            if j not in wanted and not values[j].depth:
                continue  # a weight of a loop: it may be large
            shape = way.shape((i, j))
            own = values[j] if shape is None else values[j].widen(shape)
            if own is not values[j] or own.depth < 2:
                changes.append((j, shape))
                values[j] = own.spread(*self.size)
        key = i, moving, tuple(changes), way.instead.get(i)
        if key not in self._found:
            self._found[key] = self._differentiated(way, i, values, moving)
        results, pull = self._found[key]

        def pulled(own: Sequence[Array | None]) -> Iterable[tuple[int, Array]]:
            pairs = zip(own, results, strict=True)
            given = [jnp.zeros(r.shape, r.dtype) if x is None else x for x, r in pairs]
            found = zip(moving, pull(given), strict=True)
            return [(j, x) for j, x in found if j in wanted]

        return pulled

    def _differentiated(
        self, way: Way, i: int, values: list[Value], moving: Sequence[int]
    ) -> tuple[list[jax.ShapeDtypeStruct], Callable]:
        """The shapes of the inexact results, and the way back from there."""
        outputs = self.program.equations[i].outputs

        def of_moving(*arrays: Array) -> list[Array]:
            operands = list(values)
            for j, x in zip(moving, arrays, strict=True):
                operands[j] = dataclasses.replace(operands[j], array=x)
            operands = aligned(operands)
            if i in way.instead:
                known = self.env[outputs[0]]
                return [way.instead[i](known, operands).array]
            fun = operation(self.program, i, operands)
            results = fun(*(o.array for o in operands))
            return [x for x, v in zip(results, outputs, strict=True) if v.inexact]

        found, pull = jax.vjp(of_moving, *(values[j].array for j in moving))
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in found], pull


def narrowed(cotangent: Array, lead: int, shape: Shape) -> Array:
    """Of a value that was broadcast: its cotangent, behind `lead` axes in front."""
    own = cotangent.shape[lead:]
    if own == shape:
        return cotangent
    more = len(own) - len(shape)
    axes = [lead + d for d in range(more)]
    axes += [lead + more + d for d, n in enumerate(shape) if own[more + d] != n]
    return cotangent.sum(axes).reshape(*cotangent.shape[:lead], *shape)
