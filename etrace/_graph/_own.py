"""What each position does to itself, with the recurrence of its group open.

Where every recurrence is one product of the state with a weight, its diagonal is known
(see `_recurrence`). Where one is not (a gate before the product, a norm, a chain of
operations), every position is asked: a vector-Jacobian product of the whole group, of
which the position's own entry is kept. That costs as many backward passes as there are
positions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._batched import Env, Value, run, stopped
from ._graph import Graph
from ._kinds import Kind
from ._partition import LABEL, UNSET
from ._program import Edge, Var
from ._propagation import Propagation
from ._ways import leaving


@dataclasses.dataclass(frozen=True, eq=False)
class OwnPropagation(Propagation):
    """Along all paths within the group, up to where they leave it."""

    def jacobian(self) -> tuple[Array, ...]:
        result = []
        for g, group in enumerate(self.graph.positions.groups):
            values, _ = self._of_hidden[g]
            rows = []
            for leaf in group.leaves:
                signals = list(map(jnp.zeros_like, values))
                signals[leaf] = jnp.ones_like(values[leaf])
                rows.append(self._own_entries(g, signals))
            result.append(jnp.stack(rows, axis=2))
        return tuple(result)

    def boundary(self, spatial: Sequence[Array]) -> tuple[Array, ...]:
        n, result = len(self.graph.new), []
        for g, (values, _) in enumerate(self._of_hidden):
            zeros = list(map(jnp.zeros_like, values[:n]))
            result.append(self._own_entries(g, [*zeros, *spatial]))
        return tuple(result)

    def _own_entries(self, g: int, signals: Sequence[Array]) -> Array:
        """What signals at a position say of the old state there, [k, batch, S, P].

        They are those at the new state, then those at the exits.
        """
        graph, group = self.graph, self.graph.positions.groups[g]
        own = group.labels(graph.new)
        labels = [own.get(v, np.full(v.shape, UNSET)) for v in graph.new]
        labels = [jnp.asarray(x, LABEL) for x in [*labels, *graph.exits.open.values()]]
        _, pull = self._of_hidden[g]

        def at(position: Array) -> Array:
            here = [x == group.offset + position for x in labels]
            only = [jnp.where(h, s, 0) for h, s in zip(here, signals, strict=True)]
            found = self.values.to_groups(pull(only)[0])[g]
            return lax.dynamic_index_in_dim(found, position, -1, keepdims=False)

        return jnp.moveaxis(lax.map(at, jnp.arange(group.size, dtype=LABEL)), 0, -1)

    @functools.cached_property
    def _of_hidden(self) -> list[tuple[list[Array], Callable]]:
        """Per group, the new state and the exits as functions of the old state."""
        hidden = [self.values.env[v].array for v in self.graph.old]
        groups = range(len(self.graph.positions.groups))
        functions = [
            functools.partial(self._reached, leaving(self.graph, g)) for g in groups
        ]
        return [jax.vjp(of_hidden, hidden) for of_hidden in functions]

    def _reached(
        self, leaving: Mapping[Edge, np.ndarray], hidden: list[Array]
    ) -> list[Array]:
        graph = self.graph
        env: Env = dict(self.values.env)
        env.update((v, Value(x, 2)) for v, x in zip(graph.old, hidden, strict=True))
        known = {v: self.values.env[v] for v in _mixed(graph)}
        edge = functools.partial(stopped, leaving)
        run(graph.program, env, _equations(graph), edge=edge, recalled=known)
        exits = [self.values.exit_value(at, env) for at in graph.exits.open]
        return [*self.values.new(range(len(graph.new)), env), *exits]


@functools.lru_cache(maxsize=256)
def _equations(graph: Graph) -> tuple[int, ...]:
    """What depends on the old state."""
    moving = graph.program.reached_from(graph.old)
    equations = enumerate(graph.program.equations)
    return tuple(i for i, e in equations if any(v in moving for v in e.outputs))


def _mixed(graph: Graph) -> list[Var]:
    kinds, equations = graph.primitives.kinds, graph.program.equations
    mixing = (i for i in _equations(graph) if kinds[i] is Kind.MIXING)
    return [v for i in mixing for v in equations[i].outputs]
