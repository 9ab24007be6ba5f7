"""From the loss of a window to what a learning rule needs, and to the parameters."""

import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._analysis import Graph, complete_groups
from ._forward import Ran, merge
from ._program import Edge, Var
from ._step import Arrived, Way, added, inexact
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
    graph, derivative = window.graph, window.values.derivative
    at_outputs = _at_outputs(window, cotangents)
    outputs = [(graph.program.outputs[j], x) for j, x in at_outputs.items()]
    read = [v for v in graph.inputs["inputs"] if v.inexact]

    def at_states() -> list[Array]:
        arrived = derivative.back(Way(graph.program, graph.old), outputs)
        return list(map(window.values.apart, window.values.at(graph.old, arrived)))

    exits = {edge: label.shape for edge, label in graph.exits.open.items()}
    arrived = derivative.back(Way(graph.program, read, shapes=exits), outputs)
    end = len(graph.program.equations)
    at_exits = {(end, j): x for j, x in at_outputs.items()} | dict(arrived.edges)
    spatial = [
        at_exits.get(edge, window.values.zeros(graph.program.operand(edge), shape))
        for edge, shape in exits.items()
    ]
    now = functools.partial(_now, window, outputs)
    signals = LearningSignals(window, spatial, inexact(cotangents[0]), now, at_states)
    return signals, _at_inputs(window, arrived)


def _at_outputs(
    window: Window, cotangents: tuple[PyTree, PyTree | None]
) -> dict[int, Array]:
    """The cotangents of what the program puts out, [k * batch, ...], by number."""
    steps, program = window.evaluation, window.graph.program
    read = steps.read(window.values.env)
    given = len(jax.tree.leaves(cotangents[0]))
    numbers = range(given if cotangents[1] is None else len(read))
    others = inexact(read[len(numbers) :])

    def given_out(some: list[Array]) -> list[Array]:
        result = steps.given_out(merge(read, [*some, *others]))
        return inexact([r for r, c in zip(result, cotangents) if c is not None])

    _, pull = jax.vjp(given_out, inexact(read[: len(numbers)]))
    (found,) = pull(inexact(cotangents))
    moving = [j for j in numbers if program.outputs[j].inexact]
    return dict(zip(moving, found, strict=True))


def _at_inputs(window: Window, arrived: Arrived) -> list[Array]:
    """The cotangents of the inexact inputs, in their own shapes."""
    pairs = zip(window.graph.inputs["inputs"], window.multi, strict=True)
    moving = [(v, m) for v, m in pairs if v.inexact]
    found = window.values.at([v for v, _ in moving], arrived)
    steps = zip(map(window.values.apart, found), moving)
    return [x if m else x.sum(0) for x, (_, m) in steps]


def _now(
    window: Window,
    outputs: Sequence[tuple[Var, Array]],
    adjoints: Sequence[Array],
    more: Sequence[Array | None],
    whole: Collection[int],
) -> PyTree:
    """The gradient of the parameters, see `LearningSignals.gradients`."""
    graph, local, derivative = window.graph, window.local, window.values.derivative
    left_out = (graph.sites[graph.traces[t].site].edge for t in whole)
    stops = {e: np.ones(graph.program.operand(e).shape, bool) for e in left_out}
    # Of a complete group, ordinary differentiation finds what local paths give, so
    # that its adjoints can go the way of the loss.
    complete = complete_groups(graph)
    pairs = list(enumerate(adjoints))
    own_way = [None if g in complete else a for g, a in pairs]
    at_sites = added(local.at_sites(own_way) if pairs else (), more)
    at_states = [x for g, a in pairs if g in complete for x in local.to_new(g, a)]
    only, at_reads = _at_sites(graph, at_sites)
    at_weights = [derivative.at_operand(e, x) for e, x in at_reads if e not in stops]
    seeds = [*outputs, *at_states, *at_weights]
    seeds = [(v, derivative.natural(v, x)) for v, x in seeds]
    way = Way(graph.program, graph.inputs["params"], stops=stops)
    found = derivative.back(way, seeds, each=False, only=only).values
    leaves, treedef = jax.tree.flatten(window.params)
    params = zip(graph.inputs["params"], leaves, strict=True)
    gradients = [found[v] if v in found else jnp.zeros_like(x) for v, x in params]
    return treedef.unflatten(gradients)


def _not_known() -> list[Array]:
    raise ValueError(
        "This rule learns from the gradient of the loss by the whole state, which "
        "another learning signal does not give. Use a rule with traces at the neurons, "
        "such as DRTRL, OSTL or ESDRTRL."
    )


def _at_sites(
    graph: Graph, signals: Sequence[Array | None]
) -> tuple[dict[Edge, Array], list[tuple[Edge, Array]]]:
    """Signals per trace, as those at the results of operations, for the weight alone,
    and as those where weights are read; [k * batch, ...]."""
    of_results: dict[Edge, Array] = {}
    of_reads: list[tuple[Edge, Array]] = []
    for spec, signal in zip(graph.traces, signals):
        if signal is None:
            continue
        site = graph.sites[spec.site]
        flat = signal.reshape(-1, *signal.shape[2:])
        back = functools.partial(site.form.from_canonical, shape=site.shape)
        z = jax.vmap(back)(flat)
        if site.direct:
            of_reads.append((site.edge, z))
        else:
            of_results[site.edge] = of_results.get(site.edge, 0) + z
    return of_results, of_reads


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


def _outer(signal: Array, x: Array) -> Array:
    return jnp.einsum("kBbpo,kBbpc->boc", signal, x)
