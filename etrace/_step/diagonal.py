"""What each position does to itself, with the recurrence of its group open.

Where every recurrence is one product of the state with a weight, its diagonal is known
(see `_analysis.recurrence`). Where one is not (a gate before the product, a norm, a
chain of operations), every position is asked: a vector-Jacobian product of the whole
group, of which the position's own entry is kept. That costs as many backward passes as
there are positions.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .._analysis.graph import Graph, of_graph
from .._analysis.queries import leaving
from .._program.ir import Edge, Var
from .._program.labels import LABEL
from .derivative import Way
from .propagation import Propagation


@dataclasses.dataclass(frozen=True, eq=False)
class OwnPropagation(Propagation):
    """Along all paths within the group, up to where they leave it."""

    def jacobian(self) -> tuple[Array, ...]:
        result = []
        for g, group in enumerate(self.graph.positions.groups):
            labels, rows = group.labels(self.graph.new), []
            for leaf in group.leaves:
                new = self.graph.new[leaf]
                ones = jnp.ones_like(self.values.zeros(new))
                rows.append(self._own_entries(g, [(new, labels[new], ones)]))
            result.append(jnp.stack(rows, axis=2))
        return tuple(result)

    def boundary(self, spatial: Sequence[Array]) -> tuple[Array, ...]:
        exits = zip(self.graph.exits.open.items(), spatial, strict=True)
        seeds = [(edge, label, x) for (edge, label), x in exits]
        groups = range(len(self.graph.positions.groups))
        return tuple(self._own_entries(g, seeds) for g in groups)

    def _own_entries(
        self, g: int, signals: Sequence[tuple[Var | Edge, np.ndarray, Array]]
    ) -> Array:
        """What signals at a position say of the old state there, [k, batch, S, P].

        They are at values or exits, whose positions are given.
        """
        graph, group = self.graph, self.graph.positions.groups[g]
        derivative, way = self.values.derivative, _to_old(graph, g)
        derivative.prepare(way)

        def at(position: Array) -> Array:
            seeds = []
            for place, label, signal in signals:
                here = jnp.asarray(label, LABEL) == group.offset + position
                only = jnp.where(here, signal, 0)
                value = isinstance(place, Var)
                seeds.append(
                    (place, only) if value else derivative.at_operand(place, only)
                )
            at_old = self.values.at(graph.old, derivative.back(way, seeds))
            at_group = self.values.to_groups(at_old)[g]
            return lax.dynamic_index_in_dim(at_group, position, -1, keepdims=False)

        return jnp.moveaxis(lax.map(at, jnp.arange(group.size, dtype=LABEL)), 0, -1)


@of_graph
def _to_old(graph: Graph, group: int) -> Way:
    return Way(graph.program, graph.old, stops=leaving(graph, group))
