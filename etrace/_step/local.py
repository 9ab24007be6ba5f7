"""From the state and the exits back to the sites.

The *local region* is the part of the step between the mixing operations: there every
derivative is position by position, so that a Jacobian is one walk with ones for a
component of the state.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._analysis.graph import Graph, of_graph
from .._analysis.queries import local_equations
from .._analysis.sites import Site
from .._program.ir import Var
from .._program.labels import UNSET
from .derivative import Arrived, Way
from .values import StepValues


@dataclasses.dataclass(frozen=True, eq=False)
class LocalRegion:
    """The local region of some steps, all mixing operations held fixed."""

    values: StepValues

    @property
    def graph(self) -> Graph:
        return self.values.graph

    def at_sites(self, signals: Sequence[Array | None]) -> list[Any]:
        """Pulls signals at the new states back to the sites along local paths.

        `signals` are [k, batch, S, P] per group, None for a group of no interest.
        Returns the signals at z per trace, [k, batch, b, p, o] or None. With ones for a
        component and zeros elsewhere, this is f = ∂h_t/∂z of that component.
        """
        return self._per_trace(
            [
                None if x is None else self._back(self.to_new(g, x))
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
        edges, result = self.graph.exits.open, []
        for g in range(len(self.graph.positions.groups)):
            own = self._exits_of(g)
            if any(mask.any() for mask in own):
                parts = zip(edges, own, signals, strict=True)
                masked = ((edge, jnp.where(m, s, 0)) for edge, m, s in parts if m.any())
                at_operand = self.values.derivative.at_operand
                result.append(self._back(at_operand(*pair) for pair in masked))
            else:
                result.append(None)
        return self._per_trace(result, outputs)

    def _back(self, seeds: Iterable[tuple[Var, Array]]) -> Arrived:
        return self.values.derivative.back(_to_sites(self.graph), seeds)

    def _per_trace(
        self, found: Sequence[Arrived | None], outputs: bool = False
    ) -> list[Any]:
        """What arrived at the sites, per group, as signals per trace."""
        graph = self.graph
        result = []
        for spec in graph.traces:
            site, arrived = graph.sites[spec.site], found[spec.group]
            if arrived is None:
                result.append(None)
                continue
            at_site = self._at_site(site, arrived, outputs)
            x = self.values.apart(jax.vmap(site.form.canonical)(at_site))
            traced = spec.positions != UNSET
            result.append(x if traced.all() else jnp.where(traced, x, 0))
        return result

    def _at_site(self, site: Site, arrived: Arrived, outputs: bool) -> Array:
        """[k * batch, *site]."""
        if site.direct and not (outputs and site.elementwise):
            found, like = arrived.edges.get(site.edge), site.weight
        else:
            (like,) = site.equation.outputs
            found = arrived.values.get(like)
        return self.values.zeros(like, site.shape) if found is None else found

    def _exits_of(self, group: int) -> list[np.ndarray]:
        """Which elements leave from a group, per exit.

        Not those that were cut: what enters by a site is not stopped there.
        """
        positions = self.graph.positions
        return [
            (positions.group_of(label) == group) & (edge not in positions.cuts)
            for edge, label in self.graph.exits.open.items()
        ]

    def to_new(self, group: int, signal: Array) -> list[tuple[Var, Array]]:
        """A signal [k, batch, S, P] at the new state of a group, of the components that
        traces hold."""
        return self.values.at_new(group, signal, self.graph.remembered(group))


@of_graph
def _to_sites(graph: Graph) -> Way:
    """Cuts stop credit on its way from the old state, not from a weight."""
    direct = {s.edge: s.shape for s in graph.sites if s.direct}
    results = [
        s.equation.outputs[0] for s in graph.sites if not s.direct or s.elementwise
    ]
    region = local_equations(graph)
    return Way(graph.program, results, region, graph.converging, direct)


def added(
    a: Sequence[Array | None], b: Sequence[Array | None]
) -> Sequence[Array | None]:
    """The sum of signals, None standing for zero; either may be empty."""
    if not (a and b):
        return a or b
    pairs = zip(a, b, strict=True)
    return [x if y is None else y if x is None else x + y for x, y in pairs]
