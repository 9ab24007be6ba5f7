"""Complex states and weights."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import etrace

from .program import IN, N, Net, Program, W, check, chosen, normal

DECAY = 0.7 * jnp.exp(lax.complex(jnp.zeros(N), normal(N, seed=5)))
INTO = lax.complex(normal(N, IN, seed=13), normal(N, IN, seed=14))
OUT = lax.complex(normal(N, seed=11), normal(N, seed=12))
WEIGHTS = {"decay": DECAY, "into": INTO}


def start():
    return jnp.zeros(N, complex)


def turned(w, h, x):
    h = w["decay"] * h + w["into"] @ x.astype(complex)
    return h


def real_part(w, h, x):
    h = turned(w, h, x)
    return jnp.real(jnp.conj(w["out"]) * h), h


def modulus_and_angle(w, h, x):
    h = turned(w, h, x)
    return jnp.abs(h + 0.2) + jnp.angle(h + 3.0), h


def conjugated(w, h, x):
    """Complex outputs, of a recurrence that is not complex linear."""
    h = turned(w, jnp.conj(h), x)
    return h, h


def polar_weights(w, h, x):
    decay = jnp.exp(lax.complex(-jnp.exp(w["nu"]), w["theta"]))
    h = decay * h + (w["w"] @ x).astype(complex)
    return jnp.real(h) - jnp.imag(h) ** 2, h


def gated_by_modulus(w, h, x):
    """modReLU, as unitary networks have it."""
    h = turned(w, h, x)
    size = jnp.abs(h) + 1e-3
    h = h / size * jax.nn.relu(size + w["bias"])
    return jnp.real(h), h


PROGRAMS = {
    "real part": (real_part, {**WEIGHTS, "out": OUT}),
    "modulus and angle": (modulus_and_angle, WEIGHTS),
    "conjugated": (conjugated, WEIGHTS),
    "polar weights": (
        polar_weights,
        {"nu": normal(N, seed=5), "theta": normal(N, seed=6), "w": W},
    ),
    "modReLU": (gated_by_modulus, {**WEIGHTS, "bias": 0.1 * normal(N, seed=6)}),
}


COMMON = ("conjugated",)


@pytest.mark.parametrize("name", chosen(PROGRAMS, COMMON))
def test_exact(name: str):
    step, weights = PROGRAMS[name]
    check(Program(step, weights, start))


def test_learning_goes_downhill():
    """A complex read-out of a complex state falls to zero with its loss."""

    def step(w, h, x):
        h = 0.9j * h + x.astype(complex)
        return jnp.real(w["c"] * h), h

    model = Net({"c": jnp.array(1.0 + 1.0j)}, step, lambda: jnp.zeros((), complex))
    inputs, targets = jnp.sin(jnp.arange(20.0)), jnp.zeros(20)
    train = etrace.learn(lambda y, t: (y - t) ** 2, optax.sgd(0.02), window=20)
    algorithm, optimiser = etrace.DRTRL(model), None
    for _ in range(300):
        algorithm, optimiser, _, losses = train(
            algorithm, optimiser, None, inputs, targets
        )
    assert jnp.all(losses < 1e-3)
