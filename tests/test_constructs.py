"""Every construct of the table in the documentation: exact, or left at "now" with the
reason. There is no third outcome."""

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


def gradient(construct: Construct, method: str, window: int):
    driver = etrace.value_and_grad(
        et.squared_error, window=window, reduction="sum", carry=False
    )
    algorithm = etrace.DRTRL(construct.model(), vjp_method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        return driver(algorithm, None, INPUTS, TARGETS)[1].weights


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
