"""Initial states that are made of parameters."""

import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace
import etrace.testing as et
from etrace._analysis import graph as _graph
from etrace._analysis.cache import forget
from etrace._model import Initial
from etrace._verify import _reference

from .helpers import clear_caches, examples
from .test_rules import REFERRED, compared

N, IN, STEPS = 3, 2, 6


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return 0.5 * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


INPUTS, TARGETS = 2 * normal(STEPS, IN, seed=5), normal(STEPS, N, seed=6)
DATA = (et.squared_error, INPUTS, TARGETS)


class Local(eqx.Module):
    """h' = tanh(a h + w x), h_0 = tanh(h0)."""

    h0: jax.Array
    a: jax.Array
    w: jax.Array

    def __init__(self):
        self.h0, self.a = normal(N, seed=1), 0.8 + 0.1 * normal(N, seed=2)
        self.w = normal(N, IN, seed=3)

    def init_state(self):
        return jnp.tanh(self.h0)

    def __call__(self, h, x):
        h = jnp.tanh(self.a * h + self.w @ x)
        return h, h


class Settled(Local):
    """h_0 = w c, and no parameter of its own."""

    def init_state(self):
        return self.w @ jnp.array([1.0, -0.5])


def summed(**options: Any) -> Any:
    options = {"reduction": "sum", "carry": False, **options}
    return etrace.value_and_grad(et.squared_error, **options)


def exact(net: Any, inputs: jax.Array = INPUTS, targets: jax.Array = TARGETS) -> Any:
    """The gradient by a loop in plain JAX."""

    def loss(net):
        state, total = net.init_state(), 0.0
        for x, target in zip(inputs, targets, strict=True):
            y, state = net(state, x)
            total += et.squared_error(y, target)
        return total

    return eqx.filter_grad(loss)(net)


def close(a: Any, b: Any) -> bool:
    return bool(et.gradient_distance(a, b) < 1e-9)


# --------------------------------------------------------------------------- gradients


def test_the_oracle_differentiates_it_unless_it_is_given():
    net = Local()
    _, grads = et.bptt(net, *DATA)
    assert close(grads, exact(net)) and jnp.any(grads.h0 != 0)
    _, held = et.bptt(net, *DATA, state=net.init_state())
    assert not jnp.any(held.h0)
    # It belongs to the first window, which is whole.
    _, first = et.truncated(net, *DATA, window=STEPS - 1)
    assert jnp.any(first.h0 != 0) and not close(first.h0, grads.h0)


@pytest.mark.parametrize("net", [Local(), Settled()], ids=["own", "of a weight"])
@pytest.mark.parametrize("rule", [etrace.DRTRL, etrace.RTRL])
def test_exact_where_the_recurrence_is_local(net: Local, rule: Any):
    expected = exact(net)
    for method, windows in {"single-step": (1, 4), "multi-step": (2, STEPS)}.items():
        for window in windows:
            algorithm = rule(net, vjp_method=method)
            _, grads = summed(window=window)(algorithm, None, INPUTS, TARGETS)
            assert close(grads, expected), (method, window)


RECURRENT = et.NetSpec((et.LayerSpec("gru", 2),), initial="matrix")


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_with_a_recurrent_matrix(method: Any):
    """The position-local trace of ∂h_0/∂θ, and the exact one."""
    problem = et.make_problem(RECURRENT, length=4)
    data = (None, problem.inputs, problem.targets)
    _, grads = summed(window=2)(etrace.DRTRL(problem.model, None, method), *data)
    _, expected = problem.dense(vjp_method=method, window=2)
    assert close(grads, expected)
    _, bptt = problem.bptt()
    assert et.gradient_distance(expected.h0, bptt.h0) > 1e-3
    _, now = problem.truncated(window=1)
    assert et.gradient_distance(expected.h0, now.h0) > 1e-3
    _, grads = summed(window=2)(etrace.RTRL(problem.model, None, method), *data)
    assert close(grads, bptt)


@pytest.mark.parametrize(
    "name",
    examples(
        ci=["OTPE, factored", "SnAp"],
        thorough=["OTTT", "OTPE, factored", "SnAp", "RFLO"],
    ),
)
def test_rules_equal_their_references(name: str):
    layers = (et.LayerSpec("leaky", 2), et.LayerSpec("leaky", 2))
    problem = et.make_problem(et.NetSpec(layers, initial="tanh"), length=4)
    assert compared(name, problem, REFERRED[name].methods[0], 2) > 1e-4


def test_complex_numbers():
    class Rotating(Local):
        def __call__(self, h, x):
            h = self.a * h + self.w @ x.astype(complex)
            return h.real * h.imag, h

    turn = 0.9 * jnp.exp(1j * jnp.arange(1.0, N + 1).astype(complex))
    h0 = jax.lax.complex(normal(N, seed=8), normal(N, seed=9))
    new = (h0, turn, normal(N, IN).astype(complex))
    net = eqx.tree_at(lambda m: (m.h0, m.a, m.w), Rotating(), new)
    _, grads = summed(window=2)(etrace.DRTRL(net), None, INPUTS, TARGETS)
    assert close(grads, exact(net)) and jnp.any(grads.h0.imag != 0)


def test_the_rest_of_a_neuron():
    class Layer(eqx.Module):
        neuron: etrace.nn.LIF
        w: jax.Array

        def init_state(self):
            return self.neuron.init_state()

        def __call__(self, state, x):
            return self.neuron(state, self.w @ x)

    rest = 0.1 * jnp.arange(1.0, N + 1)
    net = Layer(etrace.nn.LIF(N, tau=5.0, v_rest=rest), normal(N, IN))
    _, grads = summed(window=2)(etrace.DRTRL(net), None, INPUTS, TARGETS)
    held = et.bptt(net, *DATA, state=net.init_state())[1]
    assert close(grads, exact(net)) and not close(grads, held)


# --------------------------------------------------------------------- calls and states


def test_through_update_by_hand():
    """Also where the state is made inside what is differentiated."""
    net = Local()
    algorithm = etrace.DRTRL(net)

    def loss(net: Local, state: Any) -> Any:
        now = algorithm.with_model(net)
        state = now.init(INPUTS[0]) if state is None else state
        outputs, *_ = now.update(*state, etrace.MultiStepData(INPUTS))
        return jnp.sum(jax.vmap(et.squared_error)(outputs, TARGETS))

    for state in (algorithm.init(INPUTS[0]), None):
        grads = eqx.filter_jit(eqx.filter_grad(loss))(net, state)
        assert close(grads, exact(net))


@pytest.mark.parametrize("rule", [etrace.DRTRL, etrace.RTRL])
def test_examples_start_again_one_by_one(rule: Any):
    net, cut = Local(), 2
    inputs, targets = normal(STEPS, 2, IN, seed=7), normal(STEPS, 2, N, seed=8)
    algorithm = rule(net, batched=True)
    start = algorithm.init(inputs[0])
    assert start[2].first.shape == (2,) and start[2].first.all()

    @eqx.filter_jit
    @eqx.filter_grad
    def by_steps(net: Local) -> Any:
        now = algorithm.with_model(net)

        def step(state: Any, data: tuple) -> tuple:
            t, x, target = data
            again = (t == cut) & (jnp.arange(2) == 0)
            pick = lambda a, b: jnp.where(  # noqa: E731
                again.reshape(-1, *(1,) * (a.ndim - 1)), a, b
            )
            state = jax.tree.map(pick, start, state)
            y, *state = now.update(*state, x)
            return tuple(state), jnp.sum(jax.vmap(et.squared_error)(y, target))

        data = (jnp.arange(STEPS), inputs, targets)
        last, losses = jax.lax.scan(step, start, data)
        return jnp.sum(losses)

    parts = [(slice(cut), 0), (slice(cut, None), 0), (slice(None), 1)]
    grads = [exact(net, inputs[part, b], targets[part, b]) for part, b in parts]
    assert close(by_steps(net), jax.tree.map(lambda *g: sum(g), *grads))


def test_a_saved_start_is_still_one(tmp_path: Any):
    algorithm = etrace.DRTRL(Local())
    states = [algorithm.init(INPUTS[0])]
    *_, after = summed(carry=True)(algorithm, None, INPUTS[:1], TARGETS[:1])
    states.append(after)
    found = []
    for n, state in enumerate(states):
        etrace.save(tmp_path / str(n), state)
        loaded = etrace.restore(tmp_path / str(n), like=algorithm.init(INPUTS[0]))
        assert bool(loaded[2].first) == (n == 0)
        grads = [summed()(algorithm, s, INPUTS, TARGETS)[1] for s in (loaded, state)]
        assert close(*grads)
        found.append(grads[0])
    assert close(found[0], exact(Local())) and not close(found[1].h0, found[0].h0)


def test_it_is_trained():
    train = etrace.learn(et.squared_error, optax.sgd(0.1), window=2)
    algorithm, *_ = train(etrace.DRTRL(Local()), None, None, INPUTS, TARGETS)
    assert jnp.all(algorithm.model.h0 != Local().h0)


def test_infinities_stay_what_they_are():
    class Largest(Local):
        def init_state(self):
            return jnp.full(N, self.h0[0]), jnp.full(N, -jnp.inf).at[0].set(self.h0[1])

        def __call__(self, state, x):
            h, largest = state
            largest = jnp.maximum(largest, self.a * h + self.w @ x)
            return largest, (h, largest)

    net = Largest()
    outputs = etrace.evolve(etrace.DRTRL(net), None, INPUTS)[1]
    state = net.init_state()
    for x, y in zip(INPUTS, outputs, strict=True):
        expected, state = net(state, x)
        assert jnp.array_equal(y, expected)
    _, grads = summed()(etrace.DRTRL(net), None, INPUTS, TARGETS)
    assert close(grads, exact(net))


def test_without_parameters_nothing_is_added():
    class Still(Local):
        def init_state(self):
            return jnp.zeros_like(self.h0) + jax.lax.stop_gradient(jnp.sign(self.h0))

    graph = etrace.DRTRL(Still()).graph(INPUTS[0]).graph
    assert graph.call.initial.hidden == () and graph.call.carried == graph.call.other
    assert etrace.DRTRL(Still()).init(INPUTS[0])[2].first is None
    assert "select_n" not in {e.name for e in graph.program.equations}


def test_a_trace_whose_start_is_another_s_is_refused():
    algorithm = etrace.DRTRL(Local())
    hidden, other, trace = algorithm.init(INPUTS[0])
    trace = dataclasses.replace(trace, first=None)
    with pytest.raises(ValueError, match=r"trace.first is None, expected bool\[\]"):
        algorithm.update(hidden, other, trace, INPUTS[0])


# --------------------------------------------------------------------------- the report


def rows(report: etrace.Report) -> dict[str, Any]:
    return {row.parameter: row for row in report.rows}


def test_the_report_says_how_it_enters():
    report = etrace.DRTRL(Local(), batched=True).graph(jnp.ones((2, IN)))
    row = rows(report)[".h0"]
    assert (row.primitive, row.status, row.shapes) == ("init_state", "traced", "[3]")
    assert "(Local.init_state)" in row.source and row.nbytes == 2 * N * 8
    *_, trace = etrace.DRTRL(Local(), batched=True).init(jnp.ones((2, IN)))
    stored = sum(x.nbytes for x in jax.tree.leaves(trace))
    assert report.nbytes == stored == sum(r.nbytes for r in report.rows) + 2
    assert " init_state " in str(report)


class Unread(Local):
    """Beside its initial state: one parameter is not read, one behind a stop."""

    more: jax.Array
    held: jax.Array

    def __init__(self):
        super().__init__()
        self.more, self.held = jnp.ones(2), jnp.ones(N)

    def __call__(self, h, x):
        h = jax.lax.stop_gradient(self.held) * super().__call__(h, x)[1]
        return h, h


def test_what_is_not_read_has_a_row():
    report = etrace.DRTRL(Unread()).graph(INPUTS[0])
    found = {r.parameter: r.reason for r in report.rows if r.status == "unused"}
    assert set(found) == {".more", ".held"}
    assert "neither the step nor" in found[".more"] and "stop" in found[".held"]
    assert all(name in str(report) for name in found)


def test_what_only_the_recurrence_reads_is_left_out():
    class Vanilla(Local):
        def __call__(self, h, x):
            h = jnp.tanh(self.w @ x + jnp.sum(h))
            return h, h

    with pytest.warns(etrace.UntracedParameterWarning, match="enters nothing but"):
        report = etrace.DRTRL(Vanilla()).graph(INPUTS[0])
    assert rows(report)[".h0"].status == "now"
    assert rows(etrace.RTRL(Vanilla()).graph(INPUTS[0]))[".h0"].status == "traced"


def test_state_without_credit_is_named():
    class Both(Local):
        def init_state(self):
            return jnp.zeros(N), self.h0

        def __call__(self, state, x):
            h, kept = state
            y, h = super().__call__(h, x)
            return y + kept, (h, kept)

    algorithm = etrace.DRTRL(Both(), hidden_filter=(True, False))
    row = rows(algorithm.graph(INPUTS[0]))[".h0"]
    assert row.status == "now" and "carried without credit" in row.reason


def test_a_start_that_jax_cannot_trace():
    class Deciding(Local):
        def init_state(self):
            return self.h0 if self.h0[0] > 0 else -self.h0

    with pytest.warns(etrace.UntracedParameterWarning, match="init_state.. ?: JAX"):
        report = etrace.DRTRL(Deciding()).graph(INPUTS[0])
    assert any(loss.what == ("init_state()",) for loss in report.losses)

    class Sized(Local):
        size: Any

        def __init__(self):
            super().__init__()
            self.size = np.int64(N)

        def init_state(self):
            return jnp.zeros(int(self.size))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not etrace.DRTRL(Sized()).graph(INPUTS[0]).losses


# -------------------------------------------------------------------- the check of them


def test_the_check_sees_it():
    for rule in (etrace.DRTRL, etrace.RTRL):
        check = etrace.check_gradients(rule(Unread()), *DATA)
        check.assert_close(rtol=1e-9, frozen=(".held",))
        assert all(p.slope < 1e-6 for p in check.parameters if p.name == ".h0")
        assert all(lag.comparison.error < 1e-9 for lag in check.lags)
        assert [p.name for p in check.parameters if p.missed] == [".held"]


def test_the_check_misses_it(monkeypatch: pytest.MonkeyPatch):
    """In the rules alone, and in backpropagation as well: then losses tell."""
    monkeypatch.setattr(_graph, "find_initial", lambda *_: Initial())
    forget()
    clear_caches()
    try:
        check = etrace.check_gradients(etrace.DRTRL(Local()), *DATA)
        with pytest.raises(AssertionError, match=r"\.h0: error 1.0e\+00"):
            check.assert_close()
        right = _reference._beginning
        held = lambda *a: jax.lax.stop_gradient(right(*a))  # noqa: E731
        monkeypatch.setattr(_reference, "_beginning", held)
        clear_caches()
        check = etrace.check_gradients(etrace.DRTRL(Local()), *DATA)
        with pytest.raises(AssertionError, match=r"\.h0: moves the loss, with"):
            check.assert_close()
        assert [p.name for p in check.parameters if p.missed] == [".h0"]
    finally:
        forget()
        clear_caches()
