"""Which neurons are of one population, and how many numbers a neuron may have."""

import jax
import jax.numpy as jnp
import pytest

import etrace

from .program import INPUTS, N, Program, U, W, check, loss, normal

pytestmark = pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")


spike = etrace.nn.Triangle(0.5)


def adaptive(w, state, x):
    """A threshold and an adaptation that act before the recurrent product."""
    v, a = state
    s = spike(v - w["thr"] - w["beta"] * a)
    v = jax.nn.sigmoid(w["tau"]) * v + w["w"] @ x + w["u"] @ s - s * w["thr"]
    return w["out"] @ s, (v, 0.95 * a + s)


def test_what_acts_before_the_recurrent_product_is_traced():
    """Along its local paths: within some per cent of the exact gradient."""
    n = 32
    keys = jax.random.split(jax.random.key(0), 4)
    normals = [(n, 8, 0.5), (n, n, 0.1), (4, n, 0.2)]
    w, u, out = (
        s * jax.random.normal(k, (i, j))
        for k, (i, j, s) in zip(keys, normals, strict=False)
    )
    weights = {"w": w, "u": u, "out": out, "thr": jnp.ones(n)}
    weights |= {"beta": jnp.full(n, 0.2), "tau": jnp.full(n, 2.0)}
    start = lambda: (jnp.zeros(n), jnp.zeros(n))  # noqa: E731
    model = Program(adaptive, weights, start).model()
    inputs = jax.random.normal(keys[3], (60, 8))
    run = etrace.value_and_grad(loss, window=20, reduction="sum", carry=False)
    found = run(etrace.DRTRL(model), None, inputs, jnp.zeros(60))[1].weights
    whole = etrace.value_and_grad(loss, window=60, reduction="sum", carry=False)
    multi_step = etrace.DRTRL(model, None, "multi-step")
    exact = whole(multi_step, None, inputs, jnp.zeros(60))[1].weights
    for name in ("thr", "beta", "tau"):
        a, b = found[name], exact[name]
        ratio = jnp.linalg.norm(a) / jnp.linalg.norm(b)
        cosine = a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)
        assert cosine > 0.95 and 0.9 < ratio < 1.1, (name, cosine, ratio)


def heads(w, h, x):
    """Neurons in heads, each of which is connected within."""
    within = jnp.einsum("hji,hj->hi", w["u"], h)
    h = 0.7 * h + 0.3 * jnp.tanh((w["w"] @ x).reshape(h.shape) + within)
    return h, h


def of_heads(number, size):
    weights = {
        "w": normal(number * size, 3, seed=2),
        "u": normal(number, size, size, seed=3) / size,
    }
    return Program(heads, weights, lambda: jnp.zeros((number, size)))


def test_heads_are_exact():
    check(of_heads(2, 3))


@pytest.mark.parametrize("size", [16, 17])
def test_a_head_too_large_is_told_in_the_row_of_its_weight(size: int):
    report = etrace.DRTRL(of_heads(2, size).model()).graph(INPUTS[0])
    numbers = {row.parameter: row.trace_shapes for row in report.rows}
    if numbers[".weights['w']"][0][0] < size:
        rows = [row for row in report.rows if row.parameter == ".weights['u']"]
        assert any("position_size" in row.reason for row in rows) and report.losses


def test_rflo_takes_heads():
    report = etrace.RFLO(of_heads(4, 4).model(), leak=0.7).graph(INPUTS[0])
    assert all(row.trace_shapes for row in report.rows)


def test_excitation_and_inhibition_in_one_leaf_and_in_two():
    """The same gradient, however the two populations are stored."""

    def step(w, h, x):
        e, i = jnp.split(h, 2)
        drive = jnp.concatenate([w["e"] @ jnp.tanh(h), -w["i"] @ jnp.tanh(h)])
        h = jax.nn.sigmoid(w["a"]) * h + drive + w["w"] @ x
        return h, h

    def in_two(w, state, x):
        y, h = step(w, jnp.concatenate(state), x)
        return y, tuple(jnp.split(h, 2))

    weights = {"e": U[:2], "i": U[2:], "a": normal(N, seed=5), "w": W}
    one = Program(step, weights, exact=False)
    two = Program(in_two, weights, lambda: (jnp.zeros(2), jnp.zeros(2)), exact=False)
    check(one)
    check(two)
