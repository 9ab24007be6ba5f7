"""The oracles against each other, against hand-written recursions and against finite
differences."""

import subprocess
import sys

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import etrace.testing as oracles
from etrace.testing import LayerSpec, NetSpec, StateGroup, make_problem

from .helpers import examples, fresh_caches

LOCAL = examples(
    ci=("mingru", "complex_lru", "alif"),
    thorough=("mingru", "indrnn", "lru", "complex_lru", "leaky", "lif", "alif"),
)


def close(left, right, tolerance=1e-12):
    distance = float(oracles.gradient_distance(left, right))
    assert distance < tolerance, distance


def one_layer(kind, **options):
    return NetSpec((LayerSpec(kind, recurrent=False, **options),))


# Laws between the oracles.


@pytest.mark.parametrize("kind", LOCAL)
def test_dense_reference_is_bptt_where_everything_is_local(kind):
    fresh_caches()
    problem = make_problem(one_layer(kind), length=6, window=4, random_state=True)
    assert problem.exact
    value, grads = problem.bptt()
    for method in ("single-step", "multi-step"):
        dense_value, dense_grads = problem.dense(vjp_method=method)
        assert abs(value - dense_value) < 1e-12
        close(dense_grads, grads)
    assert problem.past_share() > 1e-2


@pytest.mark.parametrize(
    "kind",
    examples(
        ci=("lstm", "recurrent_lif"),
        thorough=("tanh", "gru", "lstm", "leaky", "recurrent_lif"),
    ),
)
def test_one_window_over_the_whole_sequence_is_bptt(kind):
    problem = make_problem(NetSpec((LayerSpec(kind),)), length=5)
    assert not problem.exact
    dense = problem.dense(vjp_method="multi-step", window=5)[1]
    close(dense, problem.bptt()[1])
    assert oracles.gradient_distance(problem.dense()[1], dense) > 1e-3


@pytest.mark.parametrize(
    "form, stride, padding",
    [
        ("conv1d", 2, "VALID"),
        ("conv2d", 2, "SAME"),
        *examples(
            ci=[("einsum", 1, "SAME"), ("factored", 1, "SAME"), ("embed", 1, "SAME")],
            thorough=[(form, 1, "SAME") for form in oracles.FORMS],
        ),
    ],
)
def test_every_form_of_input_projection(form, stride, padding):
    fresh_caches()
    spec = one_layer("lru", form=form, gain=True, stride=stride, padding=padding)
    problem = make_problem(spec, length=4)
    assert problem.exact
    close(problem.dense()[1], problem.bptt()[1])


@pytest.mark.parametrize(
    "expression",
    examples(ci=("select", "lowrank", "normalised"), thorough=oracles.EXPRESSIONS),
)
def test_every_weight_expression(expression):
    fresh_caches()
    problem = make_problem(one_layer("indrnn", expression=expression), length=4)
    close(problem.dense()[1], problem.bptt()[1])


@pytest.mark.parametrize(
    "readout",
    examples(ci=("previous", "skip", "tied"), thorough=oracles.READOUTS),
)
def test_every_readout(readout):
    fresh_caches()
    spec = NetSpec((LayerSpec("lru"),), readout=readout, counter=True)
    problem = make_problem(spec, length=4)
    close(problem.dense()[1], problem.bptt()[1])


def test_a_local_encoder_is_traced():
    spec = NetSpec((LayerSpec("mingru", form="elementwise"),), encoder=True)
    problem = make_problem(spec, length=4)
    assert problem.exact
    close(problem.dense()[1], problem.bptt()[1])
    layers = (LayerSpec("mingru"),)
    problem = make_problem(NetSpec(layers, encoder=True), length=4)
    dense, now = problem.dense()[1], problem.truncated(window=1)[1]
    close(dense.encoder, now.encoder)
    assert not problem.exact


@pytest.mark.parametrize("kind", ["complex_lru", "alif"])
def test_single_precision(kind):
    spec = NetSpec((LayerSpec("gru"), LayerSpec(kind)), counter=True)
    problem = make_problem(spec, length=4, dtype="float32", random_state=True)
    results = [problem.bptt(), problem.dense(vjp_method="multi-step", window=4)]
    for leaf in jax.tree.leaves((*results, problem.truncated(), problem.dense())):
        assert leaf.dtype == jnp.float32
    close(*results, 1e-5)


def test_the_last_of_two_local_layers_is_exact():
    spec = NetSpec((LayerSpec("lru"), LayerSpec("indrnn")))
    problem = make_problem(spec, length=6)
    dense, exact = problem.dense()[1], problem.bptt()[1]
    close(dense.cells[1], exact.cells[1])
    close(dense.readout, exact.readout)
    assert oracles.gradient_distance(dense.cells[0], exact.cells[0]) > 1e-3


def test_a_delayed_layer_gets_credit_through_the_state_it_reads():
    layers = (LayerSpec("tanh"), LayerSpec("lru", delayed=True))
    problem = make_problem(NetSpec(layers), length=6)
    dense, now = problem.dense()[1], problem.truncated(window=1)[1]
    # Without the trace the lower layer would learn nothing at all.
    assert all(not leaf.any() for leaf in jax.tree.leaves(now.cells[0]))
    assert all(leaf.any() for leaf in jax.tree.leaves(dense.cells[0]))


def test_parameters_before_a_norm_are_untraced():
    problem = make_problem(one_layer("lru", norm=True), length=5)
    dense, now = problem.dense()[1], problem.truncated(window=1)[1]
    close(dense.cells[0].wiring, now.cells[0].wiring)
    close(dense.cells[0].decay, problem.bptt()[1].cells[0].decay)
    local = problem.dense(untraced=False)[1]
    assert oracles.gradient_distance(local, dense) > 1e-3
    where = lambda net: net.cells[0].wiring.inp  # noqa: E731
    close(problem.dense(untraced=where)[1], dense)


def test_final_state_and_influence_continue_a_sequence():
    problem = make_problem(NetSpec((LayerSpec("gru"), LayerSpec("alif"))), length=5)
    for method in ("single-step", "multi-step"):
        value, grads = problem.dense(vjp_method=method, window=(2, 3))
        first = {
            "inputs": problem.inputs[:2],
            "targets": problem.targets[:2],
        }
        second = {"inputs": problem.inputs[2:], "targets": problem.targets[2:]}
        common = dict(groups=problem.groups, vjp_method=method, window=3)
        call = lambda **kw: oracles.dense_reference(  # noqa: E731
            problem.model, problem.loss_fn, **kw, **common
        )
        value1, grads1, (state, influence) = call(**first, return_final=True)
        value2, grads2 = call(**second, state=state, influence=influence)
        assert abs(value - value1 - value2) < 1e-12
        close(jax.tree.map(jnp.add, grads1, grads2), grads)


# Truncation, masks, batches.


def test_truncated_is_the_sum_of_its_windows():
    problem = make_problem(NetSpec((LayerSpec("gru"),)), length=7)
    model, loss_fn, xs, targets = (
        problem.model,
        problem.loss_fn,
        problem.inputs,
        problem.targets,
    )
    state, total = None, jax.tree.map(jnp.zeros_like, problem.bptt()[1])
    for start, stop in ((0, 3), (3, 6), (6, 7)):
        part = slice(start, stop)
        _, grads = oracles.bptt(model, loss_fn, xs[part], targets[part], state=state)
        total = jax.tree.map(jnp.add, total, grads)
        state = model.init_state() if state is None else state
        for x in xs[part]:
            _, state = model(state, x)
    close(problem.truncated(window=3)[1], total)
    close(problem.truncated(window=(3, 3, 1))[1], total)
    close(problem.truncated(window=7)[1], problem.bptt()[1])


@pytest.mark.parametrize("oracle", ["bptt", "truncated", "dense"])
def test_masks_and_reductions(oracle):
    problem = make_problem(NetSpec((LayerSpec("gru"),)), length=4)
    run = getattr(problem, oracle)
    value, grads = run()
    mean_value, mean_grads = run(reduction="mean")
    close(jax.tree.map(lambda g: 4 * g, mean_grads), grads)
    assert abs(4 * mean_value - value) < 1e-12
    mask = jnp.array([1.0, 0.0, 2.0, 1.0])
    alone = [run(mask=jnp.eye(4)[t]) for t in range(4)]
    expected = jax.tree.map(
        lambda *parts: jnp.tensordot(mask, jnp.stack(parts), 1), *alone
    )
    close(run(mask=mask), expected)
    scaled = jax.tree.map(lambda x: x / 4, expected)
    close(run(mask=mask, reduction="mean"), scaled)
    close(run(mask=jnp.array([True, False, False, False])), alone[0])


@pytest.mark.parametrize("oracle", ["bptt", "truncated", "dense"])
def test_over_batch_sums_the_examples(oracle):
    problem = make_problem(
        NetSpec((LayerSpec("leaky"),), counter=True, second_input=True),
        length=3,
        batch=2,
        random_state=True,
    )
    value, grads = getattr(problem, oracle)()
    total = (0.0, jax.tree.map(jnp.zeros_like, grads))
    single = {"bptt": oracles.bptt, "truncated": oracles.truncated}.get(oracle)
    for b in range(2):
        example = [
            jax.tree.map(lambda x: x[:, b], x)
            for x in (problem.inputs, problem.targets)
        ]
        state = jax.tree.map(lambda x: x[b], problem.state)
        if single is None:
            part = oracles.dense_reference(
                problem.model,
                problem.loss_fn,
                *example,
                state=state,
                groups=problem.groups,
            )
        else:
            part = single(problem.model, problem.loss_fn, *example, state=state)
            if oracle == "truncated":
                part = single(
                    problem.model, problem.loss_fn, *example, state=state, window=1
                )
        total = jax.tree.map(jnp.add, total, part)
    close((value, grads), total)


def test_gradients_are_structured_like_the_parameters():
    problem = make_problem(one_layer("lif", expression="mask"), length=3)
    wanted = jax.tree.structure(eqx.filter(problem.model, eqx.is_inexact_array))
    for oracle in (problem.bptt, problem.truncated, problem.dense):
        assert jax.tree.structure(oracle()[1]) == wanted


# By hand.


class Scalar(eqx.Module):
    """h' = a h + w x, y = h'."""

    a: jax.Array
    w: jax.Array

    def init_state(self):
        return jnp.zeros(1)

    def __call__(self, state, x):
        h = self.a * state + self.w * x
        return h, h


def test_a_leaky_integrator_by_hand():
    model = Scalar(jnp.array([0.7]), jnp.array([1.3]))
    xs = jnp.array([[1.0], [-0.5], [0.25]])
    # h = w (x1, a x1 + x2, a² x1 + a x2 + x3)
    a, w = 0.7, 1.3
    hs = w * np.array([1.0, a - 0.5, a**2 - 0.5 * a + 0.25])
    dw = hs / w
    da = w * np.array([0.0, 1.0, 2 * a - 0.5])
    targets = jnp.zeros((3, 1))
    value, grads = oracles.bptt(model, oracles.squared_error, xs, targets)
    assert np.allclose(value, 0.5 * (hs**2).sum())
    assert np.allclose(grads.w, (hs * dw).sum()) and np.allclose(
        grads.a, (hs * da).sum()
    )
    _, now = oracles.truncated(model, oracles.squared_error, xs, targets)
    previous = np.array([0.0, *hs[:-1]])
    assert np.allclose(now.w, (hs * np.array(xs[:, 0])).sum())
    assert np.allclose(now.a, (hs * previous).sum())
    close(
        oracles.dense_reference(
            model, oracles.squared_error, xs, targets, groups=[StateGroup((0,))]
        )[1],
        grads,
    )


class LeakyRNN(eqx.Module):
    """h' = d h + tanh(U h + W x), y = V h'."""

    u: jax.Array
    w: jax.Array
    v: jax.Array

    def init_state(self):
        return jnp.zeros(2)

    def __call__(self, state, x):
        recurrent = self.u @ oracles.mixing_input(state, (0,))
        h = 0.8 * state + jnp.tanh(recurrent + self.w @ x)
        return self.v @ oracles.mixing_input(h), h


def test_a_recurrent_network_by_the_textbook():
    generator = np.random.default_rng(3)
    u, w, v = (generator.normal(size=(2, 2)) for _ in range(3))
    xs, targets = generator.normal(size=(2, 4, 2))
    h, trace_u, trace_w = np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2))
    grads = {name: np.zeros((2, 2)) for name in "uwv"}
    for x, target in zip(xs, targets, strict=True):
        bump = np.tanh(u @ h + w @ x)
        trace_u = 0.8 * trace_u + np.outer(1 - bump**2, h)
        trace_w = 0.8 * trace_w + np.outer(1 - bump**2, x)
        h = 0.8 * h + bump
        error = v @ h - target
        grads["v"] += np.outer(error, h)
        grads["u"] += (v.T @ error)[:, None] * trace_u
        grads["w"] += (v.T @ error)[:, None] * trace_w
    model = LeakyRNN(*map(jnp.asarray, (u, w, v)))
    _, dense = oracles.dense_reference(
        model,
        oracles.squared_error,
        jnp.asarray(xs),
        jnp.asarray(targets),
        groups=[StateGroup((0,))],
    )
    for name, wanted in grads.items():
        assert np.allclose(getattr(dense, name), wanted, rtol=1e-12), name


class Reset(eqx.Module):
    """Spikes read before the reset: y = spike(mem), mem' = mem - spike, mem = 0.9 mem +
    w x."""

    w: jax.Array

    def init_state(self):
        return jnp.zeros(1)

    def __call__(self, state, x):
        mem = 0.9 * state + self.w * x
        # The logistic function stands for a spike and its surrogate at once.
        spikes = jax.nn.sigmoid(mem)
        return spikes, mem - spikes


def test_outputs_before_the_reset_by_hand():
    w, xs, targets = (
        0.6,
        np.array([1.0, -2.0, 0.5, 1.5]),
        np.array([0.3, 0.9, 0.1, 0.4]),
    )
    mem = trace = gradient = 0.0
    for x, target in zip(xs, targets, strict=True):
        before, trace = 0.9 * mem + w * x, 0.9 * trace + x
        spikes = 1 / (1 + np.exp(-before))
        slope = spikes * (1 - spikes)
        gradient += (spikes - target) * slope * trace
        mem, trace = before - spikes, (1 - slope) * trace
    _, dense = oracles.dense_reference(
        Reset(jnp.array([w])),
        oracles.squared_error,
        jnp.asarray(xs[:, None]),
        jnp.asarray(targets[:, None]),
        groups=[StateGroup((0,))],
    )
    assert np.allclose(dense.w, gradient, rtol=1e-12)


def test_positions_that_move_are_cut():
    """A roll mixes nothing, but arrives elsewhere: it is no part of D."""

    class Rolled(eqx.Module):
        w: jax.Array

        def init_state(self):
            return jnp.zeros(3)

        def __call__(self, state, x):
            moved = jnp.roll(oracles.mixing_input(state, (0,)), 1)
            h = 0.5 * state + 0.3 * moved + self.w * x
            return h, h

    class Straight(Rolled):
        def __call__(self, state, x):
            h = (
                0.5 * state
                + 0.3 * jnp.roll(jax.lax.stop_gradient(state), 1)
                + self.w * x
            )
            return h, h

    generator = np.random.default_rng(0)
    w, xs, targets = (
        jnp.asarray(generator.normal(size=s)) for s in [(3,), (4, 3), (4, 3)]
    )
    data = oracles.squared_error, xs, targets
    dense = oracles.dense_reference(Rolled(w), *data, groups=[StateGroup((0,))])[1]
    assert np.allclose(dense.w, oracles.bptt(Straight(w), *data)[1].w, rtol=1e-12)


# By finite differences.


@pytest.mark.parametrize("kind", ["gru", "complex_lru"])
def test_bptt_by_finite_differences(kind):
    problem = make_problem(NetSpec((LayerSpec(kind), LayerSpec("leaky"))), length=4)
    parameters, static = eqx.partition(problem.model, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(parameters)

    @jax.jit
    def value(flat):
        model = eqx.combine(unravel(flat), static)
        data = (problem.inputs, problem.targets)
        return oracles.bptt(model, problem.loss_fn, *data)[0]

    direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))
    step = 1e-6
    slope = (value(flat + step * direction) - value(flat - step * direction)) / (
        2 * step
    )
    gradient = ravel_pytree(problem.bptt()[1])[0]
    assert np.allclose(slope, gradient @ direction, rtol=1e-6)


# Marks.


def test_marks_leave_no_trace():
    def marked(x):
        return jnp.sum(oracles.mixing_input({"x": jnp.sin(x)}, (0, 1))["x"])

    def plain(x):
        return jnp.sum(jnp.sin(x))

    x = jnp.ones(3)
    assert str(jax.make_jaxpr(marked)(x)) == str(jax.make_jaxpr(plain)(x))
    value = object()
    assert oracles.mixing_input(value, (0,)) is value


def test_a_reference_leaves_the_model_as_it_was():
    problem = make_problem(NetSpec((LayerSpec("gru"),)), length=3)
    step = lambda: str(  # noqa: E731
        jax.make_jaxpr(problem.model)(problem.model.init_state(), problem.inputs[0])
    )
    before, exact = step(), problem.bptt()
    problem.dense()
    assert step() == before
    close(problem.bptt(), exact)


# What the caller gets wrong.


def test_errors_name_the_argument():
    problem = make_problem(NetSpec((LayerSpec("lstm"),)), length=3)
    with pytest.raises(ValueError, match="window"):
        problem.truncated(window=0)
    with pytest.raises(ValueError, match="window"):
        problem.truncated(window=(1, 1))
    with pytest.raises(ValueError, match="mask"):
        problem.bptt(mask=jnp.ones(2))
    # A TypeError where a run-time type checker is faster.
    with pytest.raises((ValueError, TypeError), match="reduction"):
        problem.bptt(reduction="max")
    with pytest.raises(ValueError, match="groups"):
        problem.dense(groups=(StateGroup((0,)),))
    with pytest.raises((ValueError, TypeError), match="vjp_method"):
        problem.dense(vjp_method="none")
    with pytest.raises(ValueError, match="one size"):
        both = make_problem(NetSpec((LayerSpec("lru"), LayerSpec("lru", size=2))))
        both.dense(groups=(StateGroup((0, 1)),))


def test_the_oracles_do_not_need_hypothesis():
    code = "import sys; sys.modules['hypothesis'] = None; import etrace.testing"
    subprocess.run([sys.executable, "-c", code], check=True)


# Drawn models.


@hypothesis.given(problem=oracles.problems())
@hypothesis.settings(max_examples=examples(ci=3, thorough=30))
def test_drawn_problems_obey_the_laws(problem):
    fresh_caches()
    exact = problem.bptt()[1]
    length = len(jax.tree.leaves(problem.inputs)[0])
    close(problem.dense(vjp_method="multi-step", window=length)[1], exact, 1e-10)
    if problem.exact:
        close(problem.dense()[1], exact, 1e-10)
    for leaf in jax.tree.leaves(exact):
        assert jnp.isfinite(leaf).all()


def test_the_past_contributes_to_most_drawn_problems():
    shares = []

    @hypothesis.given(problem=oracles.problems(lengths=st.just(5)))
    @hypothesis.settings(
        max_examples=8,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
    )
    def collect(problem):
        fresh_caches()
        shares.append(problem.past_share())

    collect()
    assert np.mean(np.array(shares) > 1e-2) > 0.6, shares


@hypothesis.given(data=st.data(), length=oracles.sequence_lengths())
def test_drawn_windows_and_masks_fit(data, length):
    assert sum(data.draw(oracles.window_splits(length))) == length
    mask = data.draw(oracles.masks(length))
    assert mask is None or (len(mask) == length and any(mask))


@hypothesis.given(spec=oracles.net_specs())
@hypothesis.settings(max_examples=20)
def test_drawn_specifications_are_consistent(spec):
    spec.check()
    model = oracles.RandomNet(spec)
    leaves = [leaf for group in model.groups for leaf in group.leaves]
    hidden = jax.tree.leaves(eqx.filter(model.init_state(), eqx.is_inexact_array))
    assert leaves == list(range(len(hidden)))
