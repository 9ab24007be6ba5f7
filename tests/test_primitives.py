"""The registry of primitives: one place, and how one is added."""

import ast
import functools
import pathlib
import re

import equinox as eqx
import jax
import jax.extend as jex
import jax.numpy as jnp
import pytest
from jax.interpreters import ad, batching, mlir

import etrace
from etrace._analysis.cache import forget
from etrace._program.primitive import Kind, Primitive
from etrace._program.primitives import REGISTRY

ROOT = pathlib.Path(__file__).parents[1]


def strings(path: pathlib.Path) -> set[str]:
    """The strings in a file, but for docstrings."""
    tree = ast.parse(path.read_text())
    said = {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return {c.value for c in constants if isinstance(c.value, str) and c not in said}


def test_primitives_are_named_in_the_registry_alone():
    files = [
        *(ROOT / "etrace/_program").glob("*"),
        *(ROOT / "etrace/_analysis").glob("*"),
        *(ROOT / "etrace/_step").glob("*"),
        *(ROOT / "etrace/_rules").glob("*"),
    ]
    found = {
        (path.name, name)
        for path in files
        if path.suffix == ".py"
        for name in strings(path) & {*REGISTRY}
    }
    assert not found


# ------------------------------------------------------------------- one of one's own

twice = jex.core.Primitive("twice")
twice.def_impl(functools.partial(jnp.multiply, 2.0))
twice.def_abstract_eval(lambda x: x)
mlir.register_lowering(twice, mlir.lower_fun(lambda x: x + x, multiple_results=False))
ad.deflinear2(twice, lambda t, _: [twice.bind(t)])
batching.defvectorized(twice)


class Net(eqx.Module):
    w: jax.Array

    def init_state(self):
        return jnp.zeros(4)

    def __call__(self, h, x):
        h = 0.3 * twice.bind(h) + twice.bind(self.w @ x)
        return h, h


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
def test_the_recipe(monkeypatch: pytest.MonkeyPatch):
    """That of CONTRIBUTING: an entry is all that a primitive needs."""
    algorithm = etrace.DRTRL(Net(jnp.ones((4, 3))))
    (row,) = algorithm.graph(jnp.ones(3)).rows
    assert row.status == "now" and "a mixing operation lies between" in row.reason
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (line,) = re.findall(r'Primitive\("twice".*\)', text)
    entry = eval(line, {"Primitive": Primitive, "Kind": Kind})
    monkeypatch.setitem(REGISTRY, entry.name, entry)
    forget()
    try:
        (row,) = algorithm.graph(jnp.ones(3)).rows
        assert row.status == "traced"
        inputs = jnp.linspace(-1.0, 1.0, 15).reshape(5, 3)
        targets = jnp.zeros((5, 4))
        loss = lambda y, t: jnp.sum((y - t) ** 2)  # noqa: E731
        etrace.check_gradients(algorithm, loss, inputs, targets).assert_close()
    finally:
        forget()
