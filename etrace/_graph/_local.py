"""From the sites to the state and to the exits, and back.

The *local region* is the part of the step between the mixing operations: there every
derivative is position by position, so that a Jacobian is one vector-Jacobian product
with ones per component of the state.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._batched import Env, Value, run, stopped, take
from ._graph import Graph
from ._partition import UNSET
from ._program import Edge
from ._values import StepValues
from ._ways import local_equations


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
            x = self.values.apart(jax.vmap(canonical)(at_group[spec.site]))
            traced = spec.positions != UNSET
            result.append(x if traced.all() else jnp.where(traced, x, 0))
        return result

    def _exits_of(self, group: int) -> list[np.ndarray]:
        """Which elements leave from a group, per exit.

        Not those that were cut: what enters by a site is not stopped there.
        """
        positions = self.graph.positions
        return [
            (positions.group_of(label) == group) & (edge not in positions.cuts)
            for edge, label in self.graph.exits.open.items()
        ]

    @functools.cached_property
    def _exits_of_sites(self) -> tuple[tuple[list[Array], Callable], ...]:
        """The exits as functions of the sites, where a weight is read (False) and at
        the operation's output (True)."""

        def leaving(values, outputs):
            env = self._from_sites(values, outputs)
            return [self.values.exit_value(edge, env) for edge in self.graph.exits.open]

        return tuple(
            jax.vjp(functools.partial(leaving, outputs=outputs), self._sites(outputs))
            for outputs in (False, True)
        )

    def to_new(self, group: int, signal: Array) -> list[Array]:
        """Arranges a signal [k, batch, S, P] like `new_state` of the group."""
        g, rows = self.graph.positions.groups[group], math.prod(self.values.size)
        signal = signal.reshape(rows, *signal.shape[2:])
        result = []
        for s in self.graph.remembered(group):
            new = self.graph.new[g.leaves[s]]
            leaf = take(signal[:, s], g.positions[s]).reshape(rows, *new.shape)
            result.append(leaf.astype(new.dtype))
        return result

    def new_state(self, group: int, env: Env | None = None) -> list[Array]:
        """The new state of a group, of the components that traces hold."""
        leaves = self.graph.positions.groups[group].leaves
        held = self.graph.remembered(group)
        return self.values.new([leaves[s] for s in held], env)

    @functools.cached_property
    def _linear(self) -> list[tuple[list[Array], Callable]]:
        """Per group, its new state and the linear way from there to the sites."""
        at_sites = self._sites(False)
        result = []
        for g in range(len(self.graph.positions.groups)):

            def of_sites(values, g=g):
                return self.new_state(g, self._from_sites(values, False))

            result.append(jax.vjp(of_sites, at_sites))
        return result

    def _sites(self, outputs: bool) -> list[Array]:
        """The values that are perturbed at the sites."""
        result = []
        for site in self.graph.sites:
            direct = site.direct and not (outputs and site.elementwise)
            var = site.weight if direct else site.equation.outputs[0]
            value = self.values.env[var].widen(site.shape).spread(*self.values.size)
            result.append(value.array)
        return result

    def _from_sites(self, at_sites: Sequence[Array], outputs: bool) -> Env:
        """The values of the region, as functions of those at the sites.

        Cuts stop credit on its way from the old state, not from a weight.
        """
        graph, values = self.graph, dict(self.values.env)
        direct: dict[Edge, Value] = {}
        shifts: dict[int, Array] = {}
        region = local_equations(graph)
        for site, value in zip(graph.sites, at_sites, strict=True):
            if not site.direct and site.edge[0] not in region:
                values[site.equation.outputs[0]] = Value(value, 2)
            elif not site.direct or (outputs and site.elementwise):
                # Several weights may meet in one operation, and what it reads may come
                # from a site.
                old = shifts.get(site.edge[0], 0)
                shifts[site.edge[0]] = old + value - lax.stop_gradient(value)
            else:
                direct[site.edge] = Value(value, 2)

        def result(i: int, operands: list[Value], value: Value) -> Value:
            if i not in shifts:
                return value
            return Value(value.spread(*self.values.size).array + shifts[i], 2)

        def read(edge: Edge, value: Value) -> Value:
            return stopped(graph.converging, edge, direct.get(edge, value))

        return run(graph.program, values, region, edge=read, result=result)


def added(
    a: Sequence[Array | None], b: Sequence[Array | None]
) -> Sequence[Array | None]:
    """The sum of signals, None standing for zero; either may be empty."""
    if not (a and b):
        return a or b
    pairs = zip(a, b, strict=True)
    return [x if y is None else y if x is None else x + y for x, y in pairs]
