"""The canonical form of each operation: z = Σ x w, and its transpose, whatever the
layout."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from etrace._analysis.sites import make_site
from etrace._program.operations import Operations
from etrace._program.trace import trace_program


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def form_of(op: Callable, data, weight, operand: int):
    """The site of the one equation of `op(data, weight)`."""
    program = trace_program(lambda x, w: [op(x, w)], [data, weight])
    names = [e.name for e in program.equations]
    i = max(i for i, e in enumerate(program.equations) if weight_of(program, e))
    site = make_site(Operations(program), (i, operand))
    assert site is not None, names
    return site.form


def weight_of(program, equation) -> bool:
    return program.inputs[1] in equation.inputs


def check(op: Callable, data, weight, operand: int = 1) -> None:
    form = form_of(op, data, weight, operand)
    operands = (data, weight) if operand == 1 else (weight, data)
    b, p, o, c = form.sizes
    x = form.local_input(*operands)
    assert x.shape == (b, p, c)
    z, pull = jax.vjp(lambda w: op(data, w), weight)
    cotangent = normal(*z.shape, seed=2)
    (expected,) = pull(cotangent)
    canonical = form.canonical(cotangent)
    assert canonical.shape == (b, p, o)
    gradient = form.weight(jnp.einsum("bpo,bpc->boc", canonical, x))
    assert gradient.shape == weight.shape
    assert jnp.allclose(gradient, expected, rtol=1e-10, atol=1e-12)


DOTS = {
    "matrix-vector": (((1,), (0,)), ((), ())),
    "vector-matrix": (((0,), (1,)), ((), ())),
    "two contracted": (((1, 2), (1, 0)), ((), ())),
    "batched": (((2,), (1,)), ((0,), (0,))),
    "two batched, swapped": (((2,), (0,)), ((0, 1), (2, 1))),
    "outer": (((), ()), ((), ())),
}
SHAPES = {
    "matrix-vector": ((4, 3), (3,)),
    "vector-matrix": ((3,), (4, 3)),
    "two contracted": ((5, 2, 3), (3, 2, 4)),
    "batched": ((2, 4, 3), (2, 3, 5)),
    "two batched, swapped": ((2, 4, 3, 5), (3, 4, 2, 6)),
    "outer": ((3,), (2, 2)),
}


@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("name", DOTS)
def test_dot_general(name: str, operand: int):
    left, right = (normal(*shape) for shape in SHAPES[name])
    numbers = DOTS[name]
    if operand == 1:
        check(lambda x, w: lax.dot_general(x, w, numbers), left, right, 1)
    else:
        check(lambda x, w: lax.dot_general(w, x, numbers), right, left, 0)


SPACE = {1: (7,), 2: (5, 6), 3: (4, 3, 4)}
CONVS = {
    "plain": {},
    "strides": {"window_strides": 2},
    "same": {"padding": "SAME"},
    "padding": {"padding": (2, 1)},
    "dilated": {"rhs_dilation": 2, "padding": "SAME"},
    "transposed": {"lhs_dilation": 2, "padding": (1, 1)},
    "groups": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": 4},
    "all": {
        "window_strides": 2,
        "padding": (2, 2),
        "rhs_dilation": 2,
        "feature_group_count": 2,
    },
}


@pytest.mark.parametrize("dims", SPACE)
@pytest.mark.parametrize("name", CONVS)
def test_conv(name: str, dims: int):
    options = dict(CONVS[name])
    groups = options.get("feature_group_count", 1)
    for key in ("window_strides", "rhs_dilation", "lhs_dilation"):
        if key in options or key == "window_strides":
            options[key] = (options.get(key, 1),) * dims
    padding = options.pop("padding", "VALID")
    if isinstance(padding, tuple):
        padding = [padding] * dims
    data = normal(2, 4, *SPACE[dims])
    weight = normal(8, 4 // groups, *(2,) * dims, seed=1)
    check(
        lambda x, w: lax.conv_general_dilated(x, w, padding=padding, **options),
        data,
        weight,
    )


@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC")])
def test_conv_layouts(layout: tuple[str, str, str]):
    sizes = {"N": 2, "H": 5, "W": 6, "C": 4}
    data = normal(*(sizes[d] for d in layout[0]))
    filters = {"O": 6, "I": 2, "H": 2, "W": 3}
    weight = normal(*(filters[d] for d in layout[1]), seed=1)

    def op(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 2), "SAME", dimension_numbers=layout, feature_group_count=2
        )

    check(op, data, weight)


LOOKUPS = {
    "one row": (lambda i, w: w[i], jnp.asarray(2)),
    "several rows": (lambda i, w: w[i], jnp.asarray([2, 0, 2])),
    "an array of rows": (lambda i, w: w[i], jnp.asarray([[2, 0], [1, 2]])),
    "columns": (lambda i, w: jnp.take(w, i, axis=1), jnp.asarray([1, 1, 0])),
    "out of bounds": (
        lambda i, w: w.at[i].get(mode="fill", fill_value=0.0),
        jnp.asarray([1, 7]),
    ),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookup(name: str):
    """The gradient of the lookup itself; what follows it only moves its rows."""
    op, index = LOOKUPS[name]
    weight = normal(3, 4)
    program = trace_program(lambda i, w: [op(i, w)], [index, weight])
    (i,) = [i for i, e in enumerate(program.equations) if program.inputs[1] in e.inputs]
    site = make_site(Operations(program), (i, 0))
    assert site is not None
    values = dict(program.constants) | dict(zip(program.inputs, (index, weight)))
    for e in program.equations[:i]:
        results = e.fun(*(values[v] for v in e.inputs))
        values.update(zip(e.outputs, results))
    operands = [values[v] for v in site.equation.inputs]
    z, pull = jax.vjp(lambda w: site.equation.fun(w, *operands[1:])[0], weight)
    cotangent = normal(*z.shape, seed=2)
    x = site.form.local_input(*operands)
    gradient = jnp.einsum("bpo,bpc->boc", site.form.canonical(cotangent), x)
    assert jnp.allclose(site.form.weight(gradient), pull(cotangent)[0])


BROADCASTS = [((3, 4), (3, 4)), ((), (3, 4)), ((1, 4), (3, 4)), ((3, 1), (3, 4))]


@pytest.mark.parametrize("weight, data", BROADCASTS)
def test_elementwise(weight: tuple[int, ...], data: tuple[int, ...]):
    """A bias, added where it is broadcast."""
    check(lax.add if weight == data else jnp.add, normal(*data), normal(*weight))
