"""What every rule keeps.

Each rule of `RULES` takes every test in the profile "thorough". By default what rests
on code of all rules is asked of one rule for each way to store and move a trace.
"""

import functools
import io
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.testing as et
from etrace import MultiStepData

from .helpers import examples, fresh_caches
from .rules import FAMILIES, RULES, Rule

LAYERS = (et.LayerSpec("leaky", 3), et.LayerSpec("lif", 2))
SPEC = et.NetSpec(LAYERS, readout="linear", initial="tanh")
LENGTH, BATCH = 4, 2
# Variants that differ only in the gradient.
VARIANTS = ("ThreeFactor of ESDRTRL", "EProp, random feedback")
# Rules of a family come first: each has one place in all lists, by which pytest keeps
# its tests together.
NAMES = sorted(RULES, key=lambda name: (name not in FAMILIES, name in VARIANTS))
every_rule = pytest.mark.parametrize(
    "name", examples(ci=NAMES[: len(FAMILIES)], thorough=NAMES), scope="module"
)
each_rule = pytest.mark.parametrize("name", NAMES[: -len(VARIANTS)], scope="module")
a_rule_of_each_family = pytest.mark.parametrize(
    "name",
    examples(ci=NAMES[: len(FAMILIES)], thorough=NAMES[: -len(VARIANTS)]),
    scope="module",
)


@functools.lru_cache(maxsize=1)
def one_rule(name: str) -> dict[Any, Any]:
    """What the tests of a rule share."""
    fresh_caches()
    return {}


def setup(name: str, dtype: Any = None, batch: int | None = None) -> tuple:
    """(rule, problem, algorithm)."""
    shared, rule = one_rule(name), RULES[name]
    if (dtype, batch) not in shared:
        problem = et.make_problem(SPEC, length=LENGTH, batch=batch, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
            algorithm = rule.make(problem.model, batched=batch is not None)
            algorithm.init(problem.inputs[0])
        shared[dtype, batch] = problem, algorithm
    return rule, *shared[dtype, batch]


def modulator(rule: Rule, dtype: Any = None) -> dict[str, Any]:
    values = np.random.default_rng(1).normal(size=LENGTH)
    return {"modulator": jnp.asarray(values, dtype)} if rule.modulated else {}


def is_alone(name: str) -> bool:
    """Whether no reference says what the rule is."""
    return RULES[name].reference is None


def summed(outputs: Any, targets: Any) -> jax.Array:
    return jnp.sum(jax.vmap(et.squared_error)(outputs, targets))


@functools.cache
def driver(window: int, batched: bool = False) -> Any:
    """Of a batch, one that keeps no trace after the last window."""
    if batched:
        return etrace.value_and_grad(
            summed, window=window, reduction="sum", carry=False
        )
    return etrace.value_and_grad(et.squared_error, window=window, reduction="sum")


def gradient(rule: Rule, problem: et.Problem, algorithm: Any, window: int = 2) -> Any:
    data = (problem.inputs, problem.targets)
    more = modulator(rule, problem.targets.dtype)
    return driver(window)(algorithm, None, *data, **more)[1]


@pytest.mark.parametrize(
    "name",
    examples(ci=[n for n in NAMES if n in FAMILIES or is_alone(n)], thorough=NAMES),
    scope="module",
)
def test_windows_are_steps(name: str):
    """The references of the others know no windows, and test_rules draws these."""
    rule, problem, algorithm = setup(name)
    grads = [gradient(rule, problem, algorithm, window) for window in (1, 2)]
    assert et.gradient_distance(grads[1], grads[0]) < 1e-10
    _, now = problem.truncated(window=1)
    assert et.gradient_distance(grads[0], now) > 1e-3


@every_rule
def test_a_batch_is_its_examples(name: str):
    rule, problem, algorithm = setup(name, batch=BATCH)
    state = algorithm.init(problem.inputs[0])
    data = (problem.inputs, problem.targets)
    run = driver(2, batched=True)
    together = run(algorithm, copied(state), *data, **modulator(rule))[1]
    _, _, single = setup(name)
    total = None
    for i in range(BATCH):
        example = jax.tree.map(lambda x: x[i], state)  # noqa: B023
        data = (problem.inputs[:, i], problem.targets[:, i])
        grads = driver(2)(single, example, *data, **modulator(rule))[1]
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert et.gradient_distance(together, total) < 1e-10


def copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


@a_rule_of_each_family
def test_low_precision(name: str):
    """Of everything, and of what is stored."""
    rule, problem, algorithm = setup(name)
    exact = gradient(rule, problem, algorithm)
    rounded = rule.make(problem.model, trace_dtype=jnp.bfloat16)
    *_, trace = rounded.init(problem.inputs[0])
    stored = {x.dtype for x in jax.tree.leaves(trace) if x.ndim > 1}
    assert jnp.dtype(jnp.bfloat16) in stored
    grads = gradient(rule, problem, rounded)
    assert 0 < et.gradient_distance(grads, exact) < 0.05

    rule, problem, algorithm = setup(name, jnp.bfloat16)
    grads = gradient(rule, problem, algorithm)
    params = eqx.filter(problem.model, eqx.is_inexact_array)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
    assert all(a.dtype == b.dtype for a, b in pairs)
    wide = jax.tree.map(lambda x: x.astype(float), grads)
    if name not in ("UORO", "KFRTRL"):  # their signs are drawn otherwise
        assert et.gradient_distance(wide, exact) < 0.1


@a_rule_of_each_family
def test_jit_vmap_and_scan(name: str):
    rule, problem, algorithm = setup(name)
    extra = {"modulator": jnp.asarray(0.5)} if rule.modulated else {}
    xs = problem.inputs

    def step_gradient(algorithm, state, x, target):
        def loss(algorithm):
            outputs, *new = algorithm.update(*state, x, **extra)
            return problem.loss_fn(outputs, target), tuple(new)

        grads, state = eqx.filter_grad(loss, has_aux=True)(algorithm)
        return grads.model, state

    state = algorithm.init(xs[0])
    total = None
    for x, target in zip(xs, problem.targets, strict=True):
        grads, state = step_gradient(algorithm, state, x, target)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)

    @eqx.filter_jit
    def scanned(algorithm, state, xs, targets):
        def step(state, data):
            grads, state = step_gradient(algorithm, state, *data)
            return state, grads

        state, grads = jax.lax.scan(step, state, (xs, targets))
        return jax.tree.map(lambda g: jnp.sum(g, axis=0), grads), state

    start = algorithm.init(xs[0])
    grads, last = scanned(algorithm, start, xs, problem.targets)
    assert et.gradient_distance(grads, total) < 1e-10
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), (start, xs, problem.targets))
    mapped = eqx.filter_vmap(scanned, in_axes=(None, 0, 0, 0))
    both, _ = mapped(algorithm, *twice)
    first = jax.tree.map(lambda x: x[1], both)
    assert et.gradient_distance(first, total) < 1e-10
    same = zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True)
    assert all(np.allclose(a, b, atol=1e-10) for a, b in same)


@a_rule_of_each_family
def test_a_saved_state_goes_on_the_same_and_compiles_nothing(name: str, caplog):
    rule, problem, algorithm = setup(name)
    data = (problem.inputs, problem.targets)
    run = driver(2)
    *_, state = run(algorithm, None, *data, **modulator(rule))
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    like = algorithm.init(problem.inputs[0])
    loaded = eqx.tree_deserialise_leaves(file, like)
    once = run(algorithm, state, *data, **modulator(rule))
    caplog.clear()
    with jax.log_compiles():
        again = run(algorithm, loaded, *data, **modulator(rule))
    assert not any("Compiling" in record.message for record in caplog.records)
    pairs = zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


@each_rule
@pytest.mark.parametrize("batch", [None, BATCH])
def test_reported_bytes_are_actual(name: str, batch: int | None):
    _, problem, algorithm = setup(name, batch=batch)
    x = problem.inputs[0]
    *_, trace = algorithm.init(x)
    actual = sum(leaf.nbytes for leaf in jax.tree.leaves(trace))
    assert algorithm.graph(x).nbytes == actual > 0


@a_rule_of_each_family
def test_short_sequences(name: str):
    rule, problem, algorithm = setup(name)
    more = modulator(rule)
    with pytest.raises(ValueError, match="empty sequence"):
        driver(1)(algorithm, None, problem.inputs[:0], problem.targets[:0])
    first = jax.tree.map(lambda x: x[:1], (problem.inputs, problem.targets, more))
    inputs, targets, more = first
    _, grads, _ = driver(3)(algorithm, None, inputs, targets, **more)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    if rule.modulated:
        return
    one = et.truncated(problem.model, problem.loss_fn, inputs, targets, window=1)
    assert et.gradient_distance(grads, one[1]) < 1e-10


@each_rule
def test_methods_are_those_it_has(name: str):
    rule, problem, _ = setup(name)
    if "multi-step" in rule.methods:
        algorithm = rule.make(problem.model, vjp_method="multi-step")
        grads = gradient(rule, problem, algorithm, LENGTH)
        assert et.gradient_distance(grads, problem.bptt()[1]) < 1e-10
    else:
        with pytest.raises(ValueError, match="vjp_method is .*single-step"):
            rule.make(problem.model, vjp_method="multi-step")


@a_rule_of_each_family
def test_inputs_get_their_cotangent(name: str):
    rule, problem, algorithm = setup(name)
    state = algorithm.init(problem.inputs[0])
    extra = {"modulator": jnp.asarray(0.5)} if rule.modulated else {}

    def loss(x):
        outputs, *_ = algorithm.update(*state, MultiStepData(x), **extra)
        return jnp.sum(jax.vmap(problem.loss_fn)(outputs, problem.targets))

    got = jax.grad(loss)(problem.inputs)
    assert got.shape == problem.inputs.shape and jnp.any(got != 0)
