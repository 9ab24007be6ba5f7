"""From the loss of a window to what a learning rule needs, and to the parameters."""

import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ._forward import Ran, merge
from ._graph import (
    Adjoint,
    Edge,
    Graph,
    Rolled,
    Value,
    added,
    complete_groups,
    inexact,
    inject,
)
from ._window import Window


class LearningSignals:
    """What the loss of a window says, and the way from there to the parameters.

    - `spatial`: at every exit, the signal λ_t that reaches it in the step itself,
      [k * batch, ...] like the value there. Empty with `vjp_method="multi-step"`.
    - `outputs`: the cotangents of the inexact outputs, [k, batch, ...].
    """

    spatial: Sequence[Array]
    outputs: Sequence[Array]

    def __init__(
        self,
        window: Window,
        spatial: Sequence[Array],
        outputs: Sequence[Array],
        now: Callable[..., PyTree],
        at_states: Callable[[], list[Array]],
        start: tuple[Array, ...] | None = None,
    ):
        self.spatial = spatial
        self.outputs = outputs
        self._window = window
        self._now = now
        self._at_states = at_states
        self._start = start

    def replaced(self, spatial: Sequence[Array]) -> "LearningSignals":
        """The same with other signals at the exits, also in "now".

        What enters by the sites is credited with λ' in place of λ. Only for
        `vjp_method="single-step"`.
        """
        if self._start is not None:
            raise ValueError('With vjp_method="multi-step" no signal can be replaced.')
        pairs = zip(spatial, self.spatial, strict=True)
        change = self._window.local.exits_at_sites([a - b for a, b in pairs])

        def now(adjoints, at_sites, whole):
            own = [None if t in whole else x for t, x in enumerate(change)]
            return self._now(adjoints, added(own, at_sites), whole)

        return LearningSignals(self._window, spatial, self.outputs, now, _not_known)

    @functools.cached_property
    def boundary(self) -> tuple[Array, ...]:
        """Per group, the signal at the state before each step, [k, batch, S, P].

        B_t = ∂L_t/∂h_{t-1} with gradients stopped in the group's own recurrence. With
        `vjp_method="multi-step"`, ∂L/∂h at the window's start (k = 1).
        """
        if self._start is not None:
            return self._start
        return self._window.propagation.boundary(self.spatial)

    @functools.cached_property
    def at_states(self) -> list[Array]:
        """∂L_t/∂h_{t-1} by every path, nothing stopped.

        Per hidden leaf, complex ones as two, [k, batch, ...]. With
        `vjp_method="multi-step"`, ∂L/∂h at the window's start (k = 1).
        """
        return self._at_states()

    def gradients(
        self,
        past: Sequence[Array | None] = (),
        adjoints: Sequence[Array] = (),
        at_sites: Sequence[Array | None] = (),
        whole: Collection[int] = (),
    ) -> PyTree:
        """The gradient of the parameters: "now", and the past if it is given.

        **Arguments:**

        - `past`: per trace, a gradient of the weight, [b, o, c], or None for zero.
        - `adjoints`: per group, signals a_j at the states after each step, [k, batch,
            S, P]. Σ_j a_j · (f_j ⊗ x_j) is added to the gradient, at little extra cost.
        - `at_sites`: per trace, signals δ_j where the operation gives its result (or
            the weight is read), [k, batch, b, p, o], or None. Σ_j δ_j ⊗ x_j is added,
            at no extra cost.
        - `whole`: traces whose `past` holds the gradient of "now" too.
        """
        total = self._now(adjoints, at_sites, whole)
        if all(x is None for x in past):
            return total
        return jax.tree.map(jnp.add, total, self._window.pull_back(past))


def backwards(
    ran: Ran, cotangents: tuple[PyTree, PyTree | None]
) -> tuple[Window, LearningSignals, list[Array]]:
    """What a rule is given, and the cotangents of the inexact inputs.

    `cotangents` are those of (outputs [k, batch, ...], (last hidden, last other)), or
    None in place of the latter.
    """
    if ran.pull is None:
        return ran.window, *_single_step(ran.window, cotangents)
    return _multi_step(ran.window, ran.pull, cotangents)


def _single_step(
    window: Window, cotangents: tuple[PyTree, PyTree | None]
) -> tuple[LearningSignals, list[Array]]:
    """Backpropagates through each step alone, its incoming state held."""
    steps, local, held = window.evaluation, window.local, inexact(window.inputs)
    exits = window.graph.exits.open

    def read(params, inputs, edge, adjoints=None, rolled=window.rolled):
        """What the loss reads, and all values."""
        merged = merge(window.inputs, inputs)
        arguments = (params, window.consts, merged, rolled)
        env = steps.env(*arguments, edge=edge, adjoints=adjoints or {})
        return inexact(_given(steps.read(env, edge), cotangents)), env

    def wide(value: Value, shape: tuple[int, ...]) -> Array:
        return value.widen(shape).spread(*window.size).array

    def shifted(inputs, shifts):
        """As a function of shifts of the values that leave through exits."""
        shifts = dict(zip(exits, shifts, strict=True))

        def edge(at: Edge, value: Value) -> Value:
            if at not in shifts:
                return value
            return Value(wide(value, exits[at].shape) + shifts[at], 2)

        return read(window.params, inputs, edge)[0]

    def now(adjoints, more, whole):
        sites, traces = window.graph.sites, window.graph.traces
        left_out = {sites[traces[t].site].edge for t in whole}
        # Of a complete group, ordinary differentiation finds what local paths give, so
        # that its adjoints can go the way of the loss.
        complete = complete_groups(window.graph)
        pairs = list(enumerate(adjoints))
        own_way = [None if g in complete else a for g, a in pairs]
        at_sites = added(local.at_sites(own_way) if pairs else (), more)
        at_states = [x for g, a in pairs if g in complete for x in local.to_new(g, a)]
        of_values, of_reads = _at_sites(window.graph, at_sites)

        def read_and_kept(params):
            injected = []

            def edge(at: Edge, value: Value) -> Value:
                if at in left_out:
                    return Value(lax.stop_gradient(value.array), value.depth)
                if at not in of_reads:
                    return value
                adjoint = of_reads[at]
                injected.append(inject(wide(value, adjoint.shape[1:]), adjoint))
                return Value(injected[-1], 2)

            results, env = read(params, held, edge, of_values)
            groups = [g for g, _ in pairs if g in complete]
            kept = [x for g in groups for x in local.new_state(g, env)]
            # What the loss of the step does not see has a cotangent all the same.
            equations = window.graph.program.equations
            injected += [env[equations[i].outputs[0]].array for i in of_values]
            return results, kept, injected

        (_, _, injected), pull = jax.vjp(read_and_kept, window.params)
        none = list(map(jnp.zeros_like, injected))
        return pull((inexact(cotangents), at_states, none))[0]

    def at_states():
        def of_states(hidden):
            rolled = Rolled(hidden, window.rolled.other, window.rolled.known)
            as_it_is = lambda _, value: value  # noqa: E731
            return read(window.params, held, as_it_is, rolled=rolled)[0]

        _, pull = jax.vjp(of_states, window.rolled.hidden)
        return pull(inexact(cotangents))[0]

    zeros = [jnp.zeros_like(window.values.exit_value(at)) for at in exits]
    _, pull = jax.vjp(shifted, held, zeros)
    inputs, spatial = pull(inexact(cotangents))
    outputs = inexact(cotangents[0])
    return LearningSignals(window, spatial, outputs, now, at_states), inputs


def _not_known() -> list[Array]:
    raise ValueError(
        "This rule learns from the gradient of the loss by the whole state, which "
        "another learning signal does not give. Use a rule with traces at the neurons, "
        "such as DRTRL, OSTL or ESDRTRL."
    )


def _at_sites(graph: Graph, signals: Sequence[Array | None]):
    """Signals per trace, by the equation or by the edge where they are to be added."""
    of_values: dict[int, Adjoint] = {}
    of_reads: dict[Edge, Array] = {}
    for spec, signal in zip(graph.traces, signals):
        if signal is None:
            continue
        site = graph.sites[spec.site]
        flat = signal.reshape(-1, *signal.shape[2:])
        back = functools.partial(site.form.from_canonical, shape=site.shape)
        z = jax.vmap(back)(flat)
        i, j = site.edge
        if site.direct:
            of_reads[site.edge] = of_reads.get(site.edge, 0) + z
        else:
            old = of_values[i].array if i in of_values else 0
            of_values[i] = Adjoint(j, old + z)
    return of_values, of_reads


def _multi_step(
    window: Window, pull: Callable, cotangents: tuple[PyTree, PyTree | None]
) -> tuple[Window, LearningSignals, list[Array]]:
    """Backpropagates through the whole window, the state before it held.

    A rule is given the window's first step, and the signals at its start.
    """
    params, inputs, hidden = pull(*cotangents)
    # The cotangent of re + i im is ∂L/∂re - i ∂L/∂im.
    leaves = [jnp.conj(x) for x in jax.tree.leaves(hidden)]
    leaves = window.graph.coordinates.split(leaves)
    first = window.part(0, 1)
    boundary = first.values.to_groups(leaves)

    def now(adjoints, more, whole):
        if whole:
            raise ValueError('With vjp_method="multi-step" no trace holds "now".')
        signals = added(first.at_sites(adjoints) if adjoints else (), more)
        if not signals:
            return params
        outer = [
            None if a is None else _outer(a, first.local_input(t))
            for t, a in enumerate(signals)
        ]
        return jax.tree.map(jnp.add, params, first.pull_back(outer))

    outputs = inexact(cotangents[0])
    at_states = lambda: [x[None] for x in leaves]  # noqa: E731
    signals = LearningSignals(first, (), outputs, now, at_states, boundary)
    return first, signals, inputs


def _given(results: tuple, cotangents: tuple) -> tuple:
    """The results for which there are cotangents."""
    return tuple(r for r, c in zip(results, cotangents, strict=True) if c is not None)


def _outer(signal: Array, x: Array) -> Array:
    return jnp.einsum("kBbpo,kBbpc->boc", signal, x)
