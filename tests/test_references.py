"""The references of the learning rules against each other, against BPTT, and against
recursions written out by hand."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace.testing as et
from etrace.testing import LayerSpec, NetSpec, StateGroup, make_problem, rules
from etrace.testing._groups import Task, traced_columns
from etrace.testing._observe import observe
from etrace.testing._parts import spike
from etrace.testing._vectors import to_vector

from .helpers import examples, fresh_caches

RULES = {
    "DRTRL": rules.DRTRL(),
    "ESDRTRL": rules.ESDRTRL((0.7, 0.8)),
    "Hybrid": rules.ESDRTRL(0.8, factored=lambda net: net.cells[0].wiring.rec),
    "EProp": rules.EProp(0.7),
    "OSTL": rules.OSTL(),
    "OTTT": rules.OTTT(0.7),
    "OTPE": rules.OTPE(0.7),
    "FactoredOTPE": rules.FactoredOTPE(0.7),
    "RFLO": rules.RFLO(0.7),
    "SnAp": rules.SnAp(1),
}
MULTI = ("DRTRL", "ESDRTRL", "Hybrid", "OSTL", "SnAp")
#: Every read-out, feedback, a delay, several numbers per neuron, weights of all kinds.
SPECS = {
    "gru": NetSpec((LayerSpec("gru"),), readout="tied"),
    "three": NetSpec(
        (LayerSpec("alif"), LayerSpec("lstm", delayed=True), LayerSpec("lif")),
        readout="all",
        counter=True,
    ),
    "feedback": NetSpec(
        (LayerSpec("leaky", gain=True), LayerSpec("recurrent_lif")),
        readout="identity",
        feedback=True,
    ),
    "conv": NetSpec(
        (LayerSpec("complex_lru", form="conv1d"), LayerSpec("gru", norm=True)),
        readout="previous",
    ),
    "tied": NetSpec((LayerSpec("tanh"), LayerSpec("tanh")), tied=True),
    "factored": NetSpec((LayerSpec("mingru", form="factored"),), readout="mlp"),
    "embed": NetSpec((LayerSpec("indrnn", form="embed"),), readout="mean"),
    "encoder": NetSpec((LayerSpec("lru", form="elementwise"),), encoder=True),
}


def distance(left, right) -> float:
    return float(et.gradient_distance(left, right))


def close(left, right, tolerance=1e-11):
    assert distance(left, right) < tolerance, distance(left, right)


def observed(problem: et.Problem, needs: frozenset[str] = frozenset()):
    """What a whole sequence shows."""
    state = problem.model.init_state() if problem.state is None else problem.state
    inputs = problem.inputs
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    task = Task(problem.model, problem.loss_fn, problem.groups)
    traced = traced_columns(problem.model, problem.untraced)
    weights = jnp.ones(len(xs[0]))
    return observe(task, state, xs, problem.targets, weights, traced, needs)[0]


# Against the dense reference of D-RTRL.


some_specs = pytest.mark.parametrize(
    "name", examples(ci=("three", "feedback", "encoder"), thorough=tuple(SPECS))
)


@some_specs
def test_drtrl_is_the_dense_reference(name: str):
    fresh_caches()
    problem = make_problem(SPECS[name], length=4, random_state=True)
    close(problem.reference(rules.DRTRL()), problem.dense())
    # A single tanh layer has no memory of its own.
    assert problem.past_share() > 1e-2 or name == "tied"
    close(problem.reference(rules.OSTL(recurrent=False)), problem.dense())
    local = problem.reference(rules.DRTRL(), untraced=False)
    close(local, problem.dense(untraced=False))


@hypothesis.given(problem=et.problems())
@hypothesis.settings(max_examples=examples(ci=2, thorough=20))
def test_drawn_problems(problem: et.Problem):
    fresh_caches()
    close(problem.reference(rules.DRTRL()), problem.dense())
    method = {"vjp_method": "multi-step"}
    close(problem.reference(rules.DRTRL(), **method), problem.dense(**method))
    check_sites(problem)


@some_specs
def test_all_that_reaches_the_state_goes_through_the_sites(name: str):
    fresh_caches()
    check_sites(make_problem(SPECS[name], length=3, random_state=True))


def check_sites(problem: et.Problem):
    o = observed(problem)
    through_sites = sum(s.f_h @ s.x @ s.w for s in o.sites)
    assert o.i.any()
    assert jnp.allclose(through_sites, o.i, rtol=1e-12, atol=1e-12)


def test_sites_are_needed():
    """The comparison above fails where a mark is missing."""
    problem = make_problem(SPECS["gru"], length=3, random_state=True)
    o = observed(problem)
    assert not jnp.allclose(sum(s.f_h @ s.x @ s.w for s in o.sites[1:]), o.i)


# Every rule: windows, batches, sequences in several calls.


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_a_sequence_in_two_calls(method: str):
    fresh_caches()
    layers = (LayerSpec("gru"), LayerSpec("lif"))
    problem = make_problem(NetSpec(layers), length=4, random_state=True)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        data = {"inputs": problem.inputs[part], "targets": problem.targets[part]}
        halves.append(dataclasses.replace(problem, **data))
    single = method == "single-step"
    now = problem.truncated(window=1 if single else 2)
    some = examples(ci=("ESDRTRL", "FactoredOTPE", "SnAp"), thorough=RULES)
    for name in some:
        if not single and name not in MULTI:
            continue
        run = functools.partial(et.Problem.reference, rule=RULES[name])
        first, second = (
            functools.partial(run, half, vjp_method=method, window=2) for half in halves
        )
        *one, (state, trace) = first(return_final=True)
        two = second(state=state, trace=trace)
        whole = run(problem, vjp_method=method, window=2)
        close(jax.tree.map(jnp.add, tuple(one), two), whole)
        assert distance(second(state=state), two) > 1e-4, name
        assert distance(whole, now) > 1e-4, name
        if not single:
            assert distance(whole, problem.bptt()) > 1e-4, name
            whole = run(problem, vjp_method=method, window=4)
            close(whole, problem.bptt())


@pytest.mark.parametrize("name", ["RFLO", "SnAp", "ThreeFactor"])
def test_a_batch_is_the_sum_of_its_examples(name: str):
    rule = RULES.get(name, rules.ThreeFactor())
    problem = make_problem(SPECS["gru"], length=3, batch=2, random_state=True)
    options: dict[str, Any] = {}
    if name == "ThreeFactor":
        options = {"modulator": jnp.arange(6.0).reshape(3, 2)}
    total = problem.reference(rule, **options)
    parts = []
    for b in range(2):
        example = dataclasses.replace(
            problem,
            batch=None,
            inputs=problem.inputs[:, b],
            targets=problem.targets[:, b],
            state=jax.tree.map(lambda x: x[b], problem.state),  # noqa: B023
        )
        own = {k: v[:, b] for k, v in options.items()}
        parts.append(example.reference(rule, **own))
    close(jax.tree.map(jnp.add, *parts), total)


def test_masks_reductions_and_precision():
    problem = make_problem(SPECS["gru"], length=4, dtype="float32")
    mask = jnp.array([1.0, 0.0, 2.0, 1.0], jnp.float32)
    options = {"mask": mask, "reduction": "mean"}
    for leaf in jax.tree.leaves(problem.reference(rules.SnAp(), **options)):
        assert leaf.dtype == jnp.float32
    close(problem.reference(rules.DRTRL(), **options), problem.dense(**options), 1e-5)


# Small models in which a rule is exact. All of them have one feed-forward layer of
# neurons that leak at the rate 0.8, mem = 0.8 mem + W x + b.


class Neurons(eqx.Module):
    """Neurons, perhaps with a leaky read-out of rate `readout`, whose state is the
    output."""

    w: jax.Array
    b: jax.Array
    v: jax.Array
    emit: Callable = eqx.field(static=True)
    detached: bool = eqx.field(static=True, default=False)
    readout: float | None = eqx.field(static=True, default=None)

    def init_state(self):
        return jnp.zeros(3), jnp.zeros(2)

    def __call__(self, state, x):
        mem, out = state
        mem = 0.8 * mem + et.site(jnp.matmul, self.w, x)
        mem = et.site(jnp.add, self.b, mem, elementwise=True)
        spikes = self.emit(mem - 0.3)
        reset = jax.lax.stop_gradient(spikes) if self.detached else spikes
        feeds = () if self.readout is None else (1,)
        y = et.site(jnp.matmul, self.v, et.mixing_input(spikes, feeds, of=0))
        if self.readout is None:
            return y, (mem - 0.4 * reset, out)
        out = self.readout * out + y
        return et.local_output(et.new_state(out, of=1), of=1), (mem - 0.4 * reset, out)


def neurons(emit: Callable = spike, **options: Any) -> et.Problem:
    generator = np.random.default_rng(5)
    shapes = [(3, 4), (3,), (2, 3), (6, 4), (6, 2)]
    w, b, v, xs, targets = (jnp.asarray(generator.normal(size=s)) for s in shapes)
    groups = (StateGroup((0,)), StateGroup((1,)))
    model = Neurons(w, b, v, emit, **options)
    facts = {"mask": None, "state": None, "window": 1, "batch": None}
    data = (model, et.squared_error, xs, targets)
    return et.Problem(*data, groups=groups, untraced=False, **facts)


def test_neurons_are_marked_well():
    for problem in (neurons(), neurons(readout=0.6)):
        close(problem.reference(rules.DRTRL()), problem.dense())


def test_eprop_is_exact_with_the_leak_of_the_readout():
    problem = neurons(readout=0.6)
    exact = problem.bptt()
    close(problem.reference(rules.EProp(0.6)), exact)
    for kappa in (0.0, 0.5):
        other = problem.reference(rules.EProp(kappa))
        assert distance(other[1].w, exact[1].w) > 1e-2
        # The read-out's own weights are not filtered.
        close(other[1].v, exact[1].v)
    close(problem.reference(rules.EProp(0.0)), problem.dense())
    # Without a state behind them, nothing is filtered.
    plain = neurons()
    close(plain.reference(rules.EProp(0.6)), plain.dense())


def test_otpe_is_exact_with_the_leak_of_the_readout():
    problem = neurons(readout=0.8)
    exact = problem.bptt()
    close(problem.reference(rules.OTPE(0.8)), exact)
    assert distance(problem.reference(rules.OTPE(0.7)), exact) > 1e-2
    plain = neurons()
    assert distance(plain.reference(rules.OTPE(0.8)), plain.dense()) > 1e-2


def test_factored_otpe_is_otpe_where_the_neurons_are_linear():
    linear = {"emit": lambda x: x, "detached": True, "readout": 0.8}
    problem = neurons(**linear)
    _, exact = problem.bptt()
    _, factored = problem.reference(rules.FactoredOTPE(0.8))
    close((factored.w, factored.b), (exact.w, exact.b))
    spiking = neurons(detached=True, readout=0.8)
    _, whole = spiking.reference(rules.OTPE(0.8))
    _, factored = spiking.reference(rules.FactoredOTPE(0.8))
    assert distance(factored, whole) > 1e-2
    close(factored.v, whole.v)  # an output is read as it is


def test_ottt_is_exact_with_a_detached_reset():
    problem = neurons(detached=True)
    close(problem.reference(rules.OTTT(0.8)), problem.bptt())
    assert distance(problem.reference(rules.OTTT(0.7)), problem.bptt()) > 1e-2
    attached = neurons()
    assert distance(attached.reference(rules.OTTT(0.8)), attached.bptt()) > 1e-2


@some_specs
def test_snap_of_many_steps_is_bptt(name: str):
    fresh_caches()
    problem = make_problem(SPECS[name], length=4, random_state=True)
    (_, exact), (_, now) = problem.bptt(), problem.truncated(window=1)
    traced = traced_columns(problem.model, problem.untraced) == 1
    wanted = jnp.where(traced, to_vector(exact), to_vector(now))
    _, grads = problem.reference(rules.SnAp(12))
    close(to_vector(grads), wanted)
    assert distance(wanted, to_vector(now)) > 1e-3


@pytest.mark.parametrize(
    "kind",
    examples(
        ci=("gru", "alif"), thorough=("tanh", "gru", "lstm", "recurrent_lif", "alif")
    ),
)
def test_snap_of_one_step_is_ostl_on_one_layer(kind: str):
    fresh_caches()
    problem = make_problem(NetSpec((LayerSpec(kind),)), length=4, random_state=True)
    ostl = problem.reference(rules.OSTL())
    close(problem.reference(rules.SnAp(1)), ostl)
    assert distance(ostl, problem.dense()) > 1e-3
    assert distance(ostl, problem.bptt()) > 1e-4
    assert distance(ostl, problem.reference(rules.SnAp(2))) > 1e-4


def test_esdrtrl_without_memory_is_the_instantaneous_gradient():
    problem = make_problem(SPECS["feedback"], length=5, random_state=True)
    _, grads = problem.reference(rules.ESDRTRL(0.0))
    _, now = problem.truncated(window=1)
    products = lambda g: [  # noqa: E731
        projection.weight
        for c in g.cells
        for projection in (c.wiring.inp, c.wiring.rec)
    ]
    close(products(grads), products(now))
    _, dense = problem.dense()
    others = lambda g: eqx.tree_at(products, g, [None] * 4)  # noqa: E731
    close(others(grads), others(dense))
    assert distance(others(dense), others(now)) > 1e-2
    close(problem.reference(rules.ESDRTRL(0.8, factored=False)), problem.dense())


def test_three_factors_with_the_gradient_as_modulator():
    """Where the loss reads the new states, m = dL/dh gives back the learning rule."""
    problem = neurons(readout=0.6)

    def outputs(state, x):
        y, state = problem.model(state, x)
        return state, y

    _, ys = jax.lax.scan(outputs, problem.model.init_state(), problem.inputs)
    errors = ys - problem.targets
    modulator = (jnp.zeros((6, 3)), errors)
    got = problem.reference(rules.ThreeFactor(), modulator=modulator)
    close(got[1].v, problem.dense()[1].v)
    # The others are not told anything.
    assert jnp.allclose(got[1].w, 0, atol=1e-12) and problem.dense()[1].w.any()
    both = problem.reference(rules.ThreeFactor(), modulator=jnp.ones(6))
    one = (jnp.ones(6), jnp.zeros(6)), (jnp.zeros(6), jnp.ones((6, 2)))
    parts = [problem.reference(rules.ThreeFactor(), modulator=m)[1] for m in one]
    close(jax.tree.map(jnp.add, *parts), both[1])
    assert both[1].w.any()


# By hand.


class LeakyRNN(eqx.Module):
    """h' = 0.8 h + tanh(U h + W x), y = V h'."""

    u: jax.Array
    w: jax.Array
    v: jax.Array

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, state, x):
        recurrent = et.site(jnp.matmul, self.u, et.mixing_input(state, (0,), of=0))
        h = 0.8 * state + jnp.tanh(recurrent + et.site(jnp.matmul, self.w, x))
        h = et.new_state(h, of=0)
        return self.v @ et.mixing_input(h, of=0), h


def hand_made(seed: int = 3):
    generator = np.random.default_rng(seed)
    shapes = [(3, 3), (3, 2), (2, 3), (5, 2), (5, 2)]
    u, w, v, xs, targets = (generator.normal(size=s) for s in shapes)
    model = LeakyRNN(*map(jnp.asarray, (u, w, v)))
    data = (model, et.squared_error, jnp.asarray(xs), jnp.asarray(targets))

    def reference(rule, **options):
        groups = [StateGroup((0,))]
        return et.rule_reference(*data, rule=rule, groups=groups, **options)[1]

    return (u, w, v, xs, targets), reference


def test_rflo_with_feedback_by_the_textbook():
    (u, w, v, xs, targets), reference = hand_made()
    feedback = np.random.default_rng(0).normal(size=(3, 2))
    h, trace_u, trace_w = np.zeros(3), np.zeros((3, 3)), np.zeros((3, 2))
    grads = {name: 0.0 for name in "uwv"}
    for x, target in zip(xs, targets, strict=True):
        bump = np.tanh(u @ h + w @ x)
        new_u, new_w = (np.outer(1 - bump**2, y) for y in (h, x))
        trace_u, trace_w = 0.7 * trace_u + new_u, 0.7 * trace_w + new_w
        h = 0.8 * h + bump
        error = v @ h - target
        grads["v"] += np.outer(error, h)
        grads["u"] += (feedback @ error)[:, None] * trace_u
        grads["w"] += (feedback @ error)[:, None] * trace_w
    got = reference(rules.RFLO(0.7, jnp.asarray(feedback)))
    for name, wanted in grads.items():
        assert np.allclose(getattr(got, name), wanted, rtol=1e-12), name
    # With the true leak and the true weights it is D-RTRL.
    close(reference(rules.RFLO(0.8)), reference(rules.DRTRL()))
    close(reference(rules.RFLO(0.8, jnp.asarray(v.T))), reference(rules.DRTRL()))
    close(reference(rules.EProp(0.0, jnp.asarray(v.T))), reference(rules.DRTRL()))


@pytest.mark.parametrize("vjp_method", ["single-step", "multi-step"])
def test_esdrtrl_by_the_textbook(vjp_method):
    (u, w, v, xs, targets), reference = hand_made()
    h, f, by_h, by_x = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(2)
    ax, af = 0.6, 0.9
    grads = {name: 0.0 for name in "uwv"}
    for t, (x, target) in enumerate(zip(xs, targets, strict=True), 1):
        bump = np.tanh(u @ h + w @ x)
        gain, old = 1 - bump**2, h
        h = 0.8 * h + bump
        signal = v.T @ (v @ h - target)
        grads["v"] += np.outer(v @ h - target, h)
        if vjp_method == "multi-step":  # every window is one step
            share = 1 - af ** (t - 1) if t > 1 else 1
            back = (0.8 * np.eye(3) + gain[:, None] * u).T @ signal
            grads["u"] += np.outer(back * f, by_h) / share
            grads["w"] += np.outer(back * f, by_x) / share
            grads["u"] += np.outer(signal * gain, old)
            grads["w"] += np.outer(signal * gain, x)
        by_h, by_x = ax * by_h + old, ax * by_x + x
        f = af * 0.8 * f + (1 - af) * gain
        if vjp_method == "single-step":
            grads["u"] += np.outer(signal * f, by_h) / (1 - af**t)
            grads["w"] += np.outer(signal * f, by_x) / (1 - af**t)
    got = reference(rules.ESDRTRL((ax, af)), vjp_method=vjp_method)
    for name, wanted in grads.items():
        assert np.allclose(getattr(got, name), wanted, rtol=1e-12), name


def test_ostl_by_the_textbook():
    (u, w, v, xs, targets), reference = hand_made()
    h, trace, gradient = np.zeros(3), np.zeros((3, 2)), 0.0
    for x, target in zip(xs, targets, strict=True):
        bump = np.tanh(u @ h + w @ x)
        own = 0.8 + (1 - bump**2) * np.diag(u)
        trace = own[:, None] * trace + np.outer(1 - bump**2, x)
        h = 0.8 * h + bump
        gradient += (v.T @ (v @ h - target))[:, None] * trace
    assert np.allclose(reference(rules.OSTL()).w, gradient, rtol=1e-12)


# What the caller gets wrong.


def test_errors():
    problem = make_problem(SPECS["three"], length=2)
    one = make_problem(SPECS["gru"], length=2)
    for name in set(RULES) - set(MULTI):
        with pytest.raises(ValueError, match="multi-step"):
            one.reference(RULES[name], vjp_method="multi-step")
    with pytest.raises(ValueError, match="one number per neuron"):
        problem.reference(rules.RFLO(0.7))
    with pytest.raises(ValueError, match="needs a modulator"):
        one.reference(rules.ThreeFactor())
    with pytest.raises(ValueError, match="no modulator"):
        one.reference(rules.DRTRL(), modulator=jnp.ones(2))
    with pytest.raises((ValueError, TypeError), match="vjp_method"):
        one.reference(rules.DRTRL(), vjp_method="none")
