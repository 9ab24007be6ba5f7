"""Expressions of weights and constants, before they meet data."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._construct import IN, N, leaky

W = {"w": (N, IN)}
MASK = np.array([[0.0, 1.0, 1.0]])
SIGN = np.array([[1.0, -1.0, 1.0]])


def quantised(w):
    """Rounded forwards, straight through backwards."""
    return w + lax.stop_gradient(jnp.round(4 * w) / 4 - w)


def weight_norm(w, gain):
    return gain * w / jnp.sqrt((w * w).sum(axis=1, keepdims=True))


def rotation(skew):
    """Orthogonal, of the skew-symmetric part of a square matrix."""
    return jax.scipy.linalg.expm(skew - skew.T)[:, :IN]


def product(expression, weights=W):
    return leaky(lambda w, h, x: expression(w) @ x, weights)


WEIGHTS = {
    "constant mask": product(lambda w: w["w"] * MASK),
    "signs (Dale's law)": product(lambda w: jnp.abs(w["w"]) * SIGN),
    "softplus": product(lambda w: jax.nn.softplus(w["w"])),
    "exp": product(lambda w: jnp.exp(w["w"])),
    "weight norm": product(lambda w: weight_norm(w["w"], w["g"]), {**W, "g": (N, 1)}),
    "a product of weights": product(
        lambda w: w["b"] @ w["c"], {"b": (N, 2), "c": (2, IN)}
    ),
    "orthogonal": product(lambda w: rotation(w["s"]), {"s": (N, N)}),
    "quantised, straight-through": product(lambda w: quantised(w["w"])),
    "softmax over inputs": product(lambda w: jax.nn.softmax(w["w"], axis=1)),
    "transposed and reshaped": product(lambda w: w["w"].reshape(IN, N).T),
    "one parameter, tiled": product(lambda w: jnp.tile(w["w"], (N, 1)), {"w": (1, IN)}),
    "a decay exp(-exp(τ))": leaky(
        lambda w, h, x: jnp.exp(-jnp.exp(w["t"])) * h + w["w"] @ x,
        {**W, "t": (N,)},
    ),
}
