"""The benchmark runs, and notices gradients that should be equal and are not."""

import jax
import pytest

from .benchmarks import __main__ as benchmarks, report
from .benchmarks.methods import Method, Problem


@pytest.fixture(autouse=True)
def _as_users_run_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("kind", ["gru", "alif"])
def test_measures_and_reports(kind, tmp_path):
    problem = Problem(kind, 3, 4, 2, 6)
    chosen = {
        **benchmarks.REFERENCE,
        **benchmarks.WHOLE,
        **benchmarks.windows(4, 1),
        **benchmarks.VMAPPED,
    }
    case = benchmarks.measured(problem, chosen, repeats=3)
    assert set(case["differences"]) == set(chosen) - {"BPTT"}
    growth = [dict(method="BPTT", steps=t, bytes=t, median=t) for t in (1, 2)]
    versions = dict(device="cpu", cores=2, python="3", jax="1", etrace="0")
    case["problem"]["steps"] = 100  # as those that are plotted
    results = dict(versions, cases=[case], growth=growth)
    text = report.table(results)
    assert str(problem) in text and all(f"| {name} |" in text for name in chosen)
    report.plot(results, tmp_path)
    assert (tmp_path / "benchmarks.svg").stat().st_size > 1000


def test_unequal_gradients_are_refused():
    methods = {
        f"window {w}": Method(lambda w=w: (0.0, jax.numpy.full(3, 1.0 + w)))
        for w in (1, 2)
    }
    with pytest.raises(AssertionError, match="window 2"):
        benchmarks.compare(methods)
