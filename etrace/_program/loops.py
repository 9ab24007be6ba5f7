"""Loops within a step, such as the substeps of a solver.

    def substep(h, x):                              s, z = sigmoid(tau), xs @ W.T
        h = h + sigmoid(tau) * (W @ x - h)    ->    def substep(h, z):
        return h, None                                  return h + s * (z - h), None

What is the same in every round is computed once, before the loop; so is, for all
rounds at once, what a weight makes of the data of each. A weight has one place then
where it meets data, as it would without a loop. What is left acts position by position
in most models, and can stay a loop, however many rounds it has.
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax import lax

from .ir import Loop
from .jaxprs import callable_of, entry_of, inner_jaxpr, is_call, scan_of
from .primitive import Kind
from .primitives import draws
from .source import is_of_jax

# By variable; and by variable and shape, where a number is spread over that shape.
Env = dict[Any, Any]


def taken_apart(eqn, read: Sequence[Any], weights: Collection[int]):
    """A `scan` as a jaxpr of what precedes it and of a smaller one.

    `weights` are the operands that depend on parameters. None if nothing precedes it.
    """
    parts = _Parts.of(eqn, scan_of(eqn, read), weights)
    if not (parts.before or parts.each or parts.wide):
        return None
    like = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in read]
    return jax.make_jaxpr(parts.run)(*like)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The equations of a loop's body.

    - `before`: those that read what is the same in every round.
    - `each`: those that lead from the data of a round to products with weights.
    - `inside`: the others.
    - `wide`: weights of one number, and the shapes that these spread them over.
    """

    loop: Loop
    options: dict[str, Any]
    body: Any
    before: list[Any]
    each: list[Any]
    inside: list[Any]
    wide: set[tuple[Any, tuple[int, ...]]]

    @staticmethod
    def of(eqn, loop: Loop, weights: Collection[int]) -> "_Parts":
        body = _flat(eqn.params["jaxpr"])
        inputs = body.jaxpr.invars
        same = {*body.jaxpr.constvars, *inputs[: loop.constants]}
        heavy = {v for j, v in enumerate(inputs[: loop.constants]) if j in weights}
        rounds = {*same, *inputs[loop.constants + loop.carry :]}
        before, each = [], []
        for e in body.jaxpr.eqns:
            reads = _variables(e.invars)
            if e.effects:
                continue
            if reads <= same:
                before.append(e)
                for kind in (same, rounds, *([heavy] if heavy & reads else [])):
                    kind.update(e.outvars)
            elif reads <= rounds and not draws(e.primitive.name):
                each.append(e)
                rounds.update(e.outvars)
        heavy = {v for v in heavy if jnp.issubdtype(v.aval.dtype, jnp.inexact)}
        each = _leading_to([e for e in each if heavy & _variables(e.invars)], each)
        apart = {id(e) for e in (*before, *each)}
        inside = [e for e in body.jaxpr.eqns if id(e) not in apart]
        wide = {
            (v, shape)
            for e in inside
            if (shape := _spread_over(e))
            for v in heavy & _variables(e.invars)
            if not v.aval.shape
        }
        options = {n: eqn.params[n] for n in ("length", "reverse", "unroll")}
        return _Parts(loop, options, body, before, each, inside, wide)

    def run(self, *operands: Any) -> list[Any]:
        """What the loop computes."""
        inputs, outputs = self.body.jaxpr.invars, self.body.jaxpr.outvars
        same, first = self.loop.constants, self.loop.constants + self.loop.carry
        env: Env = dict(zip(self.body.jaxpr.constvars, self.body.consts, strict=True))
        env.update(zip(inputs, operands[:same]))
        _evaluate(self.body.jaxpr, self.before, env)
        env.update(((v, to), jnp.broadcast_to(env[v], to)) for v, to in self.wide)
        rounds = dict(zip(inputs[first:], operands[first:], strict=True))
        rounds.update(self._of_rounds(env, rounds))
        read = _variables([*(v for e in self.inside for v in e.invars), *outputs])
        moving = [v for v in rounds if v in read]
        ys = [v for v in outputs[self.loop.carry :] if v not in rounds]

        def step(carry: Sequence[Any], now: Sequence[Any]):
            inner = {**env, **dict(zip(inputs[same:first], carry))}
            inner.update(zip(moving, now, strict=True))
            _evaluate(self.body.jaxpr, self.inside, inner)
            new = [_value(inner, v) for v in outputs[: self.loop.carry]]
            return new, [_value(inner, v) for v in ys]

        xs = [rounds[v] for v in moving]
        carry, stacked = lax.scan(step, list(operands[same:first]), xs, **self.options)
        made = iter(stacked)
        rest = outputs[self.loop.carry :]
        return [*carry, *(rounds[v] if v in rounds else next(made) for v in rest)]

    def _of_rounds(self, env: Env, rounds: Env) -> Env:
        """What precedes the loop, for all rounds at once."""
        if not self.each:
            return {}
        made = [v for e in self.each for v in e.outvars]

        def of_round(*now: Any) -> list[Any]:
            inner = {**env, **dict(zip(rounds, now, strict=True))}
            _evaluate(self.body.jaxpr, self.each, inner)
            return [inner[v] for v in made]

        return dict(zip(made, jax.vmap(of_round)(*rounds.values()), strict=True))


def _flat(closed):
    """A jaxpr with the functions that the user's code calls in their place."""
    if not any(map(_is_call, closed.jaxpr.eqns)):
        return closed
    return jax.make_jaxpr(lambda *operands: _applied(closed, operands))(
        *closed.in_avals
    )


def _applied(closed, operands: Sequence[Any]) -> list[Any]:
    env: Env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, operands, strict=True))
    _evaluate(closed.jaxpr, closed.jaxpr.eqns, env)
    return [_value(env, v) for v in closed.jaxpr.outvars]


def _evaluate(jaxpr, equations: Iterable[Any], env: Env) -> None:
    """Extends `env`, the bodies of functions that the user's code calls looked into."""
    for e in equations:
        operands = [_value(env, v, _spread_over(e)) for v in e.invars]
        if _is_call(e):
            results = _applied(inner_jaxpr(e), operands)
        else:
            results = callable_of(jaxpr, e)(*operands)
        env.update(zip(e.outvars, results))


def _is_call(eqn) -> bool:
    return is_call(eqn) and not is_of_jax(inner_jaxpr(eqn))


def _value(env: Env, atom: Any, spread: tuple[int, ...] = ()) -> Any:
    if isinstance(atom, jex.core.Literal):
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)
    return env[atom, spread] if (atom, spread) in env else env[atom]


def _spread_over(eqn) -> tuple[int, ...]:
    """The shape that an elementwise equation spreads a single number over."""
    each = entry_of(eqn).kind is Kind.ELEMENTWISE
    return eqn.outvars[0].aval.shape if each else ()


def _variables(atoms: Iterable[Any]) -> set[Any]:
    return {v for v in atoms if not isinstance(v, jex.core.Literal)}


def _leading_to(ends: Sequence[Any], equations: Sequence[Any]) -> list[Any]:
    """Some equations, and those whose results they read."""
    needed, found = {v for e in ends for v in e.outvars}, []
    for e in reversed(equations):
        if not needed.isdisjoint(e.outvars):
            needed.update(_variables(e.invars))
            found.append(e)
    return found[::-1]
