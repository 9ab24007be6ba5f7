"""From the state before a step to the state after it, and to the exits."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._batched import Env, Value, run, stopped, take
from ._graph import Graph
from ._kinds import Kind
from ._partition import UNSET
from ._program import Edge
from ._values import StepValues
from ._ways import local_equations, new_values


@dataclasses.dataclass(frozen=True, eq=False)
class Propagation(abc.ABC):
    """The way from the old state of each position to its own new state and exits."""

    values: StepValues

    @property
    def graph(self) -> Graph:
        return self.values.graph

    @abc.abstractmethod
    def jacobian(self) -> tuple[Array, ...]:
        """D = ∂h_t/∂h_{t-1}, per group [k, batch, S (new), S (old), P]."""

    @abc.abstractmethod
    def boundary(self, spatial: Sequence[Array]) -> tuple[Array, ...]:
        """Pulls cotangents at the exits back to the old state, per group
        [k, batch, S, P]."""


@dataclasses.dataclass(frozen=True, eq=False)
class LocalPropagation(Propagation):
    """Along position-local paths, and what of the recurrence the graph includes."""

    def jacobian(self) -> tuple[Array, ...]:
        graph = self.graph
        if isinstance(graph.options.recurrence, float):
            return self._constant_jacobian(graph.options.recurrence)
        hidden = [self.values.env[v].array for v in graph.old]
        rows: dict[int, Array] = {}  # by new leaf, [k, batch, S (old), P]
        for s in range(max([g.components for g in graph.positions.groups], default=0)):
            groups = [g for g in graph.positions.groups if s < g.components]
            leaves = [g.leaves[s] for g in groups]

            def of_hidden(hidden, leaves=leaves):
                return self.values.new(leaves, self._from_hidden(hidden))

            values, pull = jax.vjp(of_hidden, hidden)
            own = [
                jnp.broadcast_to(jnp.asarray(_own(graph)[i], v.dtype), v.shape)
                for i, v in zip(leaves, values)
            ]
            per_group = self.values.to_groups(pull(own)[0])
            for g, columns in zip(graph.positions.groups, per_group):
                if g in groups:
                    rows[g.leaves[s]] = columns
        return tuple(
            jnp.stack([rows[leaf] for leaf in g.leaves], axis=2)
            for g in graph.positions.groups
        )

    def at_old(self, signals: Sequence[Array]) -> tuple[Array, ...]:
        """Pulls signals at the new states back to the old ones, per group
        [k, batch, S, P], all at once."""
        graph = self.graph
        hidden = [self.values.env[v].array for v in graph.old]
        leaves = range(len(graph.new))
        values, pull = jax.vjp(
            lambda hidden: self.values.new(leaves, self._from_hidden(hidden)), hidden
        )
        cotangents = list(map(jnp.zeros_like, values))
        for g, signal in zip(graph.positions.groups, signals, strict=True):
            rows = signal.reshape(-1, *signal.shape[2:])
            for s, i in enumerate(g.leaves):
                own = take(rows[:, s], g.positions[s]).reshape(values[i].shape)
                own = jnp.where(_own(graph)[i], own, 0)
                cotangents[i] = own.astype(values[i].dtype)
        return self.values.to_groups(pull(cotangents)[0])

    def _constant_jacobian(self, leak: float) -> tuple[Array, ...]:
        result = []
        for g in self.graph.positions.groups:
            dtype = self.graph.new[g.leaves[0]].dtype
            result.append(jnp.full((*self.values.size, 1, 1, g.size), leak, dtype))
        return tuple(result)

    def boundary(self, spatial: Sequence[Array]) -> tuple[Array, ...]:
        # With gradients stopped in a group's own recurrence and open everywhere else,
        # all that leaves the group leaves it through its exits, and gets there by
        # position-local paths.
        labels = self.graph.exits.open.values()
        _, pull = self._exits_of_hidden
        masked = [jnp.where(x >= 0, s, 0) for s, x in zip(spatial, labels)]
        return self.values.to_groups(pull(masked)[0])

    @functools.cached_property
    def _exits_of_hidden(self) -> tuple[list[Array], Callable]:
        """The exits as functions of the old state."""

        def leaving(hidden):
            env = self._from_hidden(hidden)
            return [self.values.exit_value(edge, env) for edge in self.graph.exits.open]

        return jax.vjp(leaving, [self.values.env[v].array for v in self.graph.old])

    def _from_hidden(self, hidden: Sequence[Array]) -> Env:
        """The values of the region, as functions of the old state."""
        graph, values = self.graph, dict(self.values.env)
        values.update((v, Value(x, 2)) for v, x in zip(graph.old, hidden))
        if isinstance(graph.options.recurrence, float):
            for v, x in zip(new_values(graph), hidden):
                moving = graph.options.recurrence * (x - lax.stop_gradient(x))
                value = self.values.env[v].spread(*self.values.size).array
                values[v] = Value(lax.stop_gradient(value) + moving, 2)
        diagonals = graph.diagonals or {}
        read = functools.partial(stopped, _stops(graph))

        def result(i: int, operands: list[Value], value: Value) -> Value:
            if i not in diagonals:
                return value
            (output,) = graph.program.equations[i].outputs
            return diagonals[i].apply(self.values.env[output], operands)

        equations = local_equations(graph, recurrent=True)
        return run(graph.program, values, equations, edge=read, result=result)


@functools.lru_cache(maxsize=256)
def _stops(graph: Graph) -> Mapping[Edge, np.ndarray]:
    """Where the old state does not pass: cut, or mixed with other positions."""
    result = dict(graph.positions.cuts)
    diagonals = graph.diagonals or {}
    for i, kind in enumerate(graph.primitives.kinds):
        if kind is Kind.MIXING and i not in diagonals:
            for j, v in enumerate(graph.program.equations[i].inputs):
                if v.inexact and (i, j) not in graph.positions.inner:
                    result[i, j] = np.ones(v.shape, bool)
    return result


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
