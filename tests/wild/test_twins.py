"""Models whose state is stored in several ways: the same rows and gradients."""

import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace

from .program import INPUTS, STEPS, N, Net, U, W, Weights, normal, online


def outcome(model: Net) -> tuple[list[tuple], Weights]:
    """The rows of the report, as (parameter, status, shapes of traces), and the
    gradient."""
    algorithm = etrace.DRTRL(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = algorithm.graph(INPUTS[0])
    rows = [(r.parameter, r.status, r.trace_shapes) for r in report.rows]
    return sorted(rows), eqx.filter_jit(online)(algorithm, INPUTS, 2)


def check_same(weights: Weights, *models: tuple[Callable, Callable]) -> None:
    """Of pairs of a step and a function that makes the state."""
    found = [outcome(Net(weights, *model)) for model in models]
    rows, gradients = found[0]
    assert any(status == "traced" for _, status, _ in rows)
    for other_rows, other in found[1:]:
        assert other_rows == rows
        for name, gradient in gradients.items():
            assert jnp.allclose(other[name], gradient, rtol=1e-10, atol=1e-12), name


def leaky(w: jax.Array, d: jax.Array, h: jax.Array, x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(d) * h + w @ x


def plain(w: jax.Array, d: jax.Array, h: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(w @ x + 0.5 * jnp.roll(w, 1) @ h + d)


@pytest.mark.parametrize("cell", [leaky, plain])
def test_layers_by_scan_are_layers(cell: Callable):
    """Depth as large models write it: a loop over stacked weights and states."""
    weights = {"w": normal(3, N, N, seed=4), "d": normal(3, N, seed=5), "in": W}

    def by_scan(w, h, x):
        def layer(y, of_layer):
            w, d, h = of_layer
            h = cell(w, d, h, y)
            return jnp.tanh(h), h

        return jax.lax.scan(layer, w["in"] @ x, (w["w"], w["d"], h))

    def in_list(w, state, x):
        y, h = by_scan(w, jnp.stack(state), x)
        return y, list(h)

    def in_a_vector(w, state, x):
        y, h = by_scan(w, state.reshape(3, N), x)
        return y, h.reshape(-1)

    def behind(w, state, x):
        y, h = by_scan(w, state.T, x)
        return y, h.T

    check_same(
        weights,
        (in_list, lambda: [jnp.zeros(N) for _ in range(3)]),
        (by_scan, lambda: jnp.zeros((3, N))),
        (in_a_vector, lambda: jnp.zeros(3 * N)),
        (behind, lambda: jnp.zeros((N, 3))),
    )


def test_the_recurrent_input_of_all_layers_at_once():
    """Every layer's own product is one operation that keeps layers apart."""
    n = 17  # more than a position may hold
    weights = {
        "u": normal(2, n, n, seed=4) / 4,
        "up": normal(n, n, seed=5) / 4,
        "in": normal(n, 3, seed=6),
    }

    def step(w, h, x):
        own = jnp.einsum("lij,lj->li", w["u"], jnp.tanh(h))
        first = 0.8 * h[0] + own[0] + w["in"] @ x
        second = 0.7 * h[1] + own[1] + w["up"] @ first
        return second, jnp.stack([first, second])

    def in_two(w, state, x):
        y, h = step(w, jnp.stack(state), x)
        return y, (h[0], h[1])

    check_same(
        weights,
        (in_two, lambda: (jnp.zeros(n), jnp.zeros(n))),
        (step, lambda: jnp.zeros((2, n))),
    )


def test_excitation_and_inhibition_in_any_order():
    half, order = N // 2, jnp.asarray([0, 2, 1, 3])
    weights = {"e": U[:half], "i": U[half:], "a": normal(N, seed=5), "w": W}

    def step(w, h, x):
        drive = jnp.concatenate([w["e"] @ jnp.tanh(h), -w["i"] @ jnp.tanh(h)])
        h = jax.nn.sigmoid(w["a"]) * h + drive + w["w"] @ x
        return h[:half], h

    def in_two(w, state, x):
        y, h = step(w, jnp.concatenate(state), x)
        return y, tuple(jnp.split(h, 2))

    def mixed(w, state, x):
        y, h = step(w, state[order], x)
        return y, h[order]

    check_same(
        weights,
        (in_two, lambda: (jnp.zeros(half), jnp.zeros(half))),
        (step, lambda: jnp.zeros(N)),
        (mixed, lambda: jnp.zeros(N)),
    )


def test_all_numbers_of_a_cell_in_one_vector():
    """c and h of an LSTM one behind the other, or in turn."""
    weights = {"x": normal(4 * N, 3, seed=4), "h": normal(4 * N, N, seed=5)}

    def cell(w, state, x):
        h, c = state
        i, f, g, o = jnp.split(w["x"] @ x + w["h"] @ h, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h, (h, c)

    def behind(w, state, x):
        y, new = cell(w, jnp.split(state, 2), x)
        return y, jnp.concatenate(new)

    def in_turn(w, state, x):
        y, new = cell(w, (state[::2], state[1::2]), x)
        return y, jnp.stack(new, 1).reshape(-1)

    check_same(
        weights,
        (cell, lambda: (jnp.zeros(N), jnp.zeros(N))),
        (behind, lambda: jnp.zeros(2 * N)),
        (in_turn, lambda: jnp.zeros(2 * N)),
    )


def test_one_neuron_in_a_vector():
    """Voltage and adaptation of a single neuron, as solvers take them."""
    weights = {"w": W[0], "a": normal(seed=5), "b": normal(seed=6)}

    def step(w, state, x):
        v, a = state
        v = 0.9 * v - jax.nn.sigmoid(w["b"]) * a + w["w"] @ x
        a = jax.nn.sigmoid(w["a"]) * a + 0.3 * jnp.tanh(v)
        return v, (v, a)

    def in_vector(w, state, x):
        y, new = step(w, tuple(state), x)
        return y, jnp.stack(new)

    check_same(
        weights,
        (step, lambda: (jnp.zeros(()), jnp.zeros(()))),
        (in_vector, lambda: jnp.zeros(2)),
    )


def test_a_clock_and_a_leaf_that_nothing_reads():
    weights = {"w": W, "u": U, "d": normal(N, seed=5)}

    def step(w, h, x):
        h = leaky(w["w"], w["d"], h, x) + w["u"] @ jnp.tanh(h)
        return h, h

    def beside(w, state, x):
        h, t, unused = state
        y, h = step(w, h, x)
        return y, (h, t + 1.0, unused)

    check_same(
        weights,
        (step, lambda: jnp.zeros(N)),
        (beside, lambda: (jnp.zeros(N), jnp.zeros(()), jnp.ones(2))),
    )


def by_product(w, s):
    return w @ s


def written_out(w, s):
    return (w * s[None]).sum(1)


def by_columns(w, s):
    return (w.T * s[:, None]).sum(0)


@pytest.mark.parametrize("product", [written_out, by_columns])
def test_a_product_however_it_is_written(product: Callable):
    """What acts before it stops there, as the state does; its own weight does not."""
    weights = {"w": W, "u": U, "threshold": normal(N, seed=5), "out": U[:2]}

    def with_product(product: Callable) -> Callable:
        def step(w, v, x):
            s = jax.nn.sigmoid(v - w["threshold"])
            v = 0.8 * v + w["w"] @ x + product(w["u"], s) - s * w["threshold"]
            return w["out"] @ s, v

        return step

    found = []
    for window in (1, STEPS):
        for how in (by_product, product):
            algorithm = etrace.DRTRL(
                Net(weights, with_product(how), lambda: jnp.zeros(N))
            )
            found.append(online(algorithm, INPUTS, window))
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert jnp.allclose(other[name], gradient, rtol=1e-10), name
