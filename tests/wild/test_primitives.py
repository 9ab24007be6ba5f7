"""Operations that are not JAX's own: those of lineax, and of a user."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import etrace

from .program import Program, check, normal

pytestmark = pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")

WEIGHTS = {"w": normal(4, 3, seed=1), "d": normal(4, seed=2)}


def solved(kind: str):
    lx = pytest.importorskip("lineax")

    def step(w, h, x):
        d, b = 1 + w["d"] ** 2, h + w["w"] @ x
        operator = {
            "diagonal": lambda: lx.DiagonalLinearOperator(d),
            "by the state": lambda: lx.DiagonalLinearOperator(d + jnp.tanh(h) ** 2),
            "any diagonal": lambda: lx.DiagonalLinearOperator(d),
            "tagged": lambda: lx.MatrixLinearOperator(jnp.diag(d), lx.diagonal_tag),
            "matrix": lambda: lx.MatrixLinearOperator(jnp.diag(d)),
        }[kind]()
        solver = lx.AutoLinearSolver(well_posed=kind != "any diagonal")
        h = lx.linear_solve(operator, b, solver).value
        return h, h

    return Program(step, WEIGHTS, exact=kind != "matrix")


@pytest.mark.parametrize(
    "kind", ["diagonal", "by the state", "any diagonal", "tagged", "matrix"]
)
def test_a_linear_solve_within_neurons(kind: str):
    program = solved(kind)
    check(program)
    report = etrace.DRTRL(program.model()).graph(program.inputs[0])
    expected = "now" if kind == "matrix" else "traced"
    assert {row.status for row in report.rows} == {expected}


def primitive(name: str, value, tangent) -> Primitive:
    """An operation along the last axis of two arrays, with its own derivative."""
    made = Primitive(name)
    made.def_impl(value)
    made.def_abstract_eval(lambda a, b: jax.core.ShapedArray(a.shape, a.dtype))
    mlir.register_lowering(made, mlir.lower_fun(value, multiple_results=False))

    def rule(primals, tangents):
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        return made.bind(*primals), tangent(*primals, *tangents)

    def batched(operands, axes):
        size = next(x.shape[a] for x, a in zip(operands, axes) if a is not None)
        rows = [
            jnp.broadcast_to(x, (size, *x.shape))
            if a is None
            else jnp.moveaxis(x, a, 0)
            for x, a in zip(operands, axes)
        ]
        return made.bind(*rows), 0

    ad.primitive_jvps[made] = rule
    batching.primitive_batchers[made] = batched
    return made


def total(x):
    return jnp.sum(x, -1, keepdims=True)


softened = primitive(  # its value mixes, its derivative does not
    "softened",
    lambda a, b: a * b + total(b),
    lambda a, b, da, db: da * b + a * db,
)
pooled = primitive(  # the other way round
    "pooled",
    lambda a, b: a * b,
    lambda a, b, da, db: total(da * b) + a * db,
)


@pytest.mark.parametrize("operation", [softened, pooled], ids=str)
def test_an_operation_is_judged_by_its_derivative(operation: Primitive):
    def step(w, h, x):
        h = 0.9 * h + operation.bind(w["w"] @ x, w["d"])
        return h, h

    local = operation is softened
    program = Program(step, WEIGHTS, exact=local)
    check(program)
    report = etrace.DRTRL(program.model()).graph(program.inputs[0])
    statuses = {row.parameter: row.status for row in report.rows}
    assert statuses[".weights['w']"] == ("traced" if local else "now")
