"""Networks with one layer of neurons, and what must hold of their online gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etrace
import etrace.testing as et

IN, OUT, STEPS = 3, 2, 12


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class SpikingNet(eqx.Module):
    """Input weights and a bias, a layer, and a linear read-out."""

    weight: jax.Array
    bias: jax.Array
    layer: Any
    readout: jax.Array

    def __init__(self, layer: Any, scale: float = 1.0, shift: float = 0.0):
        (n,) = layer.shape
        self.weight = scale * normal(n, IN, seed=3) / np.sqrt(IN)
        self.bias = scale * (shift + 0.1 * normal(n, seed=4))
        self.layer = layer
        self.readout = normal(OUT, n, seed=5)

    def init_state(self):
        return self.layer.init_state()

    def __call__(self, state, x):
        z, state = self.layer(state, self.weight @ x + self.bias)
        return self.readout @ z, state


def sequence() -> tuple[jax.Array, jax.Array]:
    return normal(STEPS, IN, seed=1), normal(STEPS, OUT, seed=2)


def outputs(model: Any, inputs: jax.Array) -> jax.Array:
    def step(state, x):
        y, state = model(state, x)
        return state, y

    return jax.lax.scan(step, model.init_state(), inputs)[1]


def parameters(model: Any) -> list[str]:
    found, _ = jax.tree_util.tree_flatten_with_path(
        eqx.filter(model, eqx.is_inexact_array)
    )
    return [jax.tree_util.keystr(path) for path, _ in found]


def check_gradients(model: Any, spiking: bool = True, exact: bool = True) -> None:
    """Every weight is traced; a whole window is BPTT, and so are single steps where the
    recurrence is position-local. The past contributes."""
    inputs, targets = sequence()
    if spiking:
        layer = eqx.tree_at(lambda m: m.readout, model, jnp.eye(len(model.readout.T)))
        spikes = outputs(layer, inputs)
        assert set(np.unique(spikes)) == {0.0, 1.0}
    report = etrace.DRTRL(model).graph(inputs[0])  # a warning would be an error
    status = {row.parameter: row.status for row in report.rows}
    assert status == {
        p: "output" if "readout" in p else "traced" for p in parameters(model)
    }

    arguments = (model, et.squared_error, inputs, targets)
    _, expected = et.bptt(*arguments)
    _, now = et.truncated(*arguments, window=1)
    assert et.gradient_distance(expected, now) > 1e-2
    for parameter in jax.tree.leaves(expected):
        assert jnp.all(jnp.isfinite(parameter)) and jnp.any(parameter != 0)

    def online(method: str, window: int):
        driver = etrace.value_and_grad(
            et.squared_error, window=window, reduction="sum", carry=False
        )
        rule = etrace.DRTRL(model, vjp_method=method)
        return driver(rule, None, inputs, targets)[1]

    assert et.gradient_distance(online("multi-step", STEPS), expected) < 1e-9
    single = online("single-step", 3)
    assert et.gradient_distance(single, now) > 1e-2
    if exact:
        assert et.gradient_distance(single, expected) < 1e-9
