"""One step of a marked model as matrices: every Jacobian a learning rule is made of.

Vectors: θ `[n]`, all parameters; h `[H]`, the state, group after group; u `[U]`, the
exits, those at marks in order of call, then those that are outputs; for every site its
weight w `[W]` and its output z `[Z]`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ._groups import Task, hidden_leaves, read_groups
from ._marks import Kind, Watch, watching
from ._vectors import from_vector, rows, to_vector


@dataclasses.dataclass(frozen=True)
class Places:
    """Where each element of a vector belongs: its group, and its position there."""

    groups: tuple[int, ...]
    positions: tuple[int, ...]

    def same(self, other: "Places") -> Bool[np.ndarray, "own others"]:
        """Whether an element and one of `other` belong to one position."""
        pairs = ((self.groups, other.groups), (self.positions, other.positions))
        groups, positions = (np.equal.outer(a, b) for a, b in pairs)
        return groups & positions


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the marks say, the same at every step.

    - `hidden`, `exits`: where the elements of h and u belong.
    - `at_mark`, `feeds`: whether an element of u enters a mixing operation, and the
        groups whose new state this one feeds.
    - `elementwise`: of every site.
    - `single`: whether each group has one number per neuron.
    """

    hidden: Places
    exits: Places
    at_mark: tuple[bool, ...]
    feeds: tuple[frozenset[int], ...]
    elementwise: tuple[bool, ...]
    single: bool


class Site(eqx.Module):
    """The derivatives at one operation z = op(w, x), all marks stopped.

    - `f_h`, `f_u`: dh/dz and du/dz.
    - `x`: dz/dw, at the operation itself.
    - `w`: dw/dθ, zero for parameters without a trace.
    """

    f_h: Float[Array, "... H Z"]
    f_u: Float[Array, "... U Z"]
    x: Float[Array, "... Z W"]
    w: Float[Array, "... W n"]


class Observation(eqx.Module):
    """What one step shows; with a leading axis of time, what a sequence does.

    - `value`, `now`: L and dL/dθ, the old state held.
    - `signal`, `at_outputs`: dL/du and dL/dy. An exit is shifted where the value goes
        on, so that the signal is spatial.
    - `d`, `i`, `e`, `j`: dh/dh_old (from a position to itself), dh/dθ, du/dh_old and
        du/dθ, all marks stopped; zero for parameters without a trace.
    - `through`: du/dh, of what reads the new state within the step.
    - `own_d`, `own_e`: as `d` and `e`, but in the columns of a group the marks that
        feed it are open. `own_e` is zero where the mark at u feeds the group of the
        column: what goes on from there has not left it.
    - `full`, `full_w`: dh/dh_old, and dh/dw of every site, nothing stopped.
    - `facts`: what the marks say.

    `own_*` and `full*` are None unless asked for.
    """

    value: Float[Array, "..."]
    now: Float[Array, "... n"]
    signal: Float[Array, "... U"]
    at_outputs: Float[Array, "... Y"]
    d: Float[Array, "... H H"]
    i: Float[Array, "... H n"]
    e: Float[Array, "... U H"]
    j: Float[Array, "... U n"]
    through: Float[Array, "... U H"]
    sites: tuple[Site, ...]
    own_d: Float[Array, "... H H"] | None
    own_e: Float[Array, "... U H"] | None
    full: Float[Array, "... H H"] | None
    full_w: tuple[Float[Array, "... H _"], ...] | None
    facts: Facts = eqx.field(static=True)


class _Moment:
    """The model at one step, as functions of vectors.

    - `theta`, `h`: where the step is taken.
    - `shapes`, `said`: what is seen at the marks, and what they say.
    """

    def __init__(self, problem: Task, state: PyTree, x: tuple) -> None:
        self.problem, self.state, self.x = problem, state, x
        self.theta = to_vector(problem.parameters)
        self.h = self._joined(state)
        watch = Watch()

        def look() -> dict:
            self.run(watch, self.theta, self.h)
            return watch.values

        self.shapes = jax.eval_shape(look)
        self.said = watch.facts

    def _joined(self, state: PyTree) -> Array:
        return jnp.concatenate(read_groups(state, self.problem.groups))

    def run(self, watch: Watch, theta: Array, h: Array) -> tuple[PyTree, Array, PyTree]:
        """(outputs, new h, new state) under a watch."""
        sizes = [v.size for v in read_groups(self.state, self.problem.groups)]
        vectors = tuple(jnp.split(h, np.cumsum(sizes)[:-1]))
        with watching(watch):
            outputs, new = self.problem.step(theta, vectors, self.state, self.x)
        return outputs, self._joined(new), new

    def zeros(self, kind: Kind) -> list[Array]:
        """Shifts that change nothing."""
        return [jnp.zeros(x.shape, x.dtype) for x in self.shapes.get(kind, [])]

    def facts(self) -> Facts:
        hidden = hidden_leaves(self.state)
        groups = [[hidden[k] for k in group.leaves] for group in self.problem.groups]
        old = [(g, rows(x), x[0].size) for g, x in enumerate(groups)]
        said = [*self.said.get("exit", []), *self.said.get("output", [])]
        shapes = [*self.shapes.get("exit", []), *self.shapes.get("output", [])]
        sizes = [x.size for x in shapes]
        marks = len(self.said.get("exit", []))
        new = [(of, 1, n) for (of, _), n in zip(said, sizes, strict=True)]
        return Facts(
            hidden=_places(old),
            exits=_places(new),
            at_mark=_repeated([k < marks for k in range(len(said))], sizes),
            feeds=_repeated([feeds for _, feeds in said], sizes),
            elementwise=tuple(self.said.get("site", [])),
            single=all(s == 1 for _, s, _ in old),
        )


def _places(parts: Sequence[tuple[int, int, int]]) -> Places:
    """Of (group, numbers per position, positions) for every part of a vector."""
    groups = _repeated([g for g, _, _ in parts], [s * p for _, s, p in parts])
    positions = [q for _, s, p in parts for q in (*range(p),) * s]
    return Places(groups, tuple(positions))


def _repeated(values: Sequence[Any], times: Sequence[int]) -> tuple[Any, ...]:
    pairs = zip(values, times, strict=True)
    return tuple(value for value, number in pairs for _ in range(number))


def _exits(watch: Watch) -> Array:
    values = [*watch.values.get("exit", []), *watch.values.get("output", [])]
    return jnp.concatenate(values) if values else jnp.zeros(0)


def _signals(
    moment: _Moment, target: PyTree, weight: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """L, and its derivatives by θ, u and y."""

    def loss(theta: Array, at_exits: tuple, at_outputs: list, y: Array) -> Array:
        watch = Watch(shifts={"exit": at_exits, "output": at_outputs})
        outputs, _, _ = moment.run(watch, theta, moment.h)
        moving, fixed = eqx.partition(outputs, eqx.is_inexact_array)
        moved = jax.tree.map(jnp.add, moving, from_vector(y, moving))
        value = moment.problem.loss_fn(eqx.combine(moved, fixed), target)
        return weight.astype(value.dtype) * value

    outputs, _, _ = moment.run(Watch(), moment.theta, moment.h)
    y = jnp.zeros_like(to_vector(eqx.filter(outputs, eqx.is_inexact_array)))
    shifts = tuple(moment.zeros("exit")), moment.zeros("output")
    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
    value, (now, *by_exits, by_y) = gradient(moment.theta, *shifts, y)
    signal = [x for part in by_exits for x in part]
    return value, (now, jnp.concatenate([*signal, jnp.zeros(0, now.dtype)]), by_y)


def _local(moment: _Moment) -> tuple[dict[str, Any], PyTree]:
    """What is seen with all marks stopped, and the new state."""

    def seen(theta: Array, h: Array, z: list, n: list) -> tuple[tuple, tuple]:
        watch = Watch(lambda feeds: True, {"site": z, "state": n})
        _, new, state = moment.run(watch, theta, h)
        weights, inputs = (watch.values.get(k, []) for k in ("weight", "input"))
        return (new, _exits(watch), weights), (state, inputs)

    shifts = moment.zeros("site"), moment.zeros("state")
    jacobian = jax.jacrev(seen, argnums=(0, 1, 2, 3), has_aux=True)
    derivatives, (state, inputs) = jacobian(moment.theta, moment.h, *shifts)
    (i, d, f_h, _), (j, e, f_u, by_new), weights = derivatives
    w = [by_theta for by_theta, *_ in weights]
    sizes = [z.size for z in shifts[0]]
    inputs = [x.reshape(size, -1) for x, size in zip(inputs, sizes, strict=True)]
    hidden, through = moment.facts().hidden, jnp.zeros_like(e)
    for group, columns in zip(moment.said.get("state", []), by_new, strict=True):
        mine = np.flatnonzero(np.array(hidden.groups) == group)
        through = through.at[:, mine].set(columns)
    sites = tuple(Site(*parts) for parts in zip(f_h, f_u, inputs, w, strict=True))
    d = jnp.where(hidden.same(hidden), d, 0)
    found = {"d": d, "i": i, "e": e, "j": j, "through": through, "sites": sites}
    return found, state


def _within(moment: _Moment) -> tuple[Array, Array]:
    """dh/dh_old and du/dh_old, in the columns of a group the marks that feed it open,
    up to where it is left."""
    facts, found = moment.facts(), []
    for g in range(len(moment.problem.groups)):

        def seen(h: Array, g: int = g) -> tuple[Array, Array]:
            watch = Watch(lambda feeds: g not in feeds)
            _, new, _ = moment.run(watch, moment.theta, h)
            return new, _exits(watch)

        d, e = jax.jacrev(seen)(moment.h)
        mine = np.array(facts.hidden.groups) == g
        leaving = np.array([g not in feeds for feeds in facts.feeds], bool)
        e = jnp.where(np.outer(leaving, mine), e, 0)
        found.append((jnp.where(mine[None], d, 0), e))
    d, e = zip(*found, strict=True)
    return functools.reduce(jnp.add, d), functools.reduce(jnp.add, e)


def _full(moment: _Moment) -> tuple[Array, tuple[Array, ...]]:
    """dh/dh_old, and dh/dw of every site, nothing stopped."""

    def seen(h: Array, w: list) -> Array:
        return moment.run(Watch(shifts={"weight": w}), moment.theta, h)[1]

    by_h, by_w = jax.jacrev(seen, argnums=(0, 1))(moment.h, moment.zeros("weight"))
    return by_h, tuple(by_w)


@eqx.filter_jit
def observe(
    problem: Task,
    state: PyTree,
    xs: tuple,
    targets: PyTree,
    weights: Array,
    traced: Array,
    needs: frozenset[str],
) -> tuple[Observation, PyTree, PyTree]:
    """What a sequence shows, the states before each of its steps, and the last one.

    `needs` names what is asked for besides: "within", "full".
    """
    moving, fixed = eqx.partition(state, eqx.is_array)

    def step(moving: PyTree, at_t: tuple) -> tuple[PyTree, tuple[Observation, PyTree]]:
        x, target, weight = at_t
        moment = _Moment(problem, eqx.combine(moving, fixed), x)
        value, (now, signal, at_outputs) = _signals(moment, target, weight)
        found, state = _local(moment)
        found["i"], found["j"] = found["i"] * traced[None], found["j"] * traced[None]
        found["sites"] = tuple(
            dataclasses.replace(s, w=s.w * traced[None]) for s in found["sites"]
        )
        own_d, own_e = _within(moment) if "within" in needs else (None, None)
        full, full_w = _full(moment) if "full" in needs else (None, None)
        observation = Observation(
            value,
            now,
            signal,
            at_outputs,
            **found,
            own_d=own_d,
            own_e=own_e,
            full=full,
            full_w=full_w,
            facts=moment.facts(),
        )
        return eqx.filter(state, eqx.is_array), (observation, moving)

    last, (observation, before) = jax.lax.scan(step, moving, (xs, targets, weights))
    return observation, before, eqx.combine(last, fixed)
