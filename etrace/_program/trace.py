"""The step function as a flat list of equations.

This file and `jaxprs` are the library's only contact with jaxprs. `trace_program`
traces a function, inlines call operations, turns `cond` into a select over its branches
and unrolls short `scan`s; what is left are equations of single primitives, each with a
callable of its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from .ir import Equation, Program, Var
from .jaxprs import (
    acts,
    body_of,
    callable_of,
    entry_of,
    inner_jaxpr,
    is_call,
    is_effect,
    is_opaque,
    named_axes,
    scan_of,
)
from .loops import taken_apart
from .primitive import Kind, Primitive, Singular
from .primitives import (
    AND,
    BARRIER,
    CLAMP,
    CONCATENATE,
    COND,
    COPY,
    SCAN,
    SELECT,
    SQUEEZE,
    STOP,
)
from .singular import where_taken, with_finite_slopes
from .source import is_of_jax, is_of_library, line_of
from .sparse import is_sparse_product, sparse_product

MAX_UNROLLED_SCAN = 32


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
        outputs[j] = builder.append(COPY, lambda x: x, [outputs[j]], "the new state")
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
        primitive = entry_of(eqn)
        if primitive is BARRIER:
            return read
        if is_sparse_product(eqn):
            return self._inline_at(line_of(eqn), sparse_product(eqn), read)
        if is_call(eqn):
            inner = inner_jaxpr(eqn)
            if is_of_jax(inner):
                return self._inline_at(line_of(eqn), inner, read)
            return self.inline(inner, read)
        if primitive is COND and not is_opaque(eqn):
            return self._select(eqn, read)
        equation = None
        if primitive is SCAN and eqn.params["length"]:
            apart = taken_apart(eqn, read, self._weights(read))
            if apart is not None:
                return self._inline_at(line_of(eqn), apart, read, only=is_of_library)
            if eqn.params["length"] <= MAX_UNROLLED_SCAN:
                equation = self._staying(jaxpr, eqn, read)
                if equation is None:
                    return self._unroll(eqn, read)
        if primitive.has_own_derivative:
            self._as_arrays(read)
        source, guarded = line_of(eqn), self._meets(read)
        changed = None
        if guarded:
            fill = float(not primitive.linear_in_data)
            read = [self._safe(v, self.taken, fill, source) for v in read]
            infinite = primitive.singular is Singular.WITH_DATA
            if infinite and self.taken is not None:
                changed, read = where_taken, [*read, self.taken]
        elif primitive.singular and self._is_expression(read):
            changed = with_finite_slopes
        equation = equation or self._primitive(jaxpr, eqn, read)
        if changed is not None:
            fun = changed(equation.fun)
            equation = dataclasses.replace(equation, fun=fun, plain=False)
        self._add(equation)
        if not guarded:
            return equation.outputs
        return [self._guarded(v, self.taken, source) for v in equation.outputs]

    def _primitive(self, jaxpr, eqn, read: list[Var]) -> Equation:
        """One primitive, applied to `read`."""
        primitive, fun = entry_of(eqn), callable_of(jaxpr, eqn)
        inner, loop = body_of(eqn, read)
        axes = named_axes(eqn.params)
        of_jax = loop is not None or primitive.has_own_derivative
        computes = inner is not None and not axes and not (of_jax and acts(inner))
        body = _Builder(self.stays).program(inner) if computes else None
        if body is not None and loop is None:
            fun = _holding(fun, [j for j, v in enumerate(read) if v in self.held])
        return Equation(
            primitive,
            fun,
            tuple(read),
            tuple(_var(v.aval) for v in eqn.outvars),
            eqn.params,
            line_of(eqn),
            body,
            loop,
            any(map(is_effect, eqn.effects)),
            axes,
            primitive.kind is Kind.ELEMENTWISE,
        )

    def _staying(self, jaxpr, eqn, read: list[Var]) -> Equation | None:
        """A short loop, if it stays one. It does not where positions meet in it, or
        where a branch that may not be taken guards each of its equations."""
        if eqn.params["length"] == 1 or self.taken is not None:
            return None
        loop = self._primitive(jaxpr, eqn, read)
        stays = loop.body is not None and self.stays(loop, self._weights(read))
        return loop if stays else None

    def _weights(self, read: Sequence[Var]) -> list[int]:
        """The operands that depend on parameters."""
        return [j for j, v in enumerate(read) if v.inexact and v in self.weights]

    def _add(self, equation: Equation) -> None:
        self.equations.append(equation)
        if equation.primitive is STOP:
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

    def append(
        self, primitive: Primitive, fun: Callable, inputs: Sequence[Var], source: str
    ) -> Var:
        """Appends an equation that no primitive of the user's function stands for."""
        out = jax.eval_shape(
            fun, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs)
        )
        output = Var(out.shape, out.dtype)
        equation = Equation(
            primitive, lambda *args: [fun(*args)], tuple(inputs), (output,), {}, source
        )
        self._add(equation)
        return output

    def _select(self, eqn, read: list[Var]) -> list[Var]:
        """`cond` as a select: every branch is evaluated.

        A derivative that does not exist in a branch that is not taken (of a root of a
        negative number) must not count. JAX, which does the same with a batch, stops
        gradients where operands enter such a branch. So do we for data, and for weights
        where they meet data: a weight has its traces there, and no gate before it. (Nor
        is its derivative infinite before, see `singular`.)
        """
        source, outer = line_of(eqn), self.taken
        branches, last = [], len(eqn.params["branches"]) - 1
        in_range = lambda i: jnp.clip(jnp.asarray(i, jnp.int32), 0, last)  # noqa: E731
        index = self.append(CLAMP, in_range, read[:1], source)
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
            self.append(SELECT, select, [index, *cases], source)
            for cases in zip(*branches, strict=True)
        ]

    def _is_taken(self, index: Var, branch: int, source: str) -> Var:
        """Whether a branch is taken, and those that it lies in."""

        def is_taken(which, *outer):
            return jnp.all(jnp.stack([which == branch, *outer]))

        outer = [] if self.taken is None else [self.taken]
        return self.append(AND, is_taken, [index, *outer], source)

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
        return self.append(SELECT, guard, [taken, v], source)

    def _safe(self, v: Var, taken: Var | None, fill: float, source: str) -> Var:
        """Data that a weight meets, finite where the branch is not taken."""
        if not v.inexact or v not in self.data or taken is None:
            return v
        safe = lambda t, x: jnp.where(t, x, jnp.full_like(x, fill))  # noqa: E731
        return self.append(SELECT, safe, [taken, v], source)

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
                self.append(SQUEEZE, lambda a, i=i: a[i], [x], source) for x in xs
            ]
            result = self.inline(body, [*consts, *carry, *slices])
            carry, stacked[i] = result[:n_carry], result[n_carry:]
        ys = zip(*(stacked[i] for i in order), strict=True)
        stack = lambda *parts: jnp.stack(parts)  # noqa: E731
        return [*carry, *(self.append(CONCATENATE, stack, y, source) for y in ys)]


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
