"""The networks that the learning rules are compared on, in plain Equinox.

Written for one example and one step: `init_state() -> state` and `model(state, x) ->
(outputs, state)`. Nothing marks what is to be traced.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Leaky(eqx.Module):
    """Leaky neurons, h' = leak h + (1 - leak) tanh(W x + U h + b)."""

    encoder: eqx.nn.Linear
    recurrent: Float[Array, "neurons neurons"]
    leak: float = eqx.field(static=True)

    def __init__(self, inputs: int, neurons: int, leak: float, *, key: PRNGKeyArray):
        keys = jax.random.split(key)
        self.encoder = eqx.nn.Linear(inputs, neurons, key=keys[0])
        # Of spectral radius about 1, at which credit travels far between neurons.
        weight = jax.random.normal(keys[1], (neurons, neurons))
        self.recurrent = weight / math.sqrt(neurons)
        self.leak = leak

    def __call__(
        self, h: Float[Array, " neurons"], x: Float[Array, " inputs"]
    ) -> Float[Array, " neurons"]:
        new = jnp.tanh(self.encoder(x) + self.recurrent @ h)
        return self.leak * h + (1 - self.leak) * new


class LeakyNet(eqx.Module):
    """Layers of leaky neurons, and a linear read-out of the last one."""

    layers: list[Leaky]
    readout: eqx.nn.Linear

    def __init__(
        self,
        inputs: int,
        neurons: int,
        outputs: int,
        *,
        layers: int = 1,
        leak: float = 0.8,
        key: PRNGKeyArray,
    ):
        *keys, last = jax.random.split(key, layers + 1)
        sizes = [inputs] + [neurons] * (layers - 1)
        self.layers = [
            Leaky(size, neurons, leak, key=k)
            for size, k in zip(sizes, keys, strict=True)
        ]
        self.readout = eqx.nn.Linear(neurons, outputs, key=last)

    def init_state(self) -> list[Float[Array, " neurons"]]:
        return [jnp.zeros(len(layer.recurrent)) for layer in self.layers]

    def __call__(
        self, state: list[Float[Array, " neurons"]], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " outputs"], list[Float[Array, " neurons"]]]:
        new = []
        for layer, h in zip(self.layers, state, strict=True):
            x = layer(h, x)
            new.append(x)
        return self.readout(x), new


@jax.custom_jvp
def spike(v: Float[Array, " neurons"]) -> Float[Array, " neurons"]:
    """A step at zero, with a triangle in place of its derivative."""
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _triangle(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,), (dv,) = primals, tangents
    return spike(v), 0.3 * jnp.maximum(0.0, 1 - jnp.abs(v)) * dv


class SpikingNet(eqx.Module):
    r"""Leaky integrate-and-fire neurons, half of them with a threshold that adapts.

    A neuron that has not just fired sends a spike z = [v > 1 + β a], with β = 0 for the
    first half. Then

        v' = α v + W x + U z - z,     a' = ρ a + z,     y' = κ y + (1 - κ) R z'

    for potentials v, adaptations a and leaky read-out neurons y. The reset, - z, is not
    differentiated.
    """

    encoder: Float[Array, "neurons inputs"]
    recurrent: Float[Array, "neurons neurons"]
    readout: Float[Array, "outputs neurons"]
    decays: tuple[float, float, float] = eqx.field(static=True)
    strength: float = eqx.field(static=True)
    pause: int = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        neurons: int,
        outputs: int,
        *,
        steps: tuple[float, float, float] = (20.0, 200.0, 20.0),
        strength: float = 0.1,
        pause: int = 4,
        key: PRNGKeyArray,
    ):
        def weights(key: PRNGKeyArray, rows: int, size: int, gain: float) -> Array:
            return gain * jax.random.normal(key, (rows, size)) / math.sqrt(size)

        keys = jax.random.split(key, 3)
        self.encoder = weights(keys[0], neurons, inputs, 1.0)
        recurrent = weights(keys[1], neurons, neurons, 0.5)
        self.recurrent = recurrent * (1 - jnp.eye(neurons))
        self.readout = weights(keys[2], outputs, neurons, 1.0)
        v, a, y = (math.exp(-1 / n) for n in steps)
        self.decays = v, a, y
        self.strength = strength
        self.pause = pause

    def init_state(self) -> tuple[Array, Array, Array, Array]:
        outputs, neurons = self.readout.shape
        zeros = jnp.zeros(neurons)
        return zeros, zeros, jnp.zeros(outputs), jnp.zeros(neurons, jnp.int32)

    def __call__(
        self, state: tuple[Array, Array, Array, Array], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " outputs"], tuple[Array, Array, Array, Array]]:
        v, a, y, wait = state
        alpha, rho, kappa = self.decays
        z = self.spikes(state)
        current = self.encoder @ x + self.recurrent @ z
        v = alpha * v + current - jax.lax.stop_gradient(z)
        a = rho * a + z
        wait = jnp.where(z > 0, self.pause, jnp.maximum(wait - 1, 0))
        z = self.spikes((v, a, y, wait))
        y = kappa * y + (1 - kappa) * (self.readout @ z)
        return y, (v, a, y, wait)

    def spikes(self, state: tuple[Array, Array, Array, Array]) -> Array:
        v, a, _, wait = state
        adapts = jnp.arange(len(v)) >= len(v) // 2
        threshold = 1 + self.strength * jnp.where(adapts, a, 0.0)
        return jnp.where(wait == 0, spike(v - threshold), 0.0)
