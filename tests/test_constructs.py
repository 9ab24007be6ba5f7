"""Every construct of the table in the documentation: exact, or left at "now" with the
reason. There is no third outcome."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.testing as et

from .constructs import CONSTRUCTS, IN, OUT, STEPS, Construct, normal
from .constructs.table import PATH, table

NAMES = [(section, name) for section, found in CONSTRUCTS.items() for name in found]
INPUTS, TARGETS = 2 * normal(STEPS, IN, seed=1), normal(STEPS, OUT, seed=2)


def by_windows(algorithm: etrace.ETraceVjpAlgorithm, window: int = 1):
    driver = etrace.value_and_grad(
        et.squared_error, window=window, reduction="sum", carry=False
    )
    return driver(algorithm, None, INPUTS, TARGETS)[1].weights


def gradient(construct: Construct, method: str, window: int):
    algorithm = etrace.DRTRL(construct.model(), vjp_method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        return by_windows(algorithm, window)


def report(construct: Construct):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = etrace.DRTRL(construct.model()).graph(INPUTS[0])
    kind = etrace.UntracedParameterWarning
    return found, [str(w.message) for w in caught if w.category is kind]


def close(a: jax.Array, b: jax.Array) -> bool:
    return bool(jnp.linalg.norm(a - b) <= 1e-9 * (jnp.linalg.norm(b) + 1e-3))


@pytest.mark.parametrize(("section", "name"), NAMES)
def test_exact_or_reported(section: str, name: str):
    construct = CONSTRUCTS[section][name]
    args = (construct.reference(), et.squared_error, INPUTS, TARGETS)
    exact = et.bptt(*args, reduction="sum")[1].weights
    now = et.truncated(*args, window=1, reduction="sum")[1].weights
    single = gradient(construct, "single-step", 1)
    multi = gradient(construct, "multi-step", STEPS)
    for weight in exact:
        assert close(multi[weight], exact[weight]), weight
        expected = now if weight in construct.now else exact
        assert close(single[weight], expected[weight]), weight
    # A past that says nothing would make every comparison pass.
    assert et.gradient_distance(exact, now) > 1e-2


@pytest.mark.parametrize(("section", "name"), NAMES)
def test_what_the_report_says(section: str, name: str):
    construct = CONSTRUCTS[section][name]
    found, messages = report(construct)
    left = {row.parameter for row in found.rows if row.status in ("now", "partly")}
    assert left == {f".weights['{w}']" for w in construct.now}
    for weight, reason in construct.now.items():
        (loss,) = [x for x in found.losses if f".weights['{weight}']" in x.what]
        assert reason in loss.reason and loss.remedy and "_" in loss.source
        assert all(weight in m and loss.remedy in m for m in messages)
    assert len(messages) <= 1 and bool(messages) <= bool(construct.now)


def test_the_table_in_the_documentation():
    assert PATH.read_text() == table(), "write it anew: python -m tests.constructs"


EXACT_RULES = {
    "RTRL": etrace.RTRL,
    "OSTL": etrace.OSTL,
    "SnAp": etrace.SnAp,
    "EProp": etrace.EProp,
}
INSIDE = [
    ("Operations", "sparse matrix (`BCOO @ x`)"),
    ("Operations", "low rank, `B @ (A @ x)`"),
    ("Positions and states", "two numbers in one array"),
    ("Positions and states", "compartments"),
    ("Positions and states", "memory with one matrix"),
    ("Positions and states", "ring buffer"),
    ("Control flow", "`while_loop` over the state"),
]


@pytest.mark.parametrize("rule", EXACT_RULES)
@pytest.mark.parametrize(("section", "name"), INSIDE)
def test_other_rules(section: str, name: str, rule: str):
    """Where nothing mixes between positions, these are BPTT as well."""
    construct = CONSTRUCTS[section][name]
    algorithm = EXACT_RULES[rule](construct.model())
    exact = et.bptt(
        construct.reference(), et.squared_error, INPUTS, TARGETS, reduction="sum"
    )[1].weights
    single = by_windows(algorithm)
    for weight in exact:
        assert close(single[weight], exact[weight]), weight


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_a_complex_weight_is_two_real_ones(method: str):
    """Factored traces are not exact, but the same however a weight is written."""
    construct = CONSTRUCTS["Positions and states"]["complex state"]

    def of_reals(w, z, x):
        z = jnp.exp(jax.lax.complex(-jnp.exp(w["nu"]), w["theta"])) * z
        z = z + jax.lax.complex(w["re"] @ x, w["im"] @ x)
        return [z.real, z.imag], z

    found = [
        by_windows(etrace.ESDRTRL(c.model(), vjp_method=method, decay=0.7), window=2)
        for c in (construct, dataclasses.replace(construct, step=of_reals))
    ]
    assert et.gradient_distance(*found) < 1e-9
