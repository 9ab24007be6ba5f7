"""The values of some steps, as learning rules read them."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._analysis.graph import Graph
from .._program.evaluate import Env, Value, aligned, mapped, take
from .._program.ir import Edge, Var
from .derivative import Arrived, Derivative


@dataclasses.dataclass(frozen=True, eq=False)
class StepValues:
    """The values of k steps of a batch, in `env` with time and batch as one axis.

    `size` is (k, batch).
    """

    graph: Graph
    env: Env
    size: tuple[int, int]

    @functools.cached_property
    def derivative(self) -> Derivative:
        """That of the step, at these values."""
        return Derivative(self.graph.program, self.env, self.size)

    def apart(self, x: Array) -> Array:
        """Time and batch as two axes."""
        return x.reshape(*self.size, *x.shape[1:])

    def exit_value(self, edge: Edge) -> Array:
        """The value that leaves through an exit, in the shape it is read in."""
        shape = self.graph.exits.open[edge].shape
        value = self.env[self.graph.program.operand(edge)]
        return value.widen(shape).spread(*self.size).array

    def at(self, values: Sequence[Var], arrived: Arrived) -> list[Array]:
        """The cotangents of values that a walk has led to."""
        found = arrived.values
        return [found[v] if v in found else self.zeros(v) for v in values]

    def zeros(self, v: Var, shape: tuple[int, ...] | None = None) -> Array:
        """No cotangent of a value, for every step and example."""
        own = v.shape if shape is None else shape
        return jnp.zeros((math.prod(self.size), *own), v.dtype)

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
        return self.apart(value.spread(*self.size).array)

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
        return self.apart(value.spread(*self.size).array)

    def at_new(
        self, group: int, signal: Array, components: Sequence[int]
    ) -> list[tuple[Var, Array]]:
        """Some components of a signal [k, batch, S, P], at the new state of a group:
        each leaf, and its own [k * batch, ...]."""
        g = self.graph.positions.groups[group]
        # (sizes are given, not -1: a leaf may have no elements)
        lead = signal.shape[0] * signal.shape[1]
        rows, result = signal.reshape(lead, *signal.shape[2:]), []
        for s in components:
            new = self.graph.new[g.leaves[s]]
            leaf = take(rows[:, s], g.positions[s]).reshape(lead, *new.shape)
            result.append((new, leaf.astype(new.dtype)))
        return result

    def to_groups(self, leaves: Sequence[Array]) -> tuple[Array, ...]:
        """Arranges arrays like the hidden leaves as [k, batch, S, P], per group."""
        shapes = [v.shape for v in self.graph.old]
        return tuple(
            jnp.stack(
                [
                    place(self.apart(leaves[i]), shapes[i], p, g.size)
                    for i, p in zip(g.leaves, g.positions)
                ],
                axis=2,
            )
            for g in self.graph.positions.groups
        )


def place(
    values: Array, shape: tuple[int, ...], positions: np.ndarray, size: int
) -> Array:
    """Puts the elements of leaves [..., *shape] at their positions, else zero."""
    lead = values.shape[: values.ndim - len(shape)]
    flat = values.reshape(*lead, positions.size)
    if np.array_equal(positions, np.arange(size)):
        return flat
    return jnp.zeros((*lead, size), flat.dtype).at[..., positions].set(flat)
