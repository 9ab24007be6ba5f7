"""Rules that look at the whole step: RTRL against BPTT, its random estimates against
RTRL."""

import dataclasses
import io
import warnings
from collections.abc import Callable
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
from etrace._analysis.cache import forget
from etrace.testing._vectors import to_vector

from .helpers import examples, fresh_caches, gradient_by_windows, siblings

TOLERANCE = 1e-9
KEYS = 4000
RANDOM = [etrace.UORO, etrace.KFRTRL]
WHOLE = [etrace.RTRL, *RANDOM]


def options(rule: type, seed: int = 0) -> dict[str, Any]:
    return {"key": jax.random.key(seed)} if rule in RANDOM else {}


def of_kind(kind: str) -> st.SearchStrategy[et.NetSpec]:
    def with_kind(spec: et.NetSpec) -> et.NetSpec:
        first = dataclasses.replace(spec.layers[0], kind=kind)
        return dataclasses.replace(spec, layers=(first, *spec.layers[1:]), tied=False)

    others = ["gru", "lif", "lstm"]
    return et.net_specs(kinds=[kind, *others], max_layers=2).map(with_kind)


# -------------------------------------------------------------------------------- RTRL


@pytest.mark.parametrize(
    "kind", examples(ci=("gru", "complex_lru"), thorough=[*et.CELLS])
)
def test_rtrl_is_bptt(kind: str):
    """Norms, encoders and factored weights are no exception."""
    shares = []

    @hypothesis.settings(max_examples=examples(ci=1, thorough=20))
    @hypothesis.given(
        problem=et.problems(specs=of_kind(kind), lengths=st.just(5)),
        method=st.sampled_from(["single-step", "multi-step"]),
    )
    def run(problem: et.Problem, method: str):
        fresh_caches()
        for each in siblings(problem):
            compare(each, method)

    def compare(problem: et.Problem, method: str):
        value, expected = problem.bptt()
        shares.append(et.gradient_distance(expected, problem.truncated(window=1)[1]))
        gradient = gradient_by_windows(etrace.RTRL, problem, method)
        for split in ((1,) * 5, (3, 1, 1), (1, 3, 1)):
            got, grads = gradient(split)
            assert jnp.allclose(got, value, rtol=TOLERANCE)
            assert et.gradient_distance(grads, expected) < TOLERANCE

    run()
    assert max(shares) > 1e-3  # else an agreement says nothing about the trace


EVERYTHING = et.NetSpec(
    (et.LayerSpec("gru", 3, norm=True), et.LayerSpec("lif", 2, delayed=True)),
    encoder=True,
    feedback=True,
    counter=True,
    second_input=True,
)


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_batched_rtrl_is_bptt(method: str):
    problem = et.make_problem(EVERYTHING, length=5, batch=3, random_state=True)
    _, expected = problem.bptt()
    assert et.gradient_distance(expected, problem.truncated(window=2)[1]) > 1e-2
    gradient = gradient_by_windows(etrace.RTRL, problem, method)
    for split in ((1,) * 5, (2, 3)):
        assert et.gradient_distance(gradient(split)[1], expected) < TOLERANCE


def test_breaking_the_influence_is_noticed():
    class Forgetful(etrace.RTRL):
        def _update_etrace_data(self, data, window):
            new = super()._update_etrace_data(data, window)
            return jax.tree.map(lambda a, b: a - 0.1 * b, new, data)

    problem = et.make_problem(EVERYTHING, length=5)
    _, expected = problem.bptt()
    _, grads = gradient_by_windows(Forgetful, problem, "single-step")((1,) * 5)
    assert et.gradient_distance(grads, expected) > 1e-3


class ComplexNet(eqx.Module):
    """Complex weights and a complex state, all of them talking to each other."""

    recurrent: jax.Array
    inp: jax.Array
    readout: jax.Array

    def __init__(self, n: int = 3):
        draw = np.random.default_rng(0).normal
        self.recurrent = jnp.asarray(0.4 * (draw(size=(n, n)) + 1j * draw(size=(n, n))))
        self.inp = jnp.asarray(draw(size=(n, 2)) + 1j * draw(size=(n, 2)))
        self.readout = jnp.asarray(draw(size=(2, n)))

    def init_state(self):
        return jnp.zeros(len(self.inp), complex)

    def __call__(self, h, x):
        h = self.recurrent @ h + self.inp @ x.astype(complex)
        h = h / jnp.sqrt(1 + jnp.abs(h) ** 2).astype(complex)
        return self.readout @ (h.real + h.imag**2), h


@jax.custom_vjp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g / (1 + jnp.abs(v)) ** 2,))


class Elementwise(eqx.Module):
    """One weight a neuron; its spikes, with a derivative in reverse mode alone, reach
    all others."""

    gain: jax.Array
    leak: jax.Array

    def __init__(self, n: int = 3):
        self.gain, self.leak = jnp.linspace(0.5, 2, n), jnp.linspace(-1, 1, n)

    def init_state(self):
        return jnp.zeros(len(self.gain)), jnp.zeros(len(self.gain))

    def __call__(self, state, x):
        v, s = state
        v = jax.nn.sigmoid(self.leak) * v + self.gain * x[0] + x[1] - 0.2 * jnp.sum(s)
        s = spike(v - 0.3)
        return s[:2] + 0.1 * v[:2], (v, s)


def sequence(model: eqx.Module, steps: int = 5) -> tuple[Callable, Any, Any]:
    """The online gradient of a model as a function of algorithm and window, the exact
    and the instantaneous one."""
    draw = np.random.default_rng(1).normal
    inputs, targets = (jnp.asarray(draw(size=(steps, 2))) for _ in range(2))

    def online(algorithm: Any, window: int) -> Any:
        driver = etrace.value_and_grad(
            et.squared_error, window=window, reduction="sum", carry=False
        )
        return driver(algorithm, None, inputs, targets)[1]

    _, exact = et.bptt(model, et.squared_error, inputs, targets)
    _, now = et.truncated(model, et.squared_error, inputs, targets, window=1)
    assert et.gradient_distance(exact, now) > 1e-2
    return online, exact, now


@pytest.mark.parametrize("model", [ComplexNet(), Elementwise()])
@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_rtrl_of_complex_weights_and_custom_derivatives(model: Any, method: str):
    online, exact, _ = sequence(model)
    for window in (1, 2):
        grads = online(etrace.RTRL(model, vjp_method=method), window)
        assert et.gradient_distance(grads, exact) < TOLERANCE


def test_kfrtrl_is_exact_where_nothing_is_contracted():
    online, exact, _ = sequence(Elementwise())
    for window in (1, 2):
        grads = online(etrace.KFRTRL(Elementwise(), key=jax.random.key(0)), window)
        assert et.gradient_distance(grads, exact) < TOLERANCE


# ----------------------------------------------------------------------- random signs


UNBIASED = {
    "gru": et.NetSpec((et.LayerSpec("gru", 2), et.LayerSpec("leaky", 2))),
    "complex": et.NetSpec((et.LayerSpec("complex_lru", 2),), counter=True),
    "conv": et.NetSpec((et.LayerSpec("leaky", 2, form="conv1d"),)),
    "shared": et.NetSpec((et.LayerSpec("alif", 2, shared_decay=True, gain=True),)),
}


def unbiased(gradients: jax.Array, exact: jax.Array, now: jax.Array) -> None:
    """[keys, parameters] have the mean `exact`, within four standard errors."""
    error = jnp.std(gradients, axis=0) / len(gradients) ** 0.5
    room = 4 * error + 1e-9 * jnp.linalg.norm(exact)
    assert (jnp.abs(gradients.mean(axis=0) - exact) < room).all()
    # What is tested is far from zero, in the same units.
    assert (jnp.abs(now - exact) / room).max() > 3
    spread = jnp.linalg.norm(jnp.std(gradients, axis=0)) / jnp.linalg.norm(exact)
    print(f"relative standard deviation {spread:.2f}")


@pytest.mark.parametrize("rule", RANDOM)
@pytest.mark.parametrize(
    "name, method, window",
    [
        ("gru", "single-step", 1),
        ("conv", "multi-step", 2),
        *examples(
            ci=[], thorough=[("complex", "single-step", 5), ("shared", "multi-step", 1)]
        ),
    ],
)
def test_random_rules_are_unbiased(rule: Any, name: str, method: str, window: int):
    problem = et.make_problem(UNBIASED[name], length=5, random_state=True)
    driver = etrace.value_and_grad(problem.loss_fn, window=window, reduction="sum")

    # As arguments: before JAX 0.9, XLA folds constant convolutions wrongly.
    @eqx.filter_jit
    @eqx.filter_vmap(in_axes=(0, None, None, None, None))
    def gradient(key, model, state, inputs, targets) -> jax.Array:
        algorithm = rule(model, vjp_method=method, key=key)
        hidden, other = eqx.partition(state, eqx.is_inexact_array)
        state = (hidden, other, algorithm.init(inputs[0])[2])
        return to_vector(driver(algorithm, state, inputs, targets)[1])

    keys = jax.random.split(jax.random.key(1), KEYS)
    data = (problem.state, problem.inputs, problem.targets)
    gradients = gradient(keys, problem.model, *data)
    _, exact = gradient_by_windows(etrace.RTRL, problem, "single-step")((1,) * 5)
    _, now = problem.truncated(window=window if method == "multi-step" else 1)
    unbiased(gradients, to_vector(exact), to_vector(now))


@pytest.mark.parametrize("rule", RANDOM)
def test_random_rules_are_unbiased_for_complex_weights(rule: Any):
    model = ComplexNet()
    online, exact, now = sequence(model)
    keys = jax.random.split(jax.random.key(1), KEYS)
    gradients = jax.vmap(lambda key: to_vector(online(rule(model, key=key), 1)))(keys)
    unbiased(gradients, to_vector(exact), to_vector(now))


LIGHT = et.NetSpec((et.LayerSpec("leaky", 3),), counter=True, second_input=True)


def of_key(rule: Any, problem: et.Problem, window: int, **options: Any) -> Callable:
    """The online gradient as a function of a key, inputs and targets."""
    driver = etrace.value_and_grad(
        problem.loss_fn, window=window, reduction="sum", carry=False
    )

    def gradient(key: jax.Array, inputs: Any, targets: Any) -> jax.Array:
        algorithm = rule(problem.model, key=key, **options)
        return to_vector(driver(algorithm, None, inputs, targets)[1])

    return gradient


@pytest.mark.parametrize("rule", RANDOM)
def test_same_key_same_numbers(rule: Any):
    """Whatever the split into windows."""
    problem = et.make_problem(LIGHT, length=5)
    keys, first = jax.random.split(jax.random.key(0)), None
    for window in (1, 2):
        gradient = jax.jit(of_key(rule, problem, window))
        same, again, different = (
            gradient(keys[i], problem.inputs, problem.targets) for i in (0, 0, 1)
        )
        first = first if window > 1 else same
        assert et.gradient_distance(same, first) < TOLERANCE
        assert (same == again).all()
        assert et.gradient_distance(different, first) > 1e-3


@pytest.mark.parametrize("rule", RANDOM)
def test_every_example_draws_its_own_signs(rule: Any):
    problem = et.make_problem(LIGHT, length=5, batch=3)
    data, key = (problem.inputs, problem.targets), jax.random.key(3)
    batched = of_key(rule, problem, 2, batched=True)(key, *data)
    each = jax.vmap(of_key(rule, problem, 2), (0, 1, 1))
    expected = each(jax.random.split(key, 3), *data).sum(axis=0)
    one_stream = each(jnp.stack([key] * 3), *data).sum(axis=0)
    assert et.gradient_distance(batched, expected) < TOLERANCE
    assert et.gradient_distance(batched, one_stream) > 1e-3


@pytest.mark.parametrize("rule", RANDOM)
def test_the_key_is_kept_with_the_trace(rule: Any):
    """Going on from a saved state gives the same numbers; any kind of key will do."""
    model = ComplexNet()
    x = jnp.ones((4, 2))
    for key in (
        jax.random.key(0),
        jax.random.PRNGKey(0),
        jax.random.key(0, impl="rbg"),
    ):
        algorithm = rule(model, key=key)
        start = algorithm.init(x[0])
        _, *state = algorithm.update(*start, etrace.MultiStepData(x))
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, state)
        file.seek(0)
        found = eqx.tree_deserialise_leaves(file, state)
        after = [algorithm.update(*s, x[0])[3].data for s in (state, found)]
        assert eqx.tree_equal(*after)
        drawn = [s.data.key for s in (start[2], state[2])]
        assert all(k.dtype == jnp.uint32 for k in drawn)
        assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize("rule", RANDOM)
def test_a_key_can_be_used_again(rule: Any):
    """Though a driver writes over the memory of the state it is given."""
    key, x = jax.random.PRNGKey(0), jnp.ones((4, 2))
    algorithm = rule(ComplexNet(), key=key)
    driver = etrace.value_and_grad(et.squared_error, window=2)
    first, second = (driver(algorithm, algorithm.init(x[0]), x, x)[1] for _ in "12")
    assert eqx.tree_equal(first, second)
    assert not key.is_deleted()


@pytest.mark.parametrize("rule", RANDOM)
@pytest.mark.parametrize(
    "key", [0, None, jnp.zeros(3), jax.random.split(jax.random.key(0))]
)
def test_a_key_is_asked_for(rule: Any, key: Any):
    with pytest.raises(TypeError, match="key is .*expected one random key"):
        rule(ComplexNet(), key=key)


# ------------------------------------------------------------------ dtypes and reports


@pytest.mark.parametrize("rule", WHOLE)
@pytest.mark.parametrize("model", [ComplexNet(), Elementwise()])
@pytest.mark.parametrize("batched", examples(ci=[True], thorough=[False, True]))
def test_traces_are_stored_as_asked(rule: Any, model: Any, batched: bool):
    """And the report knows their size."""
    x = jnp.ones((4, 2) if batched else 2)
    full, short = (
        rule(model, batched=batched, trace_dtype=dtype, **options(rule))
        for dtype in (None, jnp.bfloat16)
    )
    sizes = []
    for algorithm in (full, short):
        state = algorithm.init(x)
        _, *state = algorithm.update(*state, x)
        stored = jax.tree.leaves(state[2].data)
        assert algorithm.graph(x).nbytes == sum(a.nbytes for a in stored)
        sizes.append(sum(a.nbytes for a in stored))
        assert all(jnp.isfinite(a).all() for a in stored if eqx.is_inexact_array(a))
    assert sizes[1] < 0.7 * sizes[0]


class Filtered(eqx.Module):
    """A state and a running mean of it, which is no path for credit if filtered."""

    recurrent: jax.Array
    held: bool

    def init_state(self):
        return jnp.zeros(2), jnp.zeros(2)

    def __call__(self, state, x):
        h, mean = state
        known = jax.lax.stop_gradient(mean) if self.held else mean
        h = jnp.tanh(self.recurrent @ h + x + known)
        return h, (h, 0.9 * mean + 0.1 * h)


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_other_state_is_carried_and_never_credited(method: str):
    weight = jnp.array([[0.5, -0.3], [0.4, 0.6]])
    _, exact, _ = sequence(Filtered(weight, held=True))
    online, through, _ = sequence(Filtered(weight, held=False))
    assert et.gradient_distance(exact, through) > 1e-2
    options = {"vjp_method": method, "hidden_filter": (True, False)}
    algorithm = etrace.RTRL(Filtered(weight, held=False), **options)
    for window in (1, 2):
        assert et.gradient_distance(online(algorithm, window), exact) < TOLERANCE


@pytest.mark.parametrize("rule", [etrace.RTRL, etrace.UORO])
def test_every_parameter_is_traced(rule: Any):
    problem = et.make_problem(EVERYTHING, length=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        algorithm = rule(problem.model, **options(rule))
        report = algorithm.graph(*(x[0] for x in problem.inputs))
    status = {row.parameter: row.status for row in report.rows}
    for name, found in status.items():
        assert found == ("output" if "readout" in name else "traced")
    assert ".encoder" in status
    text = str(report)
    assert "Cut" not in text and "mixing operation" not in text
    forget()
    with pytest.warns(etrace.UntracedParameterWarning):  # of the same model
        etrace.DRTRL(problem.model).graph(*(x[0] for x in problem.inputs))


# --------------------------------------------------------------------------------- cost


class Diagonal(eqx.Module):
    """N neurons with a decay each, seen by two outputs."""

    decay: jax.Array
    readout: jax.Array

    def init_state(self):
        return jnp.zeros_like(self.decay)

    def __call__(self, h, x):
        h = jax.nn.sigmoid(self.decay) * h + x[0]
        return self.readout @ h, h


def compiled(algorithm: Any, window: int = 3) -> Any:
    x = jnp.ones((window, 2))
    driver = etrace.value_and_grad(et.squared_error, window=window)
    state = algorithm.init(x[0])
    arrays, static = eqx.partition((algorithm, state), eqx.is_array)

    def run(arrays: Any) -> Any:
        algorithm, state = eqx.combine(arrays, static)
        return eqx.filter(driver(algorithm, state, x, x), eqx.is_array)

    return jax.jit(run).lower(arrays).compile()


def compiled_bytes(algorithm: Any) -> int:
    """The temporary memory of a window, and that of its results."""
    memory = compiled(algorithm).memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def test_uoro_is_as_small_as_the_model():
    n = 1000
    model = Diagonal(jnp.zeros(n), jnp.ones((2, n)))
    key = jax.random.key(0)
    assert compiled_bytes(etrace.UORO(model, key=key)) < 100 * n * 8
    assert compiled_bytes(etrace.RTRL(model)) > n * n * 8


def test_the_time_of_uoro_is_linear_in_the_parameters():
    operations, sizes = [], []
    for neurons in (20, 40, 80):
        layer = et.LayerSpec("leaky", neurons)
        problem = et.make_problem(et.NetSpec((layer,), inputs=2), length=2)
        algorithm = etrace.UORO(problem.model, key=jax.random.key(0))
        operations.append(compiled(algorithm).cost_analysis()["flops"])
        params = eqx.filter(problem.model, eqx.is_inexact_array)
        sizes.append(sum(x.size for x in jax.tree.leaves(params)))
    for i in (0, 1):
        assert operations[i + 1] / operations[i] < 1.1 * sizes[i + 1] / sizes[i]


def test_kfrtrl_holds_little_beside_its_factors():
    """Not the influence, N × N × c numbers."""
    problem = et.make_problem(et.NetSpec((et.LayerSpec("leaky", 40),), inputs=2))
    algorithm = etrace.KFRTRL(problem.model, key=jax.random.key(0))
    factors = algorithm.graph(problem.inputs[0]).nbytes
    assert compiled_bytes(algorithm) < 8 * factors < 40 * 40 * 40 * 8 * 4
    assert compiled_bytes(etrace.RTRL(problem.model)) > 40 * 40 * 40 * 8
