"""One graph's step, for k steps of a batch at once.

Only what feeds the next state runs in a loop over time. Everything else (products of
the inputs before it, read-outs behind it) is done for all steps together, and what a
mixing operation gave is kept and never computed again.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._analysis.graph import Graph
from .._program.evaluate import Env, Value, depth_of, run
from .._program.ir import Var
from .._program.primitive import Kind
from .transposed import by_transposed_weights


class Rolled(eqx.Module):
    """k steps. Arrays are `[k, batch, ...]`; hidden leaves flat and real.

    - `hidden`, `other`: the state before each step.
    - `known`: what the mixing operations gave, see `Steps.mixing`.
    """

    hidden: list[Array]
    other: list[Array]
    known: list[Array]


@dataclasses.dataclass(frozen=True)
class Steps:
    """`k` steps of a batch.

    `multi` says which leaves of the inputs have a time axis.
    """

    graph: Graph
    multi: tuple[bool, ...]
    k: int
    batch: int

    # --------------------------------------------------------------------- running it

    def roll_out(
        self, params: PyTree, consts: PyTree, state: tuple, inputs: PyTree
    ) -> tuple[PyTree, Rolled, tuple]:
        """Runs the steps: (outputs, the steps, the state after the last)."""
        program, call = self.graph.program, self.graph.call
        before, inside, after = self._schedule
        env = self._bind(params, consts, inputs)
        run(program, env, before)
        moving = [v for v in self._read_inside if env[v].depth == 2]
        fixed = {v: x for v, x in env.items() if x.depth < 2}
        faster = by_transposed_weights(program, inside, env, self.k, self.batch)
        hidden, other = state
        split = self.graph.coordinates.split
        start = (split(jax.tree.leaves(hidden)), jax.tree.leaves(other))

        def step(state, slices):
            # `other` is carried along, never credited.
            hidden, carried = state[0], jax.tree.map(lax.stop_gradient, state[1])
            now = {v: Value(x, 1) for v, x in zip(moving, slices, strict=True)}
            now.update(self._as_state(hidden, carried, 1))
            now = run(program, {**fixed, **now}, inside, faster=faster)
            new = [now[v].spread(1, self.batch).array for v in self._new]
            new = (new[: len(hidden)], new[len(hidden) :])
            return new, (state, [now[v].array for v in self._known_inside])

        slices = [self._apart(env[v].array) for v in moving]
        # A loop of one step would be compiled as a loop.
        last, (states, known) = lax.scan(
            step, start, slices, length=self.k, unroll=self.k == 1
        )
        states = (states[0], jax.tree.map(lax.stop_gradient, states[1]))
        hidden, other = map(self._all_together, states)
        env.update(self._as_state(hidden, other, 2))
        kept = {
            v: Value(self._together(x), 2)
            for v, x in zip(self._known_inside, known, strict=True)
        }
        env.update(kept)
        run(program, env, [i for i in inside if not self._is_known(i, kept)])
        run(program, env, after)
        arrays = [(env[v].array, self.depth[v]) for v in self.mixing]
        rolled = Rolled(*states, [self._apart(x) if d == 2 else x for x, d in arrays])
        outputs, _ = self.given_out(self.read(env))
        hidden = self.graph.coordinates.join(last[0])
        last = (
            call.hidden.treedef.unflatten(hidden),
            call.carried.treedef.unflatten(last[1]),
        )
        return outputs, rolled, last

    def env(
        self, params: PyTree, consts: PyTree, inputs: PyTree, rolled: Rolled
    ) -> Env:
        """All values of the steps; no effect (a print) takes place a second time."""
        env = self._bind(params, consts, inputs)
        hidden, other = map(self._all_together, (rolled.hidden, rolled.other))
        env.update(self._as_state(hidden, other, 2))
        for v, x in zip(self.mixing, rolled.known, strict=True):
            depth = self.depth[v]
            env[v] = Value(self._together(x) if depth == 2 else x, depth)
        equations = range(len(self.graph.program.equations))
        left = [i for i in equations if not self._is_known(i, env)]
        return run(self.graph.program, env, left)

    def read(self, env: Env) -> list[Array]:
        """What the program puts out, [k * batch, ...]: the leaves of the outputs, and
        of the state after each step."""
        outputs = self.graph.program.outputs
        return [env[v].spread(self.k, self.batch).array for v in outputs]

    def given_out(self, read: list[Array]) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        """(outputs [k, batch, ...], (hidden, other) after the last step), from what is
        `read`."""
        call, leaves = self.graph.call, list(map(self._apart, read))
        cut = len(leaves) - len(call.carried.leaves)
        first = cut - len(self.graph.new)
        hidden = self.graph.coordinates.join(x[-1] for x in leaves[first:cut])
        other = [x[-1] for x in leaves[cut:]]
        return self.graph.outputs.treedef.unflatten(leaves[:first]), (
            call.hidden.treedef.unflatten(hidden),
            call.carried.treedef.unflatten(other),
        )

    def _bind(self, params: PyTree, consts: PyTree, inputs: PyTree) -> Env:
        arguments = self.graph.inputs
        env = self.graph.bind(params, consts)
        leaves = jax.tree.leaves(inputs)
        for v, x, m in zip(arguments["inputs"], leaves, self.multi, strict=True):
            env[v] = Value(self._together(x), 2) if m else Value(x, 1)
        return env

    def _as_state(self, hidden: list, other: list, depth: int) -> Env:
        leaves = zip(self._old, [*hidden, *other], strict=True)
        return {v: Value(x, depth) for v, x in leaves}

    def _together(self, x: Array) -> Array:
        return x.reshape(self.k * self.batch, *x.shape[2:])

    def _all_together(self, arrays: list[Array]) -> list[Array]:
        return list(map(self._together, arrays))

    def _apart(self, x: Array) -> Array:
        return x.reshape(self.k, self.batch, *x.shape[1:])

    # --------------------------------------------------------------- static structure

    @property
    def _old(self) -> tuple[Var, ...]:
        """The state before the step, hidden and other."""
        return (*self.graph.old, *self.graph.inputs["other"])

    @property
    def _new(self) -> tuple[Var, ...]:
        """The state after it."""
        program = self.graph.program
        n_carried = len(self.graph.call.carried.leaves)
        return (*self.graph.new, *program.outputs[len(program.outputs) - n_carried :])

    @functools.cached_property
    def depth(self) -> Mapping[Var, int]:
        """The depth of every value, as `run` finds it."""
        graph = self.graph
        depth = dict.fromkeys(graph.program.constants, 0)
        depth.update(dict.fromkeys(graph.inputs["params"] + graph.inputs["consts"], 0))
        depth.update(dict.fromkeys(self._old, 2))
        pairs = zip(graph.inputs["inputs"], self.multi, strict=True)
        depth.update({v: 2 if m else 1 for v, m in pairs})
        for i, e in enumerate(graph.program.equations):
            own = depth_of(graph.program, i, [depth[v] for v in e.inputs])
            depth.update(dict.fromkeys(e.outputs, own))
        return depth

    @functools.cached_property
    def mixing(self) -> tuple[Var, ...]:
        """What the mixing operations on data give: kept, not computed twice."""
        kinds = zip(self.graph.program.equations, self.graph.operations.kinds)
        return tuple(
            v
            for e, kind in kinds
            if kind is Kind.MIXING and e.outputs and self.depth[e.outputs[0]] > 0
            for v in e.outputs
        )

    @functools.cached_property
    def _known_inside(self) -> tuple[Var, ...]:
        equations = self.graph.program.equations
        inside = {v for i in self._schedule[1] for v in equations[i].outputs}
        return tuple(v for v in self.mixing if v in inside)

    def _is_known(self, i: int, known: Mapping[Var, Value]) -> bool:
        """Whether nothing is left to do for an equation."""
        outputs = self.graph.program.equations[i].outputs
        return not outputs or outputs[0] in known

    @functools.cached_property
    def _schedule(self) -> tuple[tuple[int, ...], ...]:
        """Equations before the loop over time, inside, and after it."""
        program = self.graph.program
        from_state = set(self._old)
        for e in program.equations:
            if any(v in from_state for v in e.inputs):
                from_state.update(e.outputs)
        needed = set(self._new)
        before, inside, after = [], [], []
        for i, e in reversed(list(enumerate(program.equations))):
            moves = any(v in from_state for v in e.outputs)
            if e.effect or (moves and any(v in needed for v in e.outputs)):
                needed.update(e.inputs)
                inside.append(i)
            elif moves:
                after.append(i)
            else:
                before.append(i)
        return tuple(tuple(reversed(part)) for part in (before, inside, after))

    @functools.cached_property
    def _read_inside(self) -> tuple[Var, ...]:
        """Values from before the loop that it reads."""
        equations = [self.graph.program.equations[i] for i in self._schedule[1]]
        made = {*self._old, *(v for e in equations for v in e.outputs)}
        read = [*(v for e in equations for v in e.inputs), *self._new]
        return tuple(dict.fromkeys(v for v in read if v not in made))


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jax.dtypes.result_type(x), jnp.inexact)


def inexact(tree: PyTree) -> list[Array]:
    """The leaves a gradient flows through (float0 cotangents are none)."""
    return [x for x in jax.tree.leaves(tree) if is_inexact(x)]
