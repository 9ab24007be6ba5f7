"""D-RTRL against the dense reference, and against BPTT where they must agree."""

import dataclasses
import warnings
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

from .helpers import examples, fresh_caches, gradient_by_windows, siblings

TOLERANCE = 1e-9
SPLITS = examples(ci=2, thorough=13)  # window splits per model


def draw_splits(
    data: st.DataObject, length: int, number: int = SPLITS
) -> list[tuple[int, ...]]:
    """Different window splits of one sequence, into windows of two lengths."""
    long = data.draw(st.sampled_from([2, 3]))
    choices = st.lists(st.booleans(), min_size=length, max_size=length)
    splits = [(1,) * length]
    for _ in range(number - 1):
        split: list[int] = []
        for short in data.draw(choices):
            left = length - sum(split)
            if left:
                split.append(1 if short or left < long else long)
        splits.append(tuple(split))
    return splits


def starting_with(kind: str, others: list[str], max_layers: int):
    """Networks whose first layer is of one kind, the later ones of any of these."""

    def with_kind(spec: et.NetSpec) -> et.NetSpec:
        changed = len(spec.layers) if spec.tied else 1
        layers = [dataclasses.replace(x, kind=kind) for x in spec.layers[:changed]]
        spec = dataclasses.replace(spec, layers=(*layers, *spec.layers[changed:]))
        try:
            spec.check()
        except ValueError:  # this kind has no recurrent weights to tie
            spec = dataclasses.replace(spec, tied=False)
        return spec

    return et.net_specs(kinds=[kind, *others], max_layers=max_layers).map(with_kind)


@pytest.mark.parametrize("kind", et.CELLS)
def test_single_step_equals_dense_reference(kind: str):
    shares = []

    @hypothesis.settings(max_examples=examples(ci=1, thorough=15))
    @hypothesis.given(data=st.data())
    def run(data: st.DataObject):
        specs = starting_with(kind, ["gru", "lif"], 3)
        problem = data.draw(et.problems(specs=specs))
        splits = draw_splits(data, len(jax.tree.leaves(problem.inputs)[0]))
        fresh_caches()
        for each in siblings(problem):
            compare(each, splits)

    def compare(problem: et.Problem, splits: list[tuple[int, ...]]):
        value, expected = problem.dense()
        _, now = problem.truncated(window=1)
        shares.append(et.gradient_distance(expected, now))
        gradient = gradient_by_windows(etrace.DRTRL, problem, "single-step")
        for split in splits:
            got, grads = gradient(split)
            assert jnp.allclose(got, value, rtol=TOLERANCE)
            assert et.gradient_distance(grads, expected) < TOLERANCE

    run()
    # Where the past adds nothing, an agreement says nothing about a trace.
    if kind != "tanh":  # a vanilla RNN has no position-local memory: its D is zero
        assert np.mean(np.array(shares) > 1e-4) >= 0.5


@pytest.mark.parametrize(
    "kind",
    examples(ci=("lstm", "recurrent_lif"), thorough=[*et.CELLS]),
)
@hypothesis.settings(max_examples=examples(ci=1, thorough=8))
@hypothesis.given(data=st.data())
def test_multi_step_equals_dense_reference(kind: str, data: st.DataObject):
    specs = starting_with(kind, ["lstm", "alif"], 2)
    problem = data.draw(et.problems(specs=specs))
    fresh_caches()
    gradient = gradient_by_windows(etrace.DRTRL, problem, "multi-step")
    for split in draw_splits(data, len(jax.tree.leaves(problem.inputs)[0]), 3):
        value, expected = problem.dense(vjp_method="multi-step", window=split)
        got, grads = gradient(split)
        assert jnp.allclose(got, value, rtol=TOLERANCE)
        assert et.gradient_distance(grads, expected) < TOLERANCE


@hypothesis.settings(max_examples=examples(ci=2, thorough=20))
@hypothesis.given(problem=et.problems(lengths=st.just(5)))
def test_one_multi_step_window_is_bptt(problem: et.Problem):
    fresh_caches()
    value, expected = problem.bptt()
    got, grads = gradient_by_windows(etrace.DRTRL, problem, "multi-step")((5,))
    assert jnp.allclose(got, value, rtol=TOLERANCE)
    assert et.gradient_distance(grads, expected) < TOLERANCE


LOCAL = examples(
    ci=["indrnn", "leaky", "complex_lru"],
    thorough=["lru", "indrnn", "mingru", "leaky", "lif", "complex_lru"],
)


@pytest.mark.parametrize("kind", LOCAL)
@hypothesis.settings(max_examples=examples(ci=1, thorough=10))
@hypothesis.given(data=st.data())
def test_exact_on_position_local_recurrences(kind: str, data: st.DataObject):
    specs = et.net_specs(kinds=[kind], max_layers=1, norms=False, extras=False)
    exact = specs.filter(lambda spec: spec.exact)
    problem = data.draw(et.problems(specs=exact))
    fresh_caches()
    _, expected = problem.bptt()
    length = len(jax.tree.leaves(problem.inputs)[0])
    for method in ("single-step", "multi-step"):
        gradient = gradient_by_windows(etrace.DRTRL, problem, method)
        for split in ((1,) * length, (2,) * (length // 2) + (1,) * (length % 2)):
            assert et.gradient_distance(gradient(split)[1], expected) < TOLERANCE


@pytest.mark.parametrize(
    "kind", examples(ci=["alif"], thorough=["gru", "lstm", "alif"])
)
def test_batched_equals_the_sum_over_examples(kind: str):
    spec = et.NetSpec((et.LayerSpec(kind, 3), et.LayerSpec("lif", 2)))
    problem = et.make_problem(spec, length=5, batch=3, random_state=True)
    _, expected = problem.dense()
    for split in ((1,) * 5, (3, 2)):
        _, grads = gradient_by_windows(etrace.DRTRL, problem, "single-step")(split)
        assert et.gradient_distance(grads, expected) < TOLERANCE


def test_breaking_the_trace_is_noticed():
    """The comparison fails for a rule whose trace forgets to move."""

    class Forgetful(etrace.DRTRL):
        def _update_etrace_data(self, data, window):
            new = super()._update_etrace_data(data, window)
            return jax.tree.map(lambda a, b: a - 0.1 * b, new, data)

    problem = et.make_problem(et.NetSpec((et.LayerSpec("gru", 3),)), length=5)
    _, expected = problem.dense()
    _, grads = gradient_by_windows(Forgetful, problem, "single-step")((1,) * 5)
    assert et.gradient_distance(grads, expected) > 1e-3


def test_norm_between_weight_and_state_keeps_now():
    spec = et.NetSpec((et.LayerSpec("leaky", 3, norm=True),))
    problem = et.make_problem(spec, length=5)
    with pytest.warns(etrace.UntracedParameterWarning, match="mixing operation"):
        etrace.DRTRL(problem.model).init(problem.inputs[0])
    _, grads = gradient_by_windows(etrace.DRTRL, problem, "single-step")((2, 3))
    _, now = problem.truncated(window=1)
    _, expected = problem.dense()
    assert et.gradient_distance(grads, expected) < TOLERANCE
    untraced: Any = jax.tree.leaves(problem.untraced)
    leaves = zip(untraced, jax.tree.leaves(grads), jax.tree.leaves(now), strict=True)
    compared = [jnp.allclose(a, b, rtol=TOLERANCE) for u, a, b in leaves if u]
    assert compared and all(compared)


def test_mixing_tails_local_traces_the_local_part():
    spec = et.NetSpec((et.LayerSpec("leaky", 3, norm=True),))
    problem = et.make_problem(spec, length=5)
    _, expected = problem.dense(untraced=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", etrace.UntracedParameterWarning)
        gradient = gradient_by_windows(
            etrace.DRTRL, problem, "single-step", mixing_tails="local"
        )
    for split in ((1,) * 5, (3, 2)):
        assert et.gradient_distance(gradient(split)[1], expected) < TOLERANCE


def test_gradients_of_the_model_are_eqx_filtered():
    problem = et.make_problem(et.NetSpec((et.LayerSpec("gru", 2),)), length=3)
    _, grads = gradient_by_windows(etrace.DRTRL, problem, "single-step")((3,))
    params = eqx.filter(problem.model, eqx.is_inexact_array)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_a_layer_that_only_later_steps_read():
    """Its traced weights reach no loss of their own step, beside an untraced encoder
    that does not let its adjoints go the way of the loss."""
    layers = (et.LayerSpec("gru", 2), et.LayerSpec("lif", 2, delayed=True))
    problem = et.make_problem(et.NetSpec(layers, encoder=True), length=4)
    _, expected = problem.dense()
    gradient = gradient_by_windows(etrace.DRTRL, problem, "single-step")
    for split in ((1,) * 4, (4,)):
        assert et.gradient_distance(gradient(split)[1], expected) < TOLERANCE
