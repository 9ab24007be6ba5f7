"""The whole step of one example, h_t = F(θ, h_{t-1}), for rules that follow every path.

The hidden state is one real vector [N]: its leaves end to end, a complex one as its
real and its imaginary part. Derivatives by complex parameters are as `jax.vjp` gives
them, ∂/∂re - i ∂/∂im; being multiplied with real numbers alone, they need no care.
"""

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._analysis import Graph, leaving, of_graph, positions_of
from .._backward import LearningSignals
from .._program import Edge, Env, Value, Var, run, stopped
from .._trace import Trace
from .._window import Window
from ._per_parameter import wider


class At(eqx.Module):
    """What one step of one example starts from: hidden [N], other, inputs."""

    hidden: Array
    other: list[Array]
    inputs: list[Array]


class WholeStep:
    """The steps of a window."""

    def __init__(self, window: Window):
        self.window = window
        self.graph = window.graph

    # ------------------------------------------------------------------ of one example

    def env(
        self,
        at: At,
        wanted: tuple[Var, ...],
        params: Sequence[Array] = (),
        edge: Callable[[Edge, Value], Value] = lambda edge, value: value,
    ) -> Env:
        """The values that are wanted, and those that they need, see `new_state`."""
        graph = self.graph
        leaves, treedef = jax.tree.flatten(self.window.params)
        for i, p in zip(graph.reaching, params):
            leaves[i] = p
        env = graph.bind(treedef.unflatten(leaves), self.window.consts)
        data = (*graph.old, *graph.inputs["other"], *graph.inputs["inputs"])
        values = (*_leaves(graph, at.hidden), *at.other, *at.inputs)
        env.update((v, Value(x, 0)) for v, x in zip(data, values, strict=True))
        return run(graph.program, env, _equations(graph, wanted), edge=edge)

    def new_state(
        self,
        at: At,
        hidden: Array | None = None,
        params: Sequence[Array] = (),
        shifts: Mapping[int, Array] = {},  # noqa: B006 (read only)
    ) -> Array:
        """F, [N].

        **Arguments:**

        - `hidden`: in place of the state before the step.
        - `params`: in place of the parameters that reach the state.
        - `shifts`: by site, something to add to its value, [b, p, o].
        """
        if hidden is not None:
            at = At(hidden, at.other, at.inputs)
        graph = self.graph
        env = self.env(at, graph.new, params, _shifted(graph, shifts))
        return vector([env[v].array for v in graph.new], 0)

    def local_inputs(self, at: At) -> list[Array]:
        """What every site reads, x [b, p, c]."""
        env, result = self.env(at, self.graph.new), []
        for site in self.graph.sites:
            operands = [] if site.direct else [env[v] for v in site.equation.inputs]
            result.append(site.form.local_input(*(o.array for o in operands)))
        return result

    def params(self) -> list[Array]:
        """The parameters that reach the state."""
        leaves = jax.tree.leaves(self.window.params)
        return [leaves[i] for i in self.graph.reaching]

    def push(self, at: At) -> Callable[[Array], Array]:
        """The way of a change [N] of the state through the step."""
        return forwards(lambda h: self.new_state(at, h), at.hidden)

    def jacobians(self, at: At) -> tuple[Array, list[Array]]:
        """∂h_t/∂h_{t-1}, [N, N], and ∂h_t/∂z of every site, [N, b, p, o]."""
        shifts = {
            s: jnp.zeros(site.form.sizes[:3], site.weight.dtype)
            for s, site in enumerate(self.graph.sites)
        }
        value, pull = jax.vjp(
            lambda h, shifts: self.new_state(at, h, shifts=shifts), at.hidden, shifts
        )
        by_state, by_sites = jax.vmap(pull)(jnp.eye(len(value), dtype=value.dtype))
        return by_state, list(by_sites.values())

    def from_exits(self, at: At, signals: Sequence[Array]) -> Array:
        """Σ_e λ_e ∂e/∂h_{t-1} over the exits e of each position, [positions, N].

        `signals` hold λ for every edge. By a group's numbers in h_{t-1} the derivative
        is that along all paths that lead to its own new state, up to where they are
        left.
        """
        graph = self.graph
        exits, position = graph.exits.open, positions_of(graph)
        each = np.arange(position.max(initial=-1) + 1)
        wanted = tuple(map(graph.program.operand, exits))
        columns = []
        for g in range(len(graph.positions.groups)):
            left = leaving(graph, g)
            edge = functools.partial(stopped, left)

            def reached(hidden: Array, edge=edge) -> list[Array]:
                env = self.env(At(hidden, at.other, at.inputs), wanted, edge=edge)
                pairs = zip(wanted, exits.values(), strict=True)
                return [env[v].widen(label.shape).array for v, label in pairs]

            at_position = [
                jnp.where(
                    (label == each.reshape(-1, *(1,) * label.ndim)) & left[e],
                    x[None],
                    0,
                )
                for (e, label), x in zip(exits.items(), signals, strict=True)
            ]
            _, pull = jax.vjp(reached, at.hidden)
            columns.append(jax.vmap(pull)(at_position)[0])
        group = graph.positions.group_of(position)
        return sum(
            (jnp.where(group == g, x, 0) for g, x in enumerate(columns)),
            jnp.zeros((len(each), len(at.hidden)), at.hidden.dtype),
        )

    # -------------------------------------------------------- of all steps and examples

    def signal(self, signals: LearningSignals) -> Array:
        """∂L_t/∂h_{t-1}, [k, batch, N]."""
        return vector(signals.at_states, 2)

    def at(self, t: int) -> At:
        """What step t starts from, with a batch axis."""
        rolled, multi = self.window.rolled, self.window.multi
        inputs = zip(jax.tree.leaves(self.window.inputs), multi, strict=True)
        return At(
            vector([x[t] for x in rolled.hidden], 1),
            [x[t] for x in rolled.other],
            [x[t] if m else x for x, m in inputs],
        )

    def scan(
        self, body: Callable, carry: PyTree, xs: PyTree = None, *, reverse: bool = False
    ) -> PyTree:
        """`carry = body(carry, at, x)`, step after step; all have a batch axis."""
        window = self.window
        if window.length == 1:  # a loop of one step would be compiled as a loop
            return body(carry, self.at(0), jax.tree.map(lambda x: x[0], xs))
        leaves = jax.tree.leaves(window.inputs)
        moving = [x if m else None for x, m in zip(leaves, window.multi, strict=True)]

        def step(carry, slices):
            hidden, other, moving, x = slices
            inputs = [f if m is None else m for f, m in zip(leaves, moving)]
            return body(carry, At(hidden, other, inputs), x), None

        rolled = window.rolled
        slices = (vector(rolled.hidden, 2), rolled.other, moving, xs)
        return lax.scan(step, carry, slices, reverse=reverse)[0]

    def add(self, gradients: PyTree, past: Sequence[Array]) -> PyTree:
        """Adds what is known of the parameters that reach the state."""
        leaves, treedef = jax.tree.flatten(gradients)
        for i, x in zip(self.graph.reaching, past, strict=True):
            leaves[i] = leaves[i] + x.astype(leaves[i].dtype)
        return treedef.unflatten(leaves)


def check_apart(graph: Graph, name: str) -> None:
    """Raises if the step of an example is not one of its own."""
    if graph.across is not None:
        raise ValueError(
            f"{name}: the new state depends on other examples, by an operation "
            f"over the axis {graph.across!r} (statistics of a batch?), but this rule "
            "follows each example by itself. Use DRTRL or another local rule, or "
            "constant statistics, as eqx.nn.inference_mode makes them."
        )


class WholeStepRule(ETraceVjpAlgorithm):
    """A rule that takes one step after the other."""

    def _check_graph(self, graph: Graph) -> None:
        check_apart(graph, self.name)

    @abc.abstractmethod
    def _contract(self, data: PyTree, step: WholeStep, at: At, signal: PyTree) -> Any:
        """The gradient of the past for the signals of one step, linear in them and
        summed over the batch."""

    @abc.abstractmethod
    def _advance(self, data: PyTree, step: WholeStep, at: At) -> PyTree:
        """The trace after one more step, which all examples take."""

    def _signal(self, step: WholeStep, signals: LearningSignals) -> PyTree:
        """What `_contract` is given, [k, batch, ...]."""
        return step.signal(signals)

    def _past(self, data: PyTree, window: Window, signals: LearningSignals) -> Any:
        """Σ_t (signal of step t) · (the trace before step t)."""
        step = WholeStep(window)
        signal = self._signal(step, signals)

        def body(carry, at, signal):
            data, total = carry
            more = self._contract(data, step, at, signal)
            return self._advance(data, step, at), jax.tree.map(jnp.add, total, more)

        like = jax.eval_shape(
            lambda data, at, signal: self._contract(data, step, at, signal),
            *(data, step.at(0), jax.tree.map(lambda x: x[0], signal)),
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        return step.scan(body, (data, zeros), signal)[1]

    def _update_etrace_data(self, data: PyTree, window: Window) -> PyTree:
        step = WholeStep(window)
        return step.scan(lambda data, at, _: self._advance(data, step, at), data)

    def _get_etrace_data(self, trace: Trace) -> PyTree:
        data = super()._get_etrace_data(trace)
        return jax.tree.map(lambda x: working(x, trace.graph), data)


def forwards(fun: Callable, primal: Any) -> Callable[[Any], Array]:
    """The derivative of `fun`, [N], as a linear function of a change of `primal`.

    It is the transpose of `jax.vjp`: a surrogate derivative given by `jax.custom_vjp`
    has no `jax.jvp`.
    """
    value, pull = jax.vjp(fun, primal)
    _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jnp.zeros_like(value))
    return lambda tangent: push(tangent)[0]


def vector(leaves: Sequence[Array], lead: int) -> Array:
    """Leaves with `lead` axes in front, end to end."""
    dtype = wider(*leaves)
    flat = [x.reshape(*x.shape[:lead], -1).astype(dtype) for x in leaves]
    return jnp.concatenate(flat, axis=lead)


def state_size(graph: Graph) -> int:
    """N, the number of real numbers in the hidden state."""
    return sum(v.size for v in graph.old)


def stored_dtype(trace_dtype: Any, own: Any) -> Any:
    """What to store numbers of dtype `own` in; complex ones stay complex."""
    if trace_dtype is None or not jnp.issubdtype(own, jnp.complexfloating):
        return trace_dtype or own
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(trace_dtype, jnp.complex64)


def working(x: Array, graph: Graph) -> Array:
    """A trace in the dtype to compute in: as wide as the state, and float32 at least.

    What is no number of the trace (a key) stays as it is.
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    with jax.numpy_dtype_promotion("standard"):
        dtypes = [x.dtype, jnp.float32, *(v.dtype for v in graph.old)]
        return x.astype(functools.reduce(jnp.promote_types, dtypes))


def _leaves(graph: Graph, hidden: Array) -> list[Array]:
    """The inverse of `vector`, with the shapes and dtypes of the state."""
    result, start = [], 0
    for v in graph.old:
        part = hidden[start : start + v.size]
        result.append(part.reshape(v.shape).astype(v.dtype))
        start += v.size
    return result


def _shifted(
    graph: Graph, shifts: Mapping[int, Array]
) -> Callable[[Edge, Value], Value]:
    """Adds to the values of sites wherever they are read."""
    at_edges, at_values = {}, {}
    for s, shift in shifts.items():
        site = graph.sites[s]
        own = site.form.from_canonical(shift, site.shape)
        if site.direct:
            at_edges[site.edge] = own
        else:
            at_values[site.equation.outputs[0]] = own

    def edge(at: Edge, value: Value) -> Value:
        if at in at_edges:
            value = value.widen(at_edges[at].shape)
            return Value(value.array + at_edges[at], 0)
        shift = at_values.get(graph.program.operand(at))
        return value if shift is None else Value(value.array + shift, 0)

    return edge


@of_graph
def _equations(graph: Graph, wanted: tuple[Var, ...]) -> tuple[int, ...]:
    """The equations that these values need; none that only acts (a print)."""
    needed, result = set(wanted), []
    for i, e in reversed(list(enumerate(graph.program.equations))):
        if any(v in needed for v in e.outputs):
            needed.update(e.inputs)
            result.append(i)
    return tuple(reversed(result))
