"""SnAp: its pattern, its recursion on dense matrices, and where it is exact."""

import itertools
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.testing as et
from etrace._analysis.sparsity import pattern, reach
from etrace._rules._snap import _blocks
from etrace.testing._vectors import from_vector, to_vector

from .helpers import examples, fresh_caches, gradient_by_windows
from .mistakes import as_a_user

TOLERANCE = 1e-9

# ------------------------------------------------------------------------ the pattern


def jacobian_pattern(problem: et.Problem) -> np.ndarray:
    """Where ∂h_t/∂h_{t-1} is not zero, for random states."""
    state = problem.model.init_state()
    hidden, other = eqx.partition(state, eqx.is_inexact_array)
    inputs = problem.inputs if isinstance(problem.inputs, tuple) else (problem.inputs,)

    @jax.jit
    def jacobian(vector: jax.Array, *x: jax.Array) -> jax.Array:
        def step(vector: jax.Array) -> jax.Array:
            old = eqx.combine(from_vector(vector, hidden), other)
            new = problem.model(old, *x)[1]
            return to_vector(eqx.filter(new, eqx.is_inexact_array))

        return jax.jacrev(step)(vector)

    draw, total = np.random.default_rng(0), 0
    for t in range(len(inputs[0])):
        vector = jnp.asarray(draw.normal(size=to_vector(hidden).size))
        total = total + np.abs(jacobian(vector, *(x[t] for x in inputs)))
    return np.asarray(total) != 0


def graph_of(problem: et.Problem) -> Any:
    inputs = problem.inputs if isinstance(problem.inputs, tuple) else (problem.inputs,)
    # RTRL never warns of what it leaves untraced.
    return etrace.RTRL(problem.model).graph(*(x[0] for x in inputs)).graph


SHARP = {
    "masked": et.LayerSpec("gru", 4, expression="mask"),
    "selected": et.LayerSpec("leaky", 4, expression="select"),
    "norm": et.LayerSpec("leaky", 3, norm=True),
    "conv": et.LayerSpec("gru", 2, form="conv1d"),
    "local": et.LayerSpec("alif", 3, recurrent=False),
    "complex": et.LayerSpec("complex_lru", 3),
}


@pytest.mark.parametrize("name", SHARP)
def test_the_pattern_is_that_of_the_jacobian(name: str):
    above = et.LayerSpec("lif", 2)
    layers = (SHARP[name],) if name == "conv" else (SHARP[name], above)
    problem = et.make_problem(et.NetSpec(layers), length=4)
    found = pattern(graph_of(problem))
    np.testing.assert_array_equal(found, jacobian_pattern(problem))
    assert not found.all() or name == "conv"


@hypothesis.settings(max_examples=examples(ci=5, thorough=60))
@hypothesis.given(problem=et.problems(lengths=st.just(3)))
def test_the_pattern_holds_every_entry(problem: et.Problem):
    fresh_caches()
    found = pattern(graph_of(problem))
    assert not (jacobian_pattern(problem) & ~found).any()


# -------------------------------------------------------------------- a sparse network

N = 5
RING = np.eye(N) + np.roll(np.eye(N), 1, axis=0)  # each reads itself and a neighbour


class Ring(eqx.Module):
    """h' = tanh((U * ring) h + W x + b), read out linearly."""

    recurrent: jax.Array
    inp: jax.Array
    bias: jax.Array
    readout: jax.Array
    ring: np.ndarray

    def __init__(self):
        draw = np.random.default_rng(0).normal
        shapes = ((N, N), (N, 2), (N,), (2, N))
        arrays = [jnp.asarray(0.8 * draw(size=shape)) for shape in shapes]
        self.recurrent, self.inp, self.bias, self.readout = arrays
        self.ring = RING.astype(int)

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        weight = self.recurrent * self.ring.astype(float)
        h = jnp.tanh(weight @ h + self.inp @ x + self.bias)
        return self.readout @ h, h


def data(steps: int = 6) -> tuple[jax.Array, jax.Array]:
    draw = np.random.default_rng(1).normal
    return jnp.asarray(draw(size=(steps, 2))), jnp.asarray(draw(size=(steps, 2)))


def weights(model: Ring) -> tuple[jax.Array, ...]:
    return model.recurrent * RING, model.inp, model.bias


def step(theta: jax.Array, h: jax.Array, x: jax.Array) -> jax.Array:
    weight, inp, bias = from_vector(theta, weights(Ring()))
    return jnp.tanh(weight @ h + inp @ x + bias)


def reached(n: int) -> np.ndarray:
    """[N, weights]: each neuron's weights reach it, and n - 1 neighbours onwards."""
    near = np.linalg.matrix_power(RING, n - 1).astype(bool).astype(float)
    return np.concatenate(
        [np.repeat(near, N, axis=1), np.repeat(near, 2, axis=1), near], axis=1
    )


def dense(n: int, window: int | None) -> tuple[Any, jax.Array]:
    """The gradient with respect to recurrent, inp and bias, and the last influence.

    `window` is None for the single-step method.
    """
    model, (inputs, targets), mask = Ring(), data(), reached(n)
    theta, h = to_vector(weights(model)), jnp.zeros(N)
    m, gradient = jnp.zeros((N, theta.size)), jnp.zeros_like(theta)

    def loss(theta: jax.Array, h: jax.Array, part: slice) -> jax.Array:
        total = jnp.zeros(())
        for x, target in zip(inputs[part], targets[part], strict=True):
            h = step(theta, h, x)
            total += et.squared_error(model.readout @ h, target)
        return total

    for t, x in enumerate(inputs):
        if window is not None and t % window == 0:
            now, boundary = jax.grad(loss, (0, 1))(theta, h, slice(t, t + window))
            gradient += now + boundary @ m
        by_theta, by_h = jax.jacrev(step, (0, 1))(theta, h, x)
        m = mask * (by_h @ m + by_theta)
        h = step(theta, h, x)
        if window is None:  # what the read-out sees, with its immediate part
            gradient += model.readout.T @ (model.readout @ h - targets[t]) @ m
    recurrent, *others = from_vector(gradient, weights(model))
    return (recurrent * RING, *others), m


@pytest.mark.parametrize(
    "n, window",
    examples(
        ci=[(1, None), (2, 1), (3, 3)],
        thorough=[*itertools.product([1, 2, 3, 5], [None, 1, 2, 3])],
    ),
)
def test_equals_masked_dense_matrices(n: int, window: int | None):
    model, (inputs, targets) = Ring(), data()
    method = "single-step" if window is None else "multi-step"
    algorithm = etrace.SnAp(model, vjp_method=method, n=n)
    expected, influence = dense(n, window)
    _, now = et.truncated(model, et.squared_error, inputs, targets, window=window or 1)
    for k in (1, 2, 3) if window is None else (window,):
        driver = etrace.value_and_grad(et.squared_error, window=k, reduction="sum")
        state = algorithm.init(inputs[0])
        _, grads, state = driver(algorithm, state, inputs, targets)
        got = (grads.recurrent, grads.inp, grads.bias)
        assert et.gradient_distance(got, expected) < TOLERANCE
        short = (now.recurrent, now.inp, now.bias)
        assert et.gradient_distance(got, short) > 1e-2
        np.testing.assert_allclose(unpacked(state[2], n), influence, atol=1e-12)


def unpacked(trace: etrace.Trace, n: int) -> np.ndarray:
    """The stored blocks as a dense matrix, in the order of `weights`."""
    graph, found = trace.graph, {}
    for t, blocks in enumerate(_blocks(graph, n)):
        site = graph.sites[graph.traces[t].site]
        b, _, o, c = site.form.sizes
        dense = np.zeros((N, b * o, c))
        for block, m in zip(blocks, trace.data[t], strict=True):
            dense[block.rows, block.columns[:, None]] = m
        found[b * o * c] = dense.reshape(N, -1)
    return np.concatenate([found[size] for size in (N * N, 2 * N, N)], axis=1)


def test_only_the_pattern_is_stored():
    x = data()[0][0]
    for n, near in ((1, 1), (2, 2), (3, 3), (9, N)):
        report = etrace.SnAp(Ring(), n=n).graph(x)
        assert report.nbytes == N * near * (N + 2 + 1) * 8
        assert report.nbytes == sum(row.nbytes for row in report.rows)
        *_, trace = etrace.SnAp(Ring(), n=n, trace_dtype=jnp.float32).init(x)
        stored = sum(a.nbytes for a in jax.tree.leaves(trace.data))
        assert stored == report.nbytes // 2


def test_breaking_the_recursion_is_noticed():
    class Forgetful(etrace.SnAp):
        def _update_etrace_data(self, data, window):
            new = super()._update_etrace_data(data, window)
            return jax.tree.map(lambda a, b: a - 0.1 * b, new, data)

    driver = etrace.value_and_grad(et.squared_error, reduction="sum", carry=False)
    _, grads = driver(Forgetful(Ring(), n=2), None, *data())
    got = (grads.recurrent, grads.inp, grads.bias)
    assert et.gradient_distance(got, dense(2, None)[0]) > 1e-3


# ------------------------------------------------------------------- where it is exact

FAR = {
    "gru": et.NetSpec((et.LayerSpec("gru", 3, expression="mask"),)),
    "tanh below": et.NetSpec((et.LayerSpec("tanh", 2), et.LayerSpec("lif", 2))),
    "feedback": et.NetSpec(
        (et.LayerSpec("gru", 2), et.LayerSpec("alif", 2, delayed=True)), feedback=True
    ),
    "conv": et.NetSpec((et.LayerSpec("leaky", 2, form="conv1d"),), counter=True),
    "complex": et.NetSpec((et.LayerSpec("complex_lru", 2), et.LayerSpec("gru", 2))),
}


@pytest.mark.parametrize("name", examples(ci=("gru", "feedback"), thorough=tuple(FAR)))
def test_reaching_everything_is_bptt(name: str):
    problem = et.make_problem(FAR[name], length=5, batch=2, random_state=True)
    _, expected = problem.bptt()
    methods = ("single-step", "multi-step")
    for method in methods if name == "gru" else examples(methods[:1], methods):
        gradient = gradient_by_windows(etrace.SnAp, problem, method, n=9)
        for split in ((1,) * 5, (2, 1, 2)):
            assert et.gradient_distance(gradient(split)[1], expected) < TOLERANCE
    _, less = gradient_by_windows(etrace.SnAp, problem, "single-step", n=1)((1,) * 5)
    assert et.gradient_distance(less, expected) > 1e-3


@pytest.mark.parametrize(
    "kind",
    examples(
        ci=("lif", "complex_lru"),
        thorough=("lru", "mingru", "leaky", "lif", "complex_lru"),
    ),
)
def test_one_step_is_exact_without_recurrent_weights(kind: str):
    layer = et.LayerSpec(kind, 3, recurrent=False)
    problem = et.make_problem(et.NetSpec((layer,)), length=5, random_state=True)
    _, expected = problem.bptt()
    assert et.gradient_distance(problem.truncated(window=1)[1], expected) > 1e-3
    graph = graph_of(problem)
    for one, all_ in zip(reach(graph, 1), reach(graph, 9), strict=True):
        np.testing.assert_array_equal(one, all_)
    _, grads = gradient_by_windows(etrace.SnAp, problem, "single-step", n=1)((2, 3))
    assert et.gradient_distance(grads, expected) < TOLERANCE


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_a_number_of_steps_is_asked_for(n: Any):
    match = "n is .*expected the number of steps"
    with as_a_user(), pytest.raises(ValueError, match=match):
        etrace.SnAp(Ring(), n=n)
