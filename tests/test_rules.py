"""Every rule against its dense reference, on random networks."""

import warnings
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.testing as et

from .helpers import examples, fresh_caches, siblings, starting_from
from .rules import RULES, Rule, is_single

TOLERANCE = 1e-9
LENGTH = 4
REFERRED = {name: rule for name, rule in RULES.items() if rule.reference is not None}
SINGLE = [kind for kind in et.CELLS if is_single(kind)]


def gradient(rule: Rule, problem: et.Problem, method: str, window: int) -> Any:
    """The rule's gradient of a problem, by the driver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        algorithm = rule.make(problem.model, vjp_method=method)
        state = algorithm.init(*(x[0] for x in arguments(problem)))
    state = starting_from(problem, state)
    driver = etrace.value_and_grad(problem.loss_fn, window=window, reduction="sum")
    more = {"modulator": modulator()} if rule.modulated else {}
    data = (problem.inputs, problem.targets, problem.mask)
    return driver(algorithm, state, *data, **more)[1]


def arguments(problem: et.Problem) -> tuple[Any, ...]:
    inputs = problem.inputs
    return inputs if isinstance(inputs, tuple) else (inputs,)


def modulator() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=LENGTH))


def compared(name: str, problem: et.Problem, method: str, window: int) -> Any:
    """Asserts that the rule is its reference; what the past adds to the gradient."""
    rule = REFERRED[name]
    options = {"modulator": modulator()} if rule.modulated else {}
    _, expected = problem.reference(
        rule.reference, vjp_method=method, window=window, **options
    )
    got = gradient(rule, problem, method, window)
    distance = et.gradient_distance(got, expected)
    assert distance < TOLERANCE, (name, method, window, float(distance))
    return et.gradient_distance(expected, problem.truncated(window=1)[1])


@pytest.mark.parametrize("kind", et.CELLS)
def test_every_rule_equals_its_dense_reference(kind: str):
    """By default each kind takes a fifth of the rules, in turn."""
    n, rules = list(et.CELLS).index(kind), list(REFERRED.items())
    taken = dict(examples(ci=rules[n % 5 :: 5], thorough=rules))
    specs = et.net_specs(kinds=[kind, "leaky", "lif", "gru"], max_layers=2)
    specs = specs.filter(lambda spec: spec.layers[0].kind == kind)

    @hypothesis.settings(max_examples=examples(ci=1, thorough=10))
    @hypothesis.given(
        problem=et.problems(specs=specs, lengths=st.just(LENGTH)),
        window=st.sampled_from([1, 2]),
        data=st.data(),
    )
    def run(problem: et.Problem, window: int, data: st.DataObject):
        check(problem, window, data, taken)

    run()


@pytest.mark.parametrize("kind", examples(ci=["leaky"], thorough=SINGLE))
def test_rules_for_one_number_a_neuron(kind: str):
    """They fit few of the networks above, and are to see as many as the others."""
    specs = et.net_specs(kinds=SINGLE, max_layers=2)
    specs = specs.filter(lambda spec: spec.layers[0].kind == kind)
    single = {name: rule for name, rule in REFERRED.items() if rule.single}

    @hypothesis.settings(max_examples=examples(ci=1, thorough=20))
    @hypothesis.given(
        problem=et.problems(specs=specs, lengths=st.just(LENGTH)),
        window=st.sampled_from([1, 2]),
        data=st.data(),
    )
    def run(problem: et.Problem, window: int, data: st.DataObject):
        check(problem, window, data, single)

    run()


def check(
    problem: et.Problem, window: int, data: st.DataObject, rules: dict[str, Rule]
) -> None:
    """Compares the rules that fit, on the problem and its siblings."""
    fresh_caches()
    for name, rule in rules.items():
        if rule.fits(problem.model.spec):
            method = data.draw(st.sampled_from(rule.methods))
            for each in siblings(problem):
                past = compared(name, each, method, window)
                hypothesis.event(f"{name}: past {_rough(past)}")


LAYERS = (et.LayerSpec("gru", 3), et.LayerSpec("leaky", 2))


@pytest.mark.parametrize(
    "name",
    examples(ci=("DRTRL", "ESDRTRL", "SnAp"), thorough=tuple(REFERRED)),
)
def test_layers_that_feed_back(name: str):
    """What leaves one layer comes back to another within the step."""
    spec = et.NetSpec(LAYERS, readout="all", feedback=True)
    problem = et.make_problem(spec, length=LENGTH)
    for method in REFERRED[name].methods:
        compared(name, problem, method, 1)


def _rough(share: Any) -> str:
    return "none" if share < 1e-6 else "little" if share < 1e-2 else "much"
