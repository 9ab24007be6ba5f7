r"""Traces at the exits, filtered in time.

What a trace ε is to the state, the *emitted* trace e is to a value that leaves its
group: e_t = E_t ε_{t-1} + f^e_t ⊗ x_t with E_t = ∂u_t/∂h_{t-1} and f^e_t = ∂u_t/∂z_t
for the value u at the exit. Some rules contract the signal there with its filter

    ē_t = κ ē_{t-1} + e_t

As the sum over the window is linear in both, the filter may as well run backwards over
the signals: with λ̃_t = λ_t + κ λ̃_{t+1},

    Σ_t λ_t · ē_t = Σ_t λ̃_t · e_t + κ λ̃_1 · ē_0

so that inside a window a filtered exit costs what any other does. Across windows ē is
kept, one more component of the trace. With Ψ_{j-1} = κ^{k-j} E_j + Ψ_j D_j, Ψ_k = 0,

    ē_k = κ^k ē_0 + Ψ_0 ε_0 + Σ_j (κ^{k-j} f^e_j + Ψ_j f_j) ⊗ x_j
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .._analysis import Graph
from .._program import Edge, take
from .._step import added
from .._window import Window


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """A value that leaves a group, at most one element for each position.

    `exits` are the exits where it is read, by number; `index` the element at each
    position, -1 where there is none.
    """

    exits: tuple[int, ...]
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class Emitted:
    """Filtered exits of a graph: those that `chosen(graph, edge, group)` names."""

    graph: Graph
    kappa: float
    chosen: Callable[[Graph, Edge, int], bool]

    @functools.cached_property
    def components(self) -> tuple[tuple[Component, ...], ...]:
        """Per group."""
        groups = range(len(self.graph.positions.groups))
        return tuple(self._of_group(g) for g in groups)

    def _of_group(self, g: int) -> tuple[Component, ...]:
        graph, found = self.graph, {}
        group = graph.positions.groups[g]
        for n, (edge, label) in enumerate(graph.exits.open.items()):
            if not self.chosen(graph, edge, g):
                continue
            flat = label.reshape(-1) - group.offset
            own = np.flatnonzero((flat >= 0) & (flat < group.size))
            while own.size:
                # A position that a value holds several times takes several components.
                positions, first = np.unique(flat[own], return_index=True)
                index = np.full(group.size, -1)
                index[positions] = own[first]
                value = graph.program.operand(edge), label.shape, index.tobytes()
                found.setdefault(value, (index, []))[1].append(n)
                own = np.delete(own, first)
        return tuple(Component(tuple(n), index) for index, n in found.values())

    def count(self, t: int) -> int:
        """How many components trace t has for them."""
        return len(self.components[self.graph.traces[t].group])

    def filtered(
        self, window: Window, signals: Sequence[Array]
    ) -> tuple[list[Array], list[list[Array]]]:
        """λ̃ at all exits, and per group κ λ̃_1 of each component, [batch, P]."""
        result = list(signals)
        for n, mask in self._masks.items():
            result[n] = _backwards(signals[n], mask, self.kappa, window.length)
        first = [x[: window.size[1]] for x in result]
        return result, [
            [self.kappa * self.at_positions(c, first) for c in components]
            for components in self.components
        ]

    def split(self, signals: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Signals at the filtered exits, and at the others."""
        none = np.zeros((), bool)
        pairs = [(self._masks.get(n, none), x) for n, x in enumerate(signals)]
        own = [jnp.where(m, x, 0) for m, x in pairs]
        return own, [jnp.where(m, 0, x) for m, x in pairs]

    @functools.cached_property
    def _masks(self) -> dict[int, np.ndarray]:
        """By exit, the elements that are filtered."""
        masks: dict[int, np.ndarray] = {}
        labels = list(self.graph.exits.open.values())
        for component in (c for group in self.components for c in group):
            for n in component.exits:
                mask = masks.setdefault(n, np.zeros(labels[n].shape, bool))
                mask.reshape(-1)[component.index[component.index >= 0]] = True
        return masks

    def at_positions(self, component: Component, signals: Sequence[Array]) -> Array:
        """The signal at a component, [rows, P], of signals at the exits [rows, ...]."""
        flat = [signals[n].reshape(len(signals[n]), -1) for n in component.exits]
        values = take(sum(flat[1:], flat[0]), component.index)
        return jnp.where(component.index >= 0, values, 0)

    def rows(
        self, window: Window
    ) -> list[tuple[tuple[Array, ...], Sequence[Array | None]]]:
        """How the components move in a window; one entry for each, groups side by side.

        Per group Ψ_0 [batch, S, P], and per trace κ^{k-j} f^e_j + Ψ_j f_j
        [k, batch, b, p, o].
        """
        result = []
        for number in range(max(map(len, self.components), default=0)):
            ones = self.ones(window, number, self.kappa)
            psi = window.adjoints(window.propagation.boundary(ones))
            at_exits = window.local.exits_at_sites(ones)
            at_states = window.at_sites([x[1:] for x in psi])
            result.append((tuple(x[0] for x in psi), added(at_exits, at_states)))
        return result

    def ones(self, window: Window, number: int, decay: float) -> list[Array]:
        """decay^{k-j} at the elements of the components with this number."""
        k, batch = window.size
        values = [window.values.exit_value(edge) for edge in self.graph.exits.open]
        masks = [np.zeros(v.shape[1:], bool) for v in values]
        for components in self.components:
            if number < len(components):
                index = components[number].index
                first = components[number].exits[0]
                masks[first].reshape(-1)[index[index >= 0]] = True
        powers = [decay ** (k - 1 - j) for j in range(k)]
        result = []
        for value, mask in zip(values, masks, strict=True):
            fading = jnp.repeat(jnp.asarray(powers, value.dtype), batch)
            fading = fading.reshape(-1, *(1,) * mask.ndim)
            result.append(fading * jnp.asarray(mask[None], value.dtype))
        return result


def _backwards(signal: Array, mask: np.ndarray, kappa: float, k: int) -> Array:
    """λ̃_t = λ_t + κ λ̃_{t+1} at the elements of the mask, else λ_t."""
    steps = signal.reshape(k, -1, *signal.shape[1:])
    fading = jnp.asarray(np.where(mask, kappa, 0.0)[None], signal.dtype)

    def step(later, now):
        now = now + fading * later
        return now, now

    start = jnp.zeros_like(steps[0])
    _, result = lax.scan(step, start, steps, reverse=True, unroll=k == 1)
    return result.reshape(signal.shape)
