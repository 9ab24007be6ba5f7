"""Spikes and their surrogate derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace.nn as nn

from ..mistakes import as_a_user


def normal(v, mean, sigma):
    return np.exp(-((v - mean) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2)


# A surrogate, its formula, and the integral of its derivative over all v, if it is
# known: 1 if the surrogate stands for a function that rises from 0 to 1.
SURROGATES = {
    "triangle": (
        nn.Triangle(gamma=0.3, width=2.0),
        lambda v: np.where(np.abs(v) < 2, 0.3 * (1 - np.abs(v) / 2), 0.0),
        0.6,
    ),
    "sigmoid": (
        nn.Sigmoid(alpha=3.0),
        lambda v: 3 * np.exp(-3 * v) / (1 + np.exp(-3 * v)) ** 2,
        1.0,
    ),
    "fast sigmoid": (
        nn.FastSigmoid(alpha=5.0),
        lambda v: (1 + 5 * np.abs(v)) ** -2,
        0.4,
    ),
    "arctan": (
        nn.Arctan(alpha=2.0),
        lambda v: 1 / (1 + (np.pi * v) ** 2),
        1.0,
    ),
    "Gaussian": (nn.Gaussian(sigma=0.4), lambda v: normal(v, 0, 0.4), 1.0),
    "multi-Gaussian": (
        nn.MultiGaussian(sigma=0.5, height=0.15, spread=6.0),
        lambda v: (
            1.15 * normal(v, 0, 0.5)
            - 0.15 * normal(v, 0.5, 3.0)
            - 0.15 * normal(v, -0.5, 3.0)
        ),
        0.85,
    ),
    "SLAYER": (
        nn.Slayer(alpha=0.5, beta=2.0),
        lambda v: 0.5 * np.exp(-2 * np.abs(v)),
        0.5,
    ),
    "straight-through": (nn.StraightThrough(), np.ones_like, None),
}
EACH = pytest.mark.parametrize("name", SURROGATES)
V = np.concatenate([np.linspace(-3, 3, 61), [0.0, 1e-3, -1e-3, 20.0, -20.0]])


@EACH
def test_a_spike_is_a_step(name: str):
    spike, *_ = SURROGATES[name]
    np.testing.assert_array_equal(spike(jnp.asarray(V)), (V > 0).astype(float))


@EACH
def test_derivatives_are_their_formulas(name: str):
    """Forward mode, reverse mode, and an elementwise product, in double precision."""
    spike, formula, _ = SURROGATES[name]
    v, r = jnp.asarray(V), jnp.asarray(np.random.default_rng(0).normal(size=V.shape))
    expected = r * formula(V)
    _, forward = jax.jvp(spike, (v,), (r,))
    (reverse,) = jax.vjp(spike, v)[1](r)
    np.testing.assert_allclose(forward, expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(reverse, expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(spike.derivative(v), formula(V), rtol=1e-12)


@EACH
def test_derivatives_have_their_areas(name: str):
    spike, _, area = SURROGATES[name]
    if area is not None:
        v = np.linspace(-400, 400, 2_000_001)
        values = np.asarray(jax.jit(spike.derivative)(jnp.asarray(v)))
        assert abs(np.sum(values) * (v[1] - v[0]) - area) < 2e-3


@EACH
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtypes(name: str, dtype: str):
    """Promotion is strict in the tests."""
    spike, formula, _ = SURROGATES[name]
    v = jnp.asarray(V, dtype)
    grad = jax.jit(jax.vmap(jax.grad(spike)))
    assert jax.jit(spike)(v).dtype == grad(v).dtype == dtype
    tolerance = {"bfloat16": 0.05, "float32": 1e-5, "float64": 1e-12}[dtype]
    exact = formula(np.asarray(v, np.float64))
    np.testing.assert_allclose(
        np.asarray(grad(v), np.float64), exact, rtol=tolerance, atol=tolerance / 10
    )


def test_a_surrogate_is_no_parameter():
    """It has no leaves, and is equal to one like it: nothing compiles anew."""
    spikes = (nn.Arctan(alpha=2.0), nn.Arctan(alpha=2.0))
    assert not jax.tree.leaves(spikes)
    assert spikes[0] == spikes[1] and hash(spikes[0]) == hash(spikes[1])


def test_a_surrogate_of_ones_own():
    class Box(nn.AbstractSurrogate):
        def derivative(self, v):
            return (jnp.abs(v) < 0.5).astype(v.dtype)

    slopes = jax.vmap(jax.grad(Box()))(jnp.asarray([-1.0, -0.2, 0.2, 1.0]))
    np.testing.assert_array_equal(slopes, [0, 1, 1, 0])


@pytest.mark.parametrize("value, kind", [(0.0, ValueError), ("steep", TypeError)])
def test_mistakes(value, kind):
    message = f"alpha is {value!r}; expected a number"
    with as_a_user(), pytest.raises(kind, match=message):
        nn.Arctan(alpha=value)
