"""From the state before a step to the state after it, and to the exits."""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._analysis.graph import Graph, of_graph
from .._analysis.queries import local_equations, new_values
from .._program.ir import Edge, Var
from .._program.labels import UNSET
from .._program.primitive import Kind
from .derivative import Way
from .values import StepValues


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
        rows: dict[int, Array] = {}  # by new leaf, [k, batch, S (old), P]
        for s in range(max([g.components for g in graph.positions.groups], default=0)):
            groups = [g for g in graph.positions.groups if s < g.components]
            leaves = [graph.new[g.leaves[s]] for g in groups]
            ones = [(v, jnp.ones_like(self.values.zeros(v))) for v in leaves]
            per_group = self._back(self._masked(ones))
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
        seeds = []
        for g, signal in enumerate(signals):
            components = range(self.graph.positions.groups[g].components)
            seeds += self.values.at_new(g, signal, components)
        return self._back(self._masked(seeds))

    def boundary(self, spatial: Sequence[Array]) -> tuple[Array, ...]:
        # With gradients stopped in a group's own recurrence and open everywhere else,
        # all that leaves the group leaves it through its exits, and gets there by
        # position-local paths.
        exits = zip(self.graph.exits.open.items(), spatial, strict=True)
        at_operand = self.values.derivative.at_operand
        return self._back(
            at_operand(edge, jnp.where(label >= 0, x, 0)) for (edge, label), x in exits
        )

    def _masked(
        self, seeds: Iterable[tuple[Var, Array]]
    ) -> Iterable[tuple[Var, Array]]:
        """Of signals at the new state, those that are its positions' own."""
        return ((v, jnp.where(_own(self.graph)[v], x, 0)) for v, x in seeds)

    def _constant_jacobian(self, leak: float) -> tuple[Array, ...]:
        result = []
        for g in self.graph.positions.groups:
            dtype = self.graph.new[g.leaves[0]].dtype
            result.append(jnp.full((*self.values.size, 1, 1, g.size), leak, dtype))
        return tuple(result)

    def _back(self, seeds: Iterable[tuple[Var, Array]]) -> tuple[Array, ...]:
        """To the old state, per group [k, batch, S, P]."""
        graph = self.graph
        arrived = self.values.derivative.back(_to_old(graph), seeds)
        at_old = self.values.at(graph.old, arrived)
        leak = graph.options.recurrence
        if isinstance(leak, float):
            # In place of all ways from the old state to the new one.
            more = self.values.at(new_values(graph), arrived)
            at_old = [x + leak * m for x, m in zip(at_old, more, strict=True)]
        return self.values.to_groups(at_old)


@of_graph
def _to_old(graph: Graph) -> Way:
    equations = local_equations(graph, True)
    known = graph.diagonals or {}
    values = graph.old
    if isinstance(graph.options.recurrence, float):
        values = (*values, *new_values(graph))
    instead = {i: diagonal.apply for i, diagonal in known.items()}
    return Way(graph.program, values, equations, _stops(graph), instead=instead)


@of_graph
def _stops(graph: Graph) -> Mapping[Edge, np.ndarray]:
    """Where the old state does not pass: cut, or mixed with other positions."""
    result = dict(graph.positions.cuts)
    diagonals = graph.diagonals or {}
    for i, kind in enumerate(graph.operations.kinds):
        if kind is Kind.MIXING and i not in diagonals:
            for j, v in enumerate(graph.program.equations[i].inputs):
                if v.inexact and (i, j) not in graph.positions.inner:
                    result[i, j] = np.ones(v.shape, bool)
    return result


@of_graph
def _own(graph: Graph) -> Mapping[Var, np.ndarray]:
    """Elements of each leaf of the new state that are local to their own position."""
    result = {}
    for g in graph.positions.groups:
        for var, own in g.labels(graph.new).items():
            label = graph.positions.forward.get(var, np.full(var.shape, UNSET))
            # What comes through the recurrence has no label.
            by_recurrence = (label == UNSET) & (graph.options.recurrence == "diagonal")
            result[var] = np.asarray((label == own) | by_recurrence)
    return result
