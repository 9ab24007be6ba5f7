"""The verdict on a model does not depend on how its state is stored."""

import warnings

import hypothesis
import numpy as np
from jaxtyping import PyTree

import etrace

from ..helpers import examples, fresh_caches
from .comparison import SINGLE_TOLERANCE, TOLERANCE, by_driver, distance, sequence
from .programs import Program, Spec, nodes_of, specs
from .twins import Stored, storages


def outcome(model: PyTree, data: tuple) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The rows of the report, as (parameter, status), and the gradient."""
    *inputs, _ = data
    # How many numbers of one leaf a position may hold does count leaves.
    algorithm = etrace.DRTRL(model, position_size=64)
    report = algorithm.graph(*(x[0] for x in inputs))
    rows = [(r.parameter.removeprefix(".program"), r.status) for r in report.rows]
    return sorted({*rows}), by_driver(algorithm, data, 1)[1]


def check(spec: Spec) -> None:
    program, data = Program(spec), sequence(spec, nodes_of(spec))
    rows, gradient = outcome(program, data)
    if not (np.isfinite(gradient).all() and abs(gradient).max() < 1e6):
        return
    names = sorted(storages(spec))
    name = names[spec.seed % len(names)]
    twin = Stored(program, *storages(spec)[name], company=bool(spec.seed % 2))
    stored_rows, stored_gradient = outcome(twin, data)
    assert stored_rows == rows, (name, spec)
    tolerance = SINGLE_TOLERANCE if spec.single else TOLERANCE
    error = distance(stored_gradient, gradient)
    assert error < tolerance, (name, error, spec)


@hypothesis.settings(max_examples=examples(ci=10, thorough=500))
@hypothesis.seed(0)
@hypothesis.given(spec=specs())
def test_twins(spec: Spec):
    fresh_caches()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        warnings.simplefilter("ignore", etrace.LostCreditWarning)
        check(spec)
