"""What each step tells a learning rule.

The *local region* is the part of the step between the mixing operations: there every
derivative is position by position, so that a Jacobian is one vector-Jacobian product
with ones per component of the state.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._batched import Env, Value, aligned, mapped, run, take
from ._graph import Graph
from ._positions import UNSET
from ._primitives import Kind
from ._program import Edge, Var


@dataclasses.dataclass(frozen=True, eq=False)
class LocalRegion:
    """The local region of `k` steps of a batch, all mixing operations held fixed.

    `env` holds the values of the steps.
    """

    graph: Graph
    env: Env
    k: int
    batch: int

    def jacobian(self) -> tuple[Array, ...]:
        """D = ∂h_t/∂h_{t-1} along position-local paths.

        Per group, [k, batch, S (new), S (old), P].
        """
        graph = self.graph
        if isinstance(graph.options.recurrence, float):
            return self._constant_jacobian(graph.options.recurrence)
        hidden = [self.env[v].array for v in graph.old]
        rows: dict[int, Array] = {}  # by new leaf, [k, batch, S (old), P]
        for s in range(max([g.components for g in graph.positions.groups], default=0)):
            groups = [g for g in graph.positions.groups if s < g.components]
            leaves = [g.leaves[s] for g in groups]

            def of_hidden(hidden, leaves=leaves):
                return self._new(leaves, self._from_hidden(hidden))

            values, pull = jax.vjp(of_hidden, hidden)
            own = [
                jnp.broadcast_to(jnp.asarray(_own(graph)[i], v.dtype), v.shape)
                for i, v in zip(leaves, values)
            ]
            per_group = self.to_groups(pull(own)[0])
            for g, columns in zip(graph.positions.groups, per_group):
                if g in groups:
                    rows[g.leaves[s]] = columns
        return tuple(
            jnp.stack([rows[leaf] for leaf in g.leaves], axis=2)
            for g in graph.positions.groups
        )

    def _constant_jacobian(self, leak: float) -> tuple[Array, ...]:
        result = []
        for g in self.graph.positions.groups:
            dtype = self.graph.new[g.leaves[0]].dtype
            result.append(jnp.full((self.k, self.batch, 1, 1, g.size), leak, dtype))
        return tuple(result)

    def at_sites(self, signals: Sequence[Array | None]) -> list[Any]:
        """Pulls signals at the new states back to the sites along local paths.

        `signals` are [k, batch, S, P] per group, None for a group of no interest.
        Returns the signals at z per trace, [k, batch, b, p, o] or None. With ones for a
        component and zeros elsewhere, this is f = ∂h_t/∂z of that component.
        """
        return self._per_trace(
            [
                None if x is None else self._linear[g][1](self.to_new(g, x))[0]
                for g, x in enumerate(signals)
            ]
        )

    def exits_at_sites(
        self, signals: Sequence[Array], *, outputs: bool = False
    ) -> list[Any]:
        """Pulls signals at the exits back to the sites, per trace.

        `outputs`: to where the operations of the sites give their result. It makes a
        difference to those that are traced where the weight is read.
        """
        result = []
        for g in range(len(self.graph.positions.groups)):
            own = self._exits_of(g)
            if any(mask.any() for mask in own):
                _, pull = self._exits_of_sites[outputs]
                (at_sites,) = pull([jnp.where(m, s, 0) for m, s in zip(own, signals)])
                result.append(at_sites)
            else:
                result.append(None)
        return self._per_trace(result)

    def _per_trace(self, found: Sequence[Sequence[Array] | None]) -> list[Any]:
        """Signals per group and site, [time * batch, *site], as those per trace."""
        graph = self.graph
        result = []
        for spec in graph.traces:
            at_group = found[spec.group]
            if at_group is None:
                result.append(None)
                continue
            canonical = graph.sites[spec.site].form.canonical
            x = self._apart(jax.vmap(canonical)(at_group[spec.site]))
            traced = spec.positions != UNSET
            result.append(x if traced.all() else jnp.where(traced, x, 0))
        return result

    def _exits_of(self, group: int) -> list[np.ndarray]:
        """Which elements leave from a group, per exit.

        Not those that were cut: what enters by a site is not stopped there.
        """
        g, cuts = self.graph.positions.groups[group], self.graph.positions.cuts
        return [
            (label >= g.offset) & (label < g.offset + g.size) & (edge not in cuts)
            for edge, label in self.graph.exits.open.items()
        ]

    @functools.cached_property
    def _exits_of_sites(self) -> tuple[tuple[list[Array], Callable], ...]:
        """The exits as functions of the sites, where a weight is read (False) and at
        the operation's output (True)."""

        def leaving(values, outputs):
            env = self._from_sites(values, outputs)
            return [self.exit_value(edge, env) for edge in self.graph.exits.open]

        return tuple(
            jax.vjp(functools.partial(leaving, outputs=outputs), self._sites(outputs))
            for outputs in (False, True)
        )

    def to_new(self, group: int, signal: Array) -> list[Array]:
        """Arranges a signal [k, batch, S, P] like `new_state` of the group."""
        g, rows = self.graph.positions.groups[group], self.k * self.batch
        signal = signal.reshape(rows, *signal.shape[2:])
        result = []
        for s in self.graph.remembered(group):
            new = self.graph.new[g.leaves[s]]
            leaf = take(signal[:, s], g.positions[s]).reshape(rows, *new.shape)
            result.append(leaf.astype(new.dtype))
        return result

    def new_state(self, group: int) -> list[Array]:
        """The new state of a group, of the components that traces hold."""
        leaves = self.graph.positions.groups[group].leaves
        return self._new([leaves[s] for s in self.graph.remembered(group)], self.env)

    @functools.cached_property
    def _linear(self) -> list[tuple[list[Array], Callable]]:
        """Per group, its new state and the linear way from there to the sites."""
        at_sites = self._sites(False)
        result = []
        for g in range(len(self.graph.positions.groups)):

            def of_sites(values, g=g):
                env = self._from_sites(values, False)
                return dataclasses.replace(self, env=env).new_state(g)

            result.append(jax.vjp(of_sites, at_sites))
        return result

    def boundary(self, spatial: Sequence[Array]) -> tuple[Array, ...]:
        """Pulls cotangents at the exits back to the old state.

        Per group, [k, batch, S, P]. With gradients stopped in a group's own recurrence
        and open everywhere else, all that leaves the group leaves it through its exits,
        and gets there by position-local paths.
        """
        labels = self.graph.exits.open.values()
        _, pull = self._exits_of_hidden
        masked = [jnp.where(x >= 0, s, 0) for s, x in zip(spatial, labels)]
        return self.to_groups(pull(masked)[0])

    @functools.cached_property
    def _exits_of_hidden(self) -> tuple[list[Array], Callable]:
        """The exits as functions of the old state."""

        def leaving(hidden):
            env = self._from_hidden(hidden)
            return [self.exit_value(edge, env) for edge in self.graph.exits.open]

        return jax.vjp(leaving, [self.env[v].array for v in self.graph.old])

    def exit_value(self, edge: Edge, env: Env | None = None) -> Array:
        """The value that leaves through an exit, in the shape it is read in."""
        shape = self.graph.exits.open[edge].shape
        value = (env or self.env)[self.graph.program.operand(edge)]
        return value.widen(shape).spread(self.k, self.batch).array

    def local_input(self, s: int) -> Array:
        """x of site s, [k, batch, b, p, c]."""
        site = self.graph.sites[s]
        operands = [self.env[v] for v in site.equation.inputs]
        if site.direct:
            value = Value(site.form.local_input(), 0)
        else:
            operands = aligned(operands)
            x = mapped(site.form.local_input, operands)(*(o.array for o in operands))
            value = Value(x, max(o.depth for o in operands))
        return self._apart(value.spread(self.k, self.batch).array)

    def input_of_result(self, s: int) -> Array:
        """x of site s where z is the operation's result, [k, batch, b, p, c]."""
        site = self.graph.sites[s]
        if not site.elementwise:
            return self.local_input(s)
        _, j = site.edge

        def derivative(*operands):
            def of_weight(w):
                return site.equation.fun(*operands[:j], w, *operands[j + 1 :])[0]

            tangent = jnp.ones_like(operands[j])
            return site.form.canonical(
                jax.jvp(of_weight, (operands[j],), (tangent,))[1]
            )

        operands = aligned([self.env[v] for v in site.equation.inputs])
        x = mapped(derivative, operands)(*(o.array for o in operands))
        value = Value(x, max(o.depth for o in operands))
        return self._apart(value.spread(self.k, self.batch).array)

    def to_groups(self, leaves: Sequence[Array]) -> tuple[Array, ...]:
        """Arranges arrays like the hidden leaves as [k, batch, S, P], per group."""
        shapes = [v.shape for v in self.graph.old]
        return tuple(
            jnp.stack(
                [
                    place(self._apart(leaves[i]), shapes[i], p, g.size)
                    for i, p in zip(g.leaves, g.positions)
                ],
                axis=2,
            )
            for g in self.graph.positions.groups
        )

    def _sites(self, outputs: bool) -> list[Array]:
        """The values that are perturbed at the sites."""
        result = []
        for site in self.graph.sites:
            direct = site.direct and not (outputs and site.elementwise)
            var = site.weight if direct else site.equation.outputs[0]
            value = self.env[var].widen(site.shape).spread(self.k, self.batch)
            result.append(value.array)
        return result

    def _new(self, leaves: Sequence[int], env: Env) -> list[Array]:
        new = [env[self.graph.new[i]] for i in leaves]
        return [v.spread(self.k, self.batch).array for v in new]

    def _from_hidden(self, hidden: Sequence[Array]) -> Env:
        """The values of the region, as functions of the old state."""
        graph, values = self.graph, dict(self.env)
        values.update((v, Value(x, 2)) for v, x in zip(graph.old, hidden))
        if isinstance(graph.options.recurrence, float):
            for v, x in zip(new_values(graph), hidden):
                moving = graph.options.recurrence * (x - lax.stop_gradient(x))
                value = self.env[v].spread(self.k, self.batch).array
                values[v] = Value(lax.stop_gradient(value) + moving, 2)
        cuts = graph.positions.cuts

        def read(edge: Edge, value: Value) -> Value:
            if edge in cuts:
                value = value.widen(cuts[edge].shape)
                stopped = lax.stop_gradient(value.array)
                kept = jnp.where(cuts[edge], stopped, value.array)
                value = Value(kept, value.depth)
            return value

        def result(i: int, operands: list[Value], value: Value) -> Value:
            if i not in graph.diagonals:
                return value
            (output,) = graph.program.equations[i].outputs
            return graph.diagonals[i].apply(self.env[output], operands)

        equations = _equations(graph, recurrent=True)
        return run(graph.program, values, equations, edge=read, result=result)

    def _from_sites(self, at_sites: Sequence[Array], outputs: bool) -> Env:
        """The values of the region, as functions of those at the sites.

        Cuts stop credit on its way from the old state, not from a weight.
        """
        graph, values = self.graph, dict(self.env)
        direct: dict[Edge, Value] = {}
        shifts: dict[int, Array] = {}
        for site, value in zip(graph.sites, at_sites, strict=True):
            if not site.direct:
                values[site.equation.outputs[0]] = Value(value, 2)
            elif outputs and site.elementwise:
                # Several weights may meet in one operation.
                old = shifts.get(site.edge[0], 0)
                shifts[site.edge[0]] = old + value - lax.stop_gradient(value)
            else:
                direct[site.edge] = Value(value, 2)

        def result(i: int, operands: list[Value], value: Value) -> Value:
            if i not in shifts:
                return value
            return Value(value.spread(self.k, self.batch).array + shifts[i], 2)

        def read(edge: Edge, value: Value) -> Value:
            return direct.get(edge, value)

        return run(graph.program, values, _equations(graph), edge=read, result=result)

    def _apart(self, x: Array) -> Array:
        return x.reshape(self.k, self.batch, *x.shape[1:])


# What follows depends on the graph alone.


@functools.lru_cache(maxsize=256)
def _equations(graph: Graph, recurrent: bool = False) -> tuple[int, ...]:
    """The equations of the local region, in order.

    `recurrent`: with what of the recurrence the graph includes.
    """
    equations = graph.program.equations
    active, made = {*graph.old}, set()
    if recurrent and isinstance(graph.options.recurrence, float):
        made.update(new_values(graph))
        active |= made
    active.update(s.equation.outputs[0] for s in graph.sites if not s.direct)
    direct = {s.edge for s in graph.sites if s.direct}
    region = []
    for i, e in enumerate(equations):
        local = graph.primitives.kinds[i] in (Kind.ELEMENTWISE, Kind.MOVEMENT)
        local |= recurrent and i in graph.diagonals
        local &= not any(v in made for v in e.outputs)
        enters = any(v in active or (i, j) in direct for j, v in enumerate(e.inputs))
        if local and enters:
            region.append(i)
            active.update(e.outputs)
    needed = {*graph.new, *map(graph.program.operand, graph.exits.open)}
    kept = []
    for i in reversed(region):
        if any(v in needed for v in equations[i].outputs):
            needed.update(equations[i].inputs)
            kept.append(i)
    return tuple(reversed(kept))


@functools.lru_cache(maxsize=256)
def _own(graph: Graph) -> Mapping[int, np.ndarray]:
    """Elements of each new state leaf that are local to their own position."""
    result = {}
    for g in graph.positions.groups:
        for leaf, (var, own) in zip(g.leaves, g.labels(graph.new).items()):
            label = graph.positions.forward.get(var, np.full(var.shape, UNSET))
            # What comes through the recurrence has no label.
            by_recurrence = (label == UNSET) & (graph.options.recurrence == "diagonal")
            result[leaf] = np.asarray((label == own) | by_recurrence)
    return result


def new_values(graph: Graph) -> list[Var]:
    """The new state where it is computed: exits read it there."""
    copies = {e.outputs[0]: e.inputs[0] for e in graph.program.equations if e.outputs}
    return [copies[v] for v in graph.new]


@functools.lru_cache(maxsize=256)
def complete_groups(graph: Graph) -> frozenset[int]:
    """Groups whose remembered state parameters enter only by sites traced in full.

    There the gradient of the new state, the old one held, is the immediate part of the
    traces: no other path leads from a parameter to the state within a step.
    """
    program, kinds = graph.program, graph.primitives.kinds
    moving = set(graph.inputs["params"])
    made_by = {}
    for i, e in enumerate(program.equations):
        made_by.update(dict.fromkeys(e.outputs, i))
        if kinds[i] is not Kind.STOP and any(v in moving for v in e.inputs):
            moving.update(v for v in e.outputs if v.inexact)

    def complete(group: int) -> bool:
        own = [t for t in graph.traces if t.group == group]
        traced = {graph.sites[t.site].edge for t in own if (t.positions != UNSET).all()}
        leaves = graph.positions.groups[group].leaves
        pending = [graph.new[leaves[s]] for s in graph.remembered(group)]
        seen = set(pending)
        while pending:
            i = made_by.get(pending.pop())
            if i is None:
                return False  # a parameter itself
            for j, v in enumerate(program.equations[i].inputs):
                if v in moving and (i, j) not in traced:
                    if kinds[i] is Kind.MIXING:
                        return False
                    if v not in seen:
                        seen.add(v)
                        pending.append(v)
        return True

    return frozenset(filter(complete, range(len(graph.positions.groups))))


def place(
    values: Array, shape: tuple[int, ...], positions: np.ndarray, size: int
) -> Array:
    """Puts the elements of leaves [..., *shape] at their positions, else zero."""
    lead = values.shape[: values.ndim - len(shape)]
    flat = values.reshape(*lead, positions.size)
    if np.array_equal(positions, np.arange(size)):
        return flat
    return jnp.zeros((*lead, size), flat.dtype).at[..., positions].set(flat)


def added(
    a: Sequence[Array | None], b: Sequence[Array | None]
) -> Sequence[Array | None]:
    """The sum of signals, None standing for zero; either may be empty."""
    if not (a and b):
        return a or b
    pairs = zip(a, b, strict=True)
    return [x if y is None else y if x is None else x + y for x, y in pairs]
