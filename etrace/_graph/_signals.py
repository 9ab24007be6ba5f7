"""What one step tells a learning rule, computed for one example.

The *local region* is the part of the step between the mixing operations: there every
derivative is position by position, so that a Jacobian is one vector-Jacobian product
with ones per component of the state.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._model import join_complex, split_complex
from ._graph import Graph
from ._positions import UNSET
from ._primitives import Kind
from ._program import Edge, Var, run


class LocalSignals(eqx.Module):
    """The local derivatives of a step. With leading (time, batch) axes in a window.

    - `jacobian`: per group, D = ∂h_t/∂h_{t-1} along position-local paths,
      [S (new), S (old), P].
    - `immediate`: per trace, f = ∂h_t/∂z along position-local paths,
      [components, b, p, o].
    - `local_input`: per site, x [b, p, c].
    """

    jacobian: tuple[Array, ...]
    immediate: tuple[Array, ...]
    local_input: tuple[Array, ...]


Arguments = tuple[PyTree, PyTree, PyTree, PyTree, PyTree]
"""params, consts, hidden, other, inputs: the arguments of `Call.step`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """Evaluates a graph's step in the ways that learning rules need."""

    graph: Graph

    # ------------------------------------------------------------------ the whole step

    def _bind(self, arguments: Arguments) -> dict[Var, Any]:
        leaves = [jax.tree.leaves(a) for a in arguments]
        leaves[2] = split_complex(leaves[2])
        flat = [x for part in leaves for x in part]
        return dict(zip(self.graph.program.inputs, flat, strict=True))

    def weights(self, params: PyTree, consts: PyTree) -> tuple[Array, ...]:
        """The value of the weight expression at every site."""
        graph = self.graph
        env = dict(zip(graph.inputs["params"], jax.tree.leaves(params), strict=True))
        env.update(zip(graph.inputs["consts"], jax.tree.leaves(consts), strict=True))
        env = run(graph.program, env, graph.weight_equations)
        return tuple(env[s.weight] for s in graph.sites)

    def step_with_exits(
        self, arguments: Arguments, shifts: Sequence[Array]
    ) -> tuple[PyTree, PyTree, PyTree]:
        """The step, with `shifts` added where local values leave through exits."""
        graph, program = self.graph, self.graph.program
        by_edge = dict(zip(self._exits, shifts, strict=True))
        add = lambda edge, x: x + by_edge[edge] if edge in by_edge else x  # noqa: E731
        env = run(program, self._bind(arguments), edge=add)
        end = len(program.equations)
        leaves = [add((end, j), env[v]) for j, v in enumerate(program.outputs)]
        call = graph.call
        n_other, n_hidden = len(call.other.leaves), len(graph.new)
        cut = len(leaves) - n_other
        hidden = join_complex(leaves[cut - n_hidden : cut], call.hidden.leaves)
        return (
            graph.outputs.treedef.unflatten(leaves[: cut - n_hidden]),
            call.hidden.treedef.unflatten(hidden),
            call.other.treedef.unflatten(leaves[cut:]),
        )

    def exit_shifts(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the values that leave through exits."""
        return tuple(
            jax.ShapeDtypeStruct(mask.shape, self._operand(edge).dtype)
            for edge, mask in self.graph.positions.exits.items()
        )

    # ---------------------------------------------------------------- the local region

    def signals(self, arguments: Arguments) -> LocalSignals:
        graph = self.graph
        env = run(graph.program, self._bind(arguments))
        hidden = [env[v] for v in graph.old]
        at_sites = [self._site_value(env, k) for k in range(len(graph.sites))]
        jacobian: dict[tuple[int, int], Array] = {}
        immediate: dict[tuple[int, int], Array] = {}
        for leaves in self._passes:

            def new_state(hidden, at_sites, cut, leaves=leaves):
                values = self._local(env, hidden, at_sites, cut)
                return [values[graph.new[k]] for k in leaves]

            # Cuts stop credit on its way from the old state, not from a weight.
            values, pull = jax.vjp(lambda z: new_state(hidden, z, False), at_sites)
            (f,) = pull([jnp.ones_like(v) for v in values])
            values, pull = jax.vjp(lambda h: new_state(h, at_sites, True), hidden)
            own = [jnp.asarray(self._own[k], v.dtype) for k, v in zip(leaves, values)]
            (d,) = pull(own)
            for k in leaves:
                immediate.update({(k, s): x for s, x in enumerate(f)})
                jacobian.update({(k, m): x for m, x in enumerate(d)})
        return LocalSignals(
            tuple(self._group_jacobian(g, jacobian) for g in graph.positions.groups),
            tuple(self._immediate(t, immediate) for t in range(len(graph.traces))),
            tuple(
                s.form.local_input(*(env[v] for v in s.equation.inputs))
                for s in graph.sites
            ),
        )

    def boundary(self, arguments: Arguments, spatial: Sequence[Array]) -> tuple:
        """Pulls the cotangents at the exits back to the old state, per group [S, P].

        With gradients stopped in a group's own recurrence and open everywhere else, all
        that leaves the group leaves it through its exits, and gets there by
        position-local paths.
        """
        graph = self.graph
        env = run(graph.program, self._bind(arguments))
        hidden = [env[v] for v in graph.old]
        at_sites = [self._site_value(env, k) for k in range(len(graph.sites))]
        masks = graph.positions.exits

        def leaving(hidden):
            values = self._local(env, hidden, at_sites, True)
            return [
                jnp.broadcast_to(values[self._operand(edge)], mask.shape)
                for edge, mask in masks.items()
            ]

        _, pull = jax.vjp(leaving, hidden)
        masked = [jnp.where(m, s, 0) for s, m in zip(spatial, masks.values())]
        (cotangents,) = pull(masked)
        return self.to_groups(cotangents)

    def to_groups(self, leaves: Sequence[Array]) -> tuple[Array, ...]:
        """Arranges arrays like the hidden leaves by group, [S, P]."""
        return tuple(
            jnp.stack(
                [place(leaves[k], p, g.size) for k, p in zip(g.leaves, g.positions)]
            )
            for g in self.graph.positions.groups
        )

    def _site_value(self, env: Mapping[Var, Any], k: int) -> Array:
        site = self.graph.sites[k]
        var = site.weight if site.direct else site.equation.outputs[0]
        return jnp.broadcast_to(env[var], site.shape)

    def _local(
        self, env: Mapping[Var, Any], hidden: Sequence, at_sites: Sequence, cut: bool
    ) -> dict[Var, Any]:
        """Evaluates the local region again, all mixing operations held fixed."""
        graph = self.graph
        direct: dict[Edge, Any] = {}
        values = dict(env)
        values.update(zip(graph.old, hidden, strict=True))
        for site, value in zip(graph.sites, at_sites, strict=True):
            if site.direct:
                direct[site.edge] = value
            else:
                values[site.equation.outputs[0]] = value
        cuts = graph.positions.cuts if cut else {}

        def read(edge: Edge, value):
            value = direct.get(edge, value)
            if edge in cuts:
                value = jnp.where(cuts[edge], lax.stop_gradient(value), value)
            return value

        return run(graph.program, values, self._region, read)

    def _group_jacobian(self, g, jacobian: Mapping[tuple[int, int], Array]) -> Array:
        rows = [
            jnp.stack(
                [
                    place(jacobian[new, old], positions, g.size)
                    for old, positions in zip(g.leaves, g.positions)
                ]
            )
            for new in g.leaves
        ]
        return jnp.stack(rows)

    def _immediate(self, t: int, immediate: Mapping[tuple[int, int], Array]) -> Array:
        spec = self.graph.traces[t]
        site, g = self.graph.sites[spec.site], self.graph.positions.groups[spec.group]
        parts = [
            site.form.canonical(immediate[g.leaves[s], spec.site])
            for s in spec.components
        ]
        if not parts:
            return jnp.zeros((0, *spec.positions.shape), site.weight.dtype)
        f = jnp.stack(parts)
        if (spec.positions == UNSET).any():
            f = jnp.where(spec.positions == UNSET, 0, f)
        return f

    # ----------------------------------------------------------------- static structure

    @functools.cached_property
    def _exits(self) -> tuple[Edge, ...]:
        return tuple(self.graph.positions.exits)

    def _operand(self, edge: Edge) -> Var:
        i, j = edge
        program = self.graph.program
        end = i == len(program.equations)
        return program.outputs[j] if end else program.equations[i].inputs[j]

    @functools.cached_property
    def _own(self) -> dict[int, np.ndarray]:
        """Elements of each new state leaf that are local to their own position."""
        graph, result = self.graph, {}
        for g in graph.positions.groups:
            for leaf, positions in zip(g.leaves, g.positions):
                var = graph.new[leaf]
                label = graph.positions.forward.get(var, np.full(var.shape, UNSET))
                own = (g.offset + positions).reshape(var.shape)
                result[leaf] = np.asarray(label == own)
        return result

    @functools.cached_property
    def _region(self) -> tuple[int, ...]:
        """The equations of the local region, in order."""
        graph = self.graph
        equations = graph.program.equations
        active = set(graph.old)
        direct = {s.edge for s in graph.sites if s.direct}
        active.update(s.equation.outputs[0] for s in graph.sites if not s.direct)
        region = []
        for i, e in enumerate(equations):
            local = graph.primitives.kinds[i] in (Kind.ELEMENTWISE, Kind.MOVEMENT)
            enters = any(
                v in active or (i, j) in direct for j, v in enumerate(e.inputs)
            )
            if local and enters:
                region.append(i)
                active.update(e.outputs)
        needed = {*graph.new, *map(self._operand, self._exits)}
        kept = []
        for i in reversed(region):
            if any(v in needed for v in equations[i].outputs):
                needed.update(equations[i].inputs)
                kept.append(i)
        return tuple(reversed(kept))

    @functools.cached_property
    def _passes(self) -> tuple[tuple[int, ...], ...]:
        """State leaves whose derivatives one backward pass can tell apart.

        Two leaves clash if they share a group, or if one site flows into both.
        """
        group = {
            k: g for g, x in enumerate(self.graph.positions.groups) for k in x.leaves
        }
        shared: dict[int, set[int]] = {}
        for t in self.graph.traces:
            shared.setdefault(t.site, set()).add(t.group)
        clashing = [groups for groups in shared.values() if len(groups) > 1]
        passes: list[list[int]] = []
        for leaf, own in group.items():
            for p in passes:
                taken = {group[k] for k in p}
                apart = own not in taken and not any(
                    own in c and c & taken for c in clashing
                )
                if apart:
                    p.append(leaf)
                    break
            else:
                passes.append([leaf])
        return tuple(map(tuple, passes))


def place(values: Array, positions: np.ndarray, size: int) -> Array:
    """Puts the elements of a leaf at their positions, zero elsewhere."""
    flat = values.reshape(-1)
    if np.array_equal(positions, np.arange(size)):
        return flat
    return jnp.zeros(size, flat.dtype).at[positions].set(flat)


def take(values: Array, positions: np.ndarray) -> Array:
    """Takes values [..., P] of a group to the elements of a site, [..., b, p, o]."""
    size = values.shape[-1]
    if np.array_equal(positions.reshape(-1), np.arange(size)):
        return values.reshape(*values.shape[:-1], *positions.shape)
    return values[..., np.maximum(positions, 0)]
