"""The networks that are measured: plain Equinox, as a user would write them."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

Kind = Literal["gru", "lstm", "lif", "alif"]
OUTPUTS = 10


class Gated(eqx.Module):
    """A GRU or LSTM cell of Equinox, and a linear read-out."""

    cell: eqx.nn.GRUCell | eqx.nn.LSTMCell
    readout: eqx.nn.Linear

    def init_state(self):
        h = jnp.zeros(self.cell.hidden_size)
        return (h, h) if isinstance(self.cell, eqx.nn.LSTMCell) else h

    def __call__(self, state, x):
        state = self.cell(x, state)
        h = state[0] if isinstance(state, tuple) else state
        return self.readout(h), state


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv * 0.3 * jnp.maximum(0, 1 - jnp.abs(v))


class Spiking(eqx.Module):
    """Recurrent leaky integrate-and-fire neurons, adaptive or not.

    v = d v + (1 - d) (W x + R s) - s,   s = H(v - 1 - 0.2 a),   a = 0.95 a + s
    """

    weight: jax.Array
    recurrent: jax.Array
    leak: jax.Array
    readout: eqx.nn.Linear
    adaptive: bool = eqx.field(static=True)

    def init_state(self):
        zeros = jnp.zeros(len(self.recurrent))
        return (zeros,) * (3 if self.adaptive else 2)

    def __call__(self, state, x):
        v, s, *a = state
        d = jax.nn.sigmoid(self.leak)
        v = d * v + (1 - d) * (self.weight @ x + self.recurrent @ s)
        v = v - jax.lax.stop_gradient(s)
        s = spike(v - 1 - 0.2 * a[0]) if self.adaptive else spike(v - 1)
        a = [0.95 * a[0] + s] if self.adaptive else []
        return self.readout(s), (v, s, *a)


def make(kind: Kind, inputs: int, hidden: int) -> eqx.Module:
    """A network with fixed random weights."""
    keys = jax.random.split(jax.random.key(0), 3)
    readout = eqx.nn.Linear(hidden, OUTPUTS, key=keys[0])
    if kind == "gru":
        return Gated(eqx.nn.GRUCell(inputs, hidden, key=keys[1]), readout)
    if kind == "lstm":
        return Gated(eqx.nn.LSTMCell(inputs, hidden, key=keys[1]), readout)
    weight = 2 * jax.random.normal(keys[1], (hidden, inputs)) / inputs**0.5
    recurrent = jax.random.normal(keys[2], (hidden, hidden)) / hidden**0.5
    leak = jnp.full(hidden, 2.0)
    return Spiking(weight, recurrent, leak, readout, adaptive=kind == "alif")


def sequence(inputs: int, batch: int, steps: int):
    """Random inputs and targets, time-major."""
    keys = jax.random.split(jax.random.key(1))
    shape = (steps, batch)
    return (
        jax.random.normal(keys[0], (*shape, inputs)),
        jax.random.normal(keys[1], (*shape, OUTPUTS)),
    )


def squared_error(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)
