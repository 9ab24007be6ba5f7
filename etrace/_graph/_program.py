"""The step function as a flat list of equations.

This file and `_jaxprs` are the library's only contact with jaxprs. `trace_program`
traces a function, inlines call primitives, turns `cond` into a select over its branches
and unrolls short `scan`s; what is left are equations of single primitives, each with a
callable of its own.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from .._model import BatchAxis
from ._jaxprs import (
    CALLS,
    CUSTOM,
    Loop,
    acts,
    body_of,
    callable_of,
    inner_jaxpr,
    is_effect,
    is_opaque,
    named_axes,
    scan_of,
)
from ._kinds import ELEMENTWISE
from ._loops import taken_apart
from ._singular import (
    SINGULAR,
    SINGULAR_WITH_DATA,
    where_taken,
    with_finite_slopes,
)
from ._sparse import is_sparse_product, sparse_product
from ._where import is_of_jax, is_of_library, line_of

MAX_UNROLLED_SCAN = 32

# Operations that are linear in what a weight is multiplied with.
LINEAR_IN_DATA = ("dot_general", "conv_general_dilated")


@dataclasses.dataclass(frozen=True, eq=False)
class Var:
    """A value of the program; compared by identity."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def inexact(self) -> bool:
        """Whether a gradient can flow through this value."""
        return jnp.issubdtype(self.dtype, jnp.inexact)

    def axes_but(self, *used: Iterable[int]) -> tuple[int, ...]:
        """Its axes, in order, but for some."""
        taken = {d for dims in used for d in dims}
        return tuple(d for d in range(len(self.shape)) if d not in taken)


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive application: `outputs = fun(*inputs)`.

    `body` holds the inner program of a loop, or of a call with a custom derivative, if
    it only computes; and what an operation that is not JAX's own computes. `effect`: it
    does something else as well, such as printing.
    `axes`: the named axes of a batch that it acts over, as a mean over examples does.
    `plain`: `fun` is an elementwise primitive as it is, for arrays of any shape.
    """

    name: str
    fun: Callable[..., Sequence[Any]]
    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]
    params: Mapping[str, Any]
    source: str
    body: "Program | None" = None
    loop: Loop | None = None
    effect: bool = False
    axes: tuple[str, ...] = ()
    plain: bool = False

    @property
    def has_own_derivative(self) -> bool:
        """Whether its derivative is declared, and need not be that of its body."""
        return self.name in CUSTOM or (self.body is not None and self.loop is None)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function of one example; of several at once where it names their `axis`."""

    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]
    equations: tuple[Equation, ...]
    constants: Mapping[Var, Any]
    axis: BatchAxis | None = None

    def operand(self, edge: "Edge") -> Var:
        """The value that is read at an edge."""
        i, j = edge
        end = i == len(self.equations)
        return self.outputs[j] if end else self.equations[i].inputs[j]

    def over(self, i: int) -> BatchAxis | None:
        """The axis of the batch, if that equation acts over it."""
        named = self.axis is not None and self.axis.name in self.equations[i].axes
        return self.axis if named else None

    def needed(self, values: Iterable[Var]) -> tuple[int, ...]:
        """The equations that these values need."""
        needed, result = set(values), []
        for i, e in reversed(list(enumerate(self.equations))):
            if any(v in needed for v in e.outputs):
                result.append(i)
                needed.update(e.inputs)
        return tuple(reversed(result))

    def applied(self, inputs: Sequence[Var]) -> tuple[list[Equation], tuple[Var, ...]]:
        """(equations, outputs) of it applied to other values, for another program that
        takes over its `constants`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        equations = [
            dataclasses.replace(e, inputs=tuple(given.get(v, v) for v in e.inputs))
            for e in self.equations
        ]
        return equations, tuple(given.get(v, v) for v in self.outputs)

    def reached_from(self, start: Iterable[Var]) -> set[Var]:
        """The values that depend on others, and these."""
        reached = set(start)
        for e in self.equations:
            if any(v in reached for v in e.inputs):
                reached.update(e.outputs)
        return reached


# A place where a value is read: operand `[1]` of equation `[0]`. The outputs of a
# program count as the operands of one more equation, numbered `len(equations)`.
Edge = tuple[int, int]


def trace_program(
    fun: Callable,
    arguments: Sequence[Any],
    copied: range = range(0),
    params: int = 0,
    fixed: int = 0,
    stays: Callable[[Equation, Sequence[int]], bool] = lambda loop, weights: False,
) -> Program:
    """Traces `fun(*arguments)`, from flat arrays (or shape structs) to flat arrays.

    The outputs numbered `copied` get a value of their own, which is no other output,
    input or intermediate. The first `params` arguments are parameters, the first
    `fixed` are the same at every step; the others are data. `stays` says whether a
    short loop, of which some operands depend on parameters, stays a loop.
    """
    builder = _Builder(stays)
    program = builder.program(jax.make_jaxpr(fun)(*arguments), params, fixed)
    outputs = list(program.outputs)
    for j in copied:
        outputs[j] = builder.append("copy", lambda x: x, [outputs[j]], "the new state")
    return Program(
        program.inputs, tuple(outputs), tuple(builder.equations), program.constants
    )


class _Builder:
    """Accumulates equations while walking nested jaxprs."""

    def __init__(self, stays: Callable[[Equation, Sequence[int]], bool]):
        self.stays = stays
        self.equations: list[Equation] = []
        self.constants: dict[Var, Any] = {}
        self.weights: set[Var] = set()  # what depends on parameters
        self.data: set[Var] = set()  # what depends on data
        self.held: set[Var] = set()  # what has no derivative by declaration
        self.taken: Var | None = None  # whether the branch that is inlined is taken

    def program(self, closed, params: int = 0, fixed: int = 0) -> Program:
        inputs = tuple(_var(v.aval) for v in closed.jaxpr.invars)
        self.weights.update(inputs[:params])
        self.data.update(inputs[fixed:])
        outputs = self.inline(closed, inputs)
        return Program(inputs, tuple(outputs), tuple(self.equations), self.constants)

    def inline(self, closed, arguments: Sequence[Var]) -> list[Var]:
        """Appends the equations of `closed`, applied to `arguments`."""
        jaxpr = closed.jaxpr
        env = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
            env[var] = self.constant(value)
        for eqn in jaxpr.eqns:
            read = [self._read(env, atom) for atom in eqn.invars]
            for var, value in zip(eqn.outvars, self._equation(jaxpr, eqn, read)):
                env[var] = value
        return [self._read(env, atom) for atom in jaxpr.outvars]

    def _read(self, env: dict, atom) -> Var:
        if isinstance(atom, jex.core.Literal):
            return self.constant(np.asarray(atom.val, dtype=_var(atom.aval).dtype))
        return env[atom]

    def constant(self, value: Any) -> Var:
        if isinstance(value, Tracer):
            raise TypeError(
                f"the model closes over {value!r}, a value of an enclosing jax "
                "transformation. Make it a field of the model, or an input."
            )
        var = Var(tuple(np.shape(value)), jax.dtypes.result_type(value))
        self.constants[var] = value
        return var

    def _as_arrays(self, read: Sequence[Var]) -> None:
        """A derivative of the user's own expects JAX's arrays, in constants too."""
        for v in read:
            value = self.constants.get(v)
            if value is not None and not isinstance(value, jax.Array):
                with jax.ensure_compile_time_eval():
                    self.constants[v] = jax.device_put(np.asarray(value, v.dtype))

    def _equation(self, jaxpr, eqn, read: list[Var]) -> Sequence[Var]:
        name = eqn.primitive.name
        if name == "optimization_barrier":
            return read
        if is_sparse_product(eqn):
            return self._inline_at(line_of(eqn), sparse_product(eqn), read)
        if name in CALLS:
            inner = inner_jaxpr(eqn)
            if is_of_jax(inner):
                return self._inline_at(line_of(eqn), inner, read)
            return self.inline(inner, read)
        if name == "cond" and not is_opaque(eqn):
            return self._select(eqn, read)
        if name == "scan" and eqn.params["length"]:
            apart = taken_apart(eqn, read, self._weights(read))
            if apart is not None:
                return self._inline_at(line_of(eqn), apart, read, only=is_of_library)
            if self._unrolls(jaxpr, eqn, read):
                return self._unroll(eqn, read)
        if name in CUSTOM:
            self._as_arrays(read)
        source, guarded = line_of(eqn), self._meets(read)
        changed = None
        if guarded:
            fill = float(name not in LINEAR_IN_DATA)
            read = [self._safe(v, self.taken, fill, source) for v in read]
            if name in SINGULAR_WITH_DATA and self.taken is not None:
                changed, read = where_taken, [*read, self.taken]
        elif name in SINGULAR and self._is_expression(read):
            changed = with_finite_slopes
        equation = self._primitive(jaxpr, eqn, read)
        if changed is not None:
            fun = changed(equation.fun)
            equation = dataclasses.replace(equation, fun=fun, plain=False)
        self._add(equation)
        if not guarded:
            return equation.outputs
        return [self._guarded(v, self.taken, source) for v in equation.outputs]

    def _primitive(self, jaxpr, eqn, read: list[Var]) -> Equation:
        """One primitive, applied to `read`."""
        name, fun = eqn.primitive.name, callable_of(jaxpr, eqn)
        inner, loop = body_of(eqn, read)
        axes = named_axes(eqn.params)
        of_jax = loop is not None or name in CUSTOM
        computes = inner is not None and not axes and not (of_jax and acts(inner))
        body = _Builder(self.stays).program(inner) if computes else None
        if body is not None and loop is None:
            fun = _holding(fun, [j for j, v in enumerate(read) if v in self.held])
        return Equation(
            name,
            fun,
            tuple(read),
            tuple(_var(v.aval) for v in eqn.outvars),
            eqn.params,
            line_of(eqn),
            body,
            loop,
            any(map(is_effect, eqn.effects)),
            axes,
            name in ELEMENTWISE,
        )

    def _unrolls(self, jaxpr, eqn, read: list[Var]) -> bool:
        """Whether a loop becomes one copy of its body a round: positions meet in it, or
        a branch that may not be taken guards each of its equations."""
        length = eqn.params["length"]
        if length > MAX_UNROLLED_SCAN or length == 1 or self.taken is not None:
            return length <= MAX_UNROLLED_SCAN
        loop = self._primitive(jaxpr, eqn, read)
        return loop.body is None or not self.stays(loop, self._weights(read))

    def _weights(self, read: Sequence[Var]) -> list[int]:
        """The operands that depend on parameters."""
        return [j for j, v in enumerate(read) if v.inexact and v in self.weights]

    def _add(self, equation: Equation) -> None:
        self.equations.append(equation)
        if equation.name == "stop_gradient":
            self.held.update(equation.outputs)
        for kind in (self.weights, self.data):
            if not kind.isdisjoint(equation.inputs):
                kind.update(equation.outputs)

    def _inline_at(
        self,
        source: str,
        closed,
        arguments: Sequence[Var],
        only: Callable[[str], bool] = lambda source: True,
    ) -> list[Var]:
        """`inline`, with one line for all equations, or for those of `only` some."""
        first = len(self.equations)
        outputs = self.inline(closed, arguments)
        self.equations[first:] = [
            dataclasses.replace(e, source=source) if only(e.source) else e
            for e in self.equations[first:]
        ]
        return outputs

    def append(self, name: str, fun: Callable, inputs: Sequence[Var], source: str):
        """Appends an equation that no primitive of the user's function stands for."""
        out = jax.eval_shape(
            fun, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs)
        )
        output = Var(out.shape, out.dtype)
        equation = Equation(
            name, lambda *args: [fun(*args)], tuple(inputs), (output,), {}, source
        )
        self._add(equation)
        return output

    def _select(self, eqn, read: list[Var]) -> list[Var]:
        """`cond` as a select: every branch is evaluated.

        A derivative that does not exist in a branch that is not taken (of a root of a
        negative number) must not count. JAX, which does the same with a batch, stops
        gradients where operands enter such a branch. So do we for data, and for weights
        where they meet data: a weight has its traces there, and no gate before it. (Nor
        is its derivative infinite before, see `_singular`.)
        """
        source, outer = line_of(eqn), self.taken
        branches, last = [], len(eqn.params["branches"]) - 1
        in_range = lambda i: jnp.clip(jnp.asarray(i, jnp.int32), 0, last)  # noqa: E731
        index = self.append("clamp", in_range, read[:1], source)
        for b, branch in enumerate(eqn.params["branches"]):
            taken = self._is_taken(index, b, source)
            everything = index not in self.data
            entering = [
                self._guarded(v, taken, source) if everything or v in self.data else v
                for v in read[1:]
            ]
            self.taken = outer if everything else taken
            branches.append(self.inline(branch, entering))
            self.taken = outer

        def select(which, *cases):
            if len(cases) == 2:
                which = which.astype(bool)
            return lax.select_n(which, *cases)

        return [
            self.append("select_n", select, [index, *cases], source)
            for cases in zip(*branches, strict=True)
        ]

    def _is_taken(self, index: Var, branch: int, source: str) -> Var:
        """Whether a branch is taken, and those that it lies in."""

        def is_taken(which, *outer):
            return jnp.all(jnp.stack([which == branch, *outer]))

        outer = [] if self.taken is None else [self.taken]
        return self.append("and", is_taken, [index, *outer], source)

    def _meets(self, read: Sequence[Var]) -> bool:
        """Whether weights meet data within a branch."""
        return (
            self.taken is not None
            and any(v.inexact and v in self.weights - self.data for v in read)
            and not self.data.isdisjoint(read)
        )

    def _is_expression(self, read: Sequence[Var]) -> bool:
        """Whether operands are weights alone, and real, within a branch."""
        return (
            self.taken is not None
            and not self.weights.isdisjoint(read)
            and self.data.isdisjoint(read)
            and not any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in read)
        )

    def _guarded(self, v: Var, taken: Var | None, source: str) -> Var:
        """A value whose gradient is zero where the branch is not taken, whatever is
        multiplied with zero."""
        if not v.inexact or taken is None:
            return v
        guard = lambda t, x: jnp.where(t, x, lax.stop_gradient(x))  # noqa: E731
        return self.append("select_n", guard, [taken, v], source)

    def _safe(self, v: Var, taken: Var | None, fill: float, source: str) -> Var:
        """Data that a weight meets, finite where the branch is not taken."""
        if not v.inexact or v not in self.data or taken is None:
            return v
        safe = lambda t, x: jnp.where(t, x, jnp.full_like(x, fill))  # noqa: E731
        return self.append("select_n", safe, [taken, v], source)

    def _unroll(self, eqn, read: list[Var]) -> list[Var]:
        """A short `scan`, one copy of its body a step."""
        body, loop = eqn.params["jaxpr"], scan_of(eqn, read)
        source = line_of(eqn)
        n_carry = loop.carry
        consts = read[: loop.constants]
        carry = read[loop.constants : loop.constants + n_carry]
        xs = read[loop.constants + n_carry :]
        order = range(eqn.params["length"])
        stacked: dict[int, list[Var]] = {}
        for i in reversed(order) if eqn.params["reverse"] else order:
            slices = [
                self.append("squeeze", lambda a, i=i: a[i], [x], source) for x in xs
            ]
            result = self.inline(body, [*consts, *carry, *slices])
            carry, stacked[i] = result[:n_carry], result[n_carry:]
        ys = zip(*(stacked[i] for i in order), strict=True)
        stack = lambda *parts: jnp.stack(parts)  # noqa: E731
        return [*carry, *(self.append("concatenate", stack, y, source) for y in ys)]


def _holding(fun: Callable, held: Sequence[int]) -> Callable:
    """`fun` with no tangent of some operands, which a derivative may insist on."""
    if not held:
        return fun

    def of_others(*operands: Any) -> Sequence[Any]:
        stopped = (
            lax.stop_gradient(x) if j in held else x for j, x in enumerate(operands)
        )
        return fun(*stopped)

    return of_others


def _var(aval: Any) -> Var:
    return Var(tuple(aval.shape), aval.dtype)
