"""Neurons with compartments, whose voltages are the solution of linear equations."""

import jax
import jax.numpy as jnp
import pytest

from .program import IN, N, Program, Weights, check, chosen, normal

PARTS = 3  # compartments of a neuron


def cable(w: Weights) -> jax.Array:
    """The matrix of an implicit Euler step, `[N, PARTS, PARTS]`."""
    g = jax.nn.softplus(w["g"])
    ends = jnp.eye(PARTS)[:-1] - jnp.eye(PARTS)[1:]
    return jnp.eye(PARTS)[None] + jnp.einsum("nk,ki,kj->nij", g, ends, ends)


def current(w: Weights, v: jax.Array, x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(w["leak"]) * v + jnp.tanh(w["w"] @ x).reshape(N, PARTS)


def by_solve(w: Weights, v, x):
    v = jnp.linalg.solve(cable(w), current(w, v, x)[..., None])[..., 0]
    return v, v


def one_by_one(w: Weights, v, x):
    v = jax.vmap(jnp.linalg.solve)(cable(w), current(w, v, x))
    return v, v


def by_inverse(w: Weights, v, x):
    v = jnp.einsum("nij,nj->ni", jnp.linalg.inv(cable(w)), current(w, v, x))
    return v, v


def of_neighbours(w: Weights, v, x):
    a, none = cable(w), jnp.zeros((N, 1))
    along = [jnp.diagonal(a, k, axis1=1, axis2=2) for k in (-1, 0, 1)]
    low = jnp.concatenate([none, along[0]], 1)
    high = jnp.concatenate([along[2], none], 1)
    b = current(w, v, x)[..., None]
    v = jax.lax.linalg.tridiagonal_solve(low, along[1], high, b)[..., 0]
    return v, v


def nonlinear(w: Weights, v, x):
    """The matrix depends on the state, as conductances of channels do."""
    a = cable(w) + jax.vmap(jnp.diag)(jnp.square(v))
    v = jnp.linalg.solve(a, current(w, v, x)[..., None])[..., 0]
    return v, v


CABLES = {f.__name__: f for f in (by_solve, one_by_one, by_inverse, of_neighbours)}
CABLES["nonlinear"] = nonlinear


@pytest.mark.parametrize("name", chosen(CABLES, ("of_neighbours", "nonlinear")))
def test_what_is_solved_within_neurons_is_followed(name: str):
    weights = {
        "w": normal(N * PARTS, IN, seed=2),
        "g": normal(N, PARTS - 1, seed=4),
        "leak": normal(N, PARTS, seed=5),
    }
    check(Program(CABLES[name], weights, lambda: jnp.zeros((N, PARTS))))
