"""Every kind of state and parameter: dtypes, complex numbers, keys and counters, leaves
that get no credit, weights used more than once."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etrace
from etrace.testing import (
    LayerSpec,
    NetSpec,
    bptt,
    gradient_distance,
    make_problem,
    over_batch,
    squared_error,
    truncated,
)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def distance(left, right):
    return float(gradient_distance(left, right))


def gradient(model, xs, targets, *, window=2, **options):
    """The gradient by D-RTRL, in windows."""
    driver = etrace.value_and_grad(squared_error, window=window, reduction="sum")
    return driver(etrace.DRTRL(model, **options), None, xs, targets)[1]


def exact(model, features=2, outputs=3):
    """Asserts that single-step D-RTRL is BPTT, and that the past matters."""
    xs, targets = normal(6, features), normal(6, outputs, seed=9)
    expected = bptt(model, squared_error, xs, targets)[1]
    assert distance(gradient(model, xs, targets), expected) < 1e-12
    now = truncated(model, squared_error, xs, targets)[1]
    assert distance(now, expected) > 1e-2


# Dtypes.


def float64(tree):
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, tree
    )


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.03)])
def test_low_precision_models(dtype, tolerance):
    """Everything keeps the model's dtype; gradients are right to its precision."""
    dtype = jnp.dtype(dtype)
    problem = make_problem(NetSpec((LayerSpec("gru"),)), dtype=dtype)
    driver = etrace.value_and_grad(squared_error, window=2)

    def run(model, xs, targets):
        return driver(etrace.DRTRL(model), None, xs, targets)

    data = problem.model, problem.inputs, problem.targets
    value, grads, (hidden, _, trace) = run(*data)
    arrays = jax.tree.leaves((value, grads, hidden, trace.data))
    assert {x.dtype for x in arrays} == {dtype}
    _, expected, _ = run(*float64(data))
    assert 0 < distance(float64(grads), expected) < tolerance


@pytest.mark.parametrize("batch", [None, 3])
def test_traces_in_low_precision(batch):
    problem = make_problem(NetSpec((LayerSpec("mingru"),)), length=6, batch=batch)
    driver = etrace.value_and_grad(squared_error, window=2, reduction="sum")
    alg = etrace.DRTRL(
        problem.model, trace_dtype=jnp.bfloat16, batched=batch is not None
    )
    _, grads, (hidden, _, trace) = driver(alg, None, problem.inputs, problem.targets)
    assert {x.dtype for x in jax.tree.leaves(trace.data)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((grads, hidden))} == {jnp.dtype(float)}
    assert 1e-6 < distance(grads, problem.bptt()[1]) < 0.01


# Kinds of state.


class ComplexLRU(eqx.Module):
    """h' = λ h + B x, all complex; y = Re(C h) + D Re(h)."""

    eigenvalues: jax.Array
    inputs: jax.Array
    outputs: jax.Array
    real: jax.Array

    def __init__(self):
        angle = normal(3)
        self.eigenvalues = 0.8 * lax.complex(jnp.cos(angle), jnp.sin(angle))
        self.inputs = lax.complex(normal(3, 2, seed=1), normal(3, 2, seed=2))
        self.outputs = lax.complex(normal(2, 3, seed=3), normal(2, 3, seed=4))
        self.real = normal(2, 3, seed=5)

    def init_state(self):
        return jnp.zeros(3, jnp.complex128)

    def __call__(self, h, x):
        h = self.eigenvalues * h + self.inputs @ x.astype(h.dtype)
        return (self.outputs @ h).real + self.real @ h.real, h


def test_complex_state_and_parameters():
    """Gradients in JAX's convention."""
    exact(ComplexLRU(), outputs=2)


def test_complex_state_in_a_batch():
    model, xs = ComplexLRU(), normal(4, 3, 2)
    expected = over_batch(bptt)(model, squared_error, xs, xs)[1]
    assert distance(gradient(model, xs, xs, batched=True), expected) < 1e-12


def test_complex_state_in_one_window():
    model, xs = ComplexLRU(), normal(4, 2)
    grads = gradient(model, xs, xs, window=4, vjp_method="multi-step")
    assert distance(grads, bptt(model, squared_error, xs, xs)[1]) < 1e-12


def test_complex_state_before_the_window():
    """The signal at a multi-step window's start meets the trace."""
    model, xs = ComplexLRU(), normal(4, 2)
    grads = gradient(model, xs, xs, vjp_method="multi-step")
    assert distance(grads, bptt(model, squared_error, xs, xs)[1]) < 1e-12


class Filtered(eqx.Module):
    """A slow average feeds a fast one; `held` stops credit through the slow one."""

    weight: jax.Array
    gain: jax.Array
    held: bool = eqx.field(static=True)

    def init_state(self):
        return {"slow": jnp.zeros(3), "fast": jnp.zeros(3)}

    def __call__(self, state, x):
        slow = lax.stop_gradient(state["slow"]) if self.held else state["slow"]
        slow = 0.9 * slow + jnp.tanh(self.weight @ x)
        fast = 0.7 * state["fast"] + self.gain * slow
        return jnp.tanh(fast), {"slow": slow, "fast": fast}


def test_hidden_filter_divides_the_state():
    model, x = Filtered(normal(3, 2), normal(3), False), jnp.ones(2)
    select = lambda leaf: eqx.is_inexact_array(leaf) and leaf.size == 3  # noqa: E731
    for spec in ({"slow": False, "fast": True}, {"slow": select, "fast": select}):
        alg = etrace.DRTRL(model, hidden_filter=spec)
        hidden, other, _ = alg.init(x)
        _, new_hidden, new_other, _ = alg.update(*alg.init(x), x)
        for h, o in ((hidden, other), (new_hidden, new_other)):
            assert (h["slow"] is None) == (not spec["slow"])
            assert (o["slow"] is None) == (h["slow"] is not None)
            assert h["fast"] is not None and o["fast"] is None


@pytest.mark.parametrize("method, window", [("single-step", 2), ("multi-step", 6)])
def test_hidden_filter_takes_credit_away(method, window):
    weight, gain, xs = normal(3, 2), normal(3, seed=1), normal(6, 2)
    model, targets = Filtered(weight, gain, False), normal(6, 3)
    spec = {"slow": False, "fast": True}
    options = {"vjp_method": method, "hidden_filter": spec}
    grads = gradient(model, xs, targets, window=window, **options)
    held = bptt(Filtered(weight, gain, True), squared_error, xs, targets)[1]
    assert distance((grads.weight, grads.gain), (held.weight, held.gain)) < 1e-12
    full = bptt(model, squared_error, xs, targets)[1]
    assert distance((grads.weight, grads.gain), (full.weight, full.gain)) > 1e-2


class Noisy(eqx.Module):
    """A key and a counter in the state; the first step counts double."""

    weight: jax.Array
    decay: jax.Array
    key: Callable = eqx.field(static=True, default=jax.random.key)

    def init_state(self):
        return jnp.zeros(3), {"key": self.key(7), "count": 0}

    def __call__(self, state, x):
        h, other = state
        key, now = jax.random.split(other["key"])
        drive = jnp.tanh(self.weight @ x + 0.1 * jax.random.normal(now, (3,)))
        drive = jnp.where(other["count"] == 0, 2 * drive, drive)
        h = self.decay * h + drive
        return jnp.tanh(h), (h, {"key": key, "count": other["count"] + 1})


def test_keys_and_integers_are_carried():
    model = Noisy(normal(3, 2), jnp.asarray([0.5, 0.7, 0.9]))
    _, other, _ = etrace.DRTRL(model).init(jnp.ones(2))
    assert sorted(other[1]) == ["count", "key"] and other[0] is None
    exact(model)


def test_examples_get_keys_of_their_own():
    alg = etrace.DRTRL(Noisy(normal(3, 2), jnp.ones(3)), batched=True)
    x = jnp.ones((4, 2))
    hidden, other, trace = alg.init(x)
    keys = np.asarray(jax.random.key_data(other[1]["key"]))
    assert len(np.unique(keys, axis=0)) == 4
    y, hidden, other, _ = alg.update(hidden, other, trace, x)
    assert len(np.unique(np.asarray(y), axis=0)) == 4
    assert other[1]["count"].tolist() == [1, 1, 1, 1]


def test_raw_keys_are_split_like_others():
    """A key of `PRNGKey` is two integers, known by what the step does with it."""
    found = []
    for key in (jax.random.key, jax.random.PRNGKey):
        alg = etrace.DRTRL(Noisy(normal(3, 2), jnp.ones(3), key), batched=True)
        x = jnp.ones((4, 2))
        found.append(alg.update(*alg.init(x), x)[0])
    assert np.array_equal(*found)


class Number(eqx.Module):
    """One neuron: nothing has an axis."""

    weight: jax.Array
    decay: jax.Array

    def init_state(self):
        return 0.0

    def __call__(self, h, x):
        h = self.decay * h + jnp.tanh(self.weight * x)
        return jnp.sin(h), h


def test_numbers_for_a_state():
    model, xs = Number(jnp.asarray(0.3), jnp.asarray(0.8)), normal(6)
    grads = gradient(model, xs, xs)
    assert distance(grads, bptt(model, squared_error, xs, xs)[1]) < 1e-12


class Tokens(eqx.Module):
    """A token and a number in; numbers, integers and truth values out."""

    table: jax.Array
    decay: jax.Array

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, h, token, x):
        h = self.decay * h + jnp.tanh(x * self.table[token])
        return {"h": h, "class": jnp.argmax(h), "active": h > 0}, h


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_what_is_no_float_goes_in_and_out(method):
    """Gradients go around it, to the parameters and to the other input."""
    model = Tokens(normal(4, 3), jnp.asarray([0.5, 0.7, 0.9]))
    tokens, xs = jnp.asarray([0, 3, 1, 3]), normal(4)
    alg = etrace.DRTRL(model, vjp_method=method)
    many = etrace.MultiStepData
    _, *state = alg.update(*alg.init(tokens[0], xs[0]), many(tokens[:2]), many(xs[:2]))

    @eqx.filter_jit
    @eqx.filter_grad
    def online(model_and_xs):
        now, xs = alg.with_model(model_and_xs[0]), model_and_xs[1]
        y, *_ = now.update(*state, many(tokens[2:]), many(xs))
        return jnp.sum(jnp.where(y["active"], y["h"], 0)[-1])

    @eqx.filter_jit
    @eqx.filter_grad
    def whole(model_and_xs):
        (model, last), h = model_and_xs, jnp.zeros(3)
        for token, x in zip(tokens, [*xs[:2], *last]):
            y, h = model(h, token, x)
        return jnp.sum(jnp.where(y["active"], y["h"], 0))

    (grads, inputs), (expected, exact_inputs) = (
        fun((model, xs[2:])) for fun in (online, whole)
    )
    assert distance(grads, expected) < 1e-12
    assert distance(inputs[1], exact_inputs[1]) < 1e-12
    # A single step's input is credited within its step.
    assert (inputs[0] == 0) == (method == "single-step")


# Parameters that are used more than once.


class Twice(eqx.Module):
    """`weight` meets the input, biases the state, and reads it out."""

    weight: jax.Array
    decay: jax.Array

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, h, x):
        drive = jnp.tanh(self.weight @ x) + self.weight.T[0] + self.weight @ jnp.sin(x)
        h = self.decay * h + drive
        return jnp.tanh(self.weight.T @ h), h


def test_a_parameter_in_several_places():
    exact(Twice(normal(3, 2), jnp.asarray([0.5, 0.7, 0.9])), outputs=2)


class Through(eqx.Module):
    """`outer` meets the state directly, `inner` through a product by it."""

    outer: jax.Array
    inner: jax.Array | None

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, h, x):
        inner = self.outer if self.inner is None else self.inner
        h = 0.8 * h + self.outer @ jnp.tanh(inner @ x)
        return jnp.tanh(h), h


def test_a_parameter_directly_and_through_a_mixing_operation():
    """The direct use is traced, the other keeps "now": their gradients add up."""
    weight, xs = normal(3, 3), normal(5, 3)
    with pytest.warns(etrace.UntracedParameterWarning, match="outer"):
        grads = gradient(Through(weight, None), xs, xs)
    apart = Through(weight, weight)
    direct = bptt(apart, squared_error, xs, xs)[1].outer
    now = truncated(apart, squared_error, xs, xs)[1].inner
    assert distance(grads.outer, direct + now) < 1e-12
    assert distance(direct, now) > 1e-2
