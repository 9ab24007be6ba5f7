"""Recurrent layers in plain JAX. Every state leaf has the shape `[channels, *space]`;
`space` is empty but for convolutions."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._parts import Decay, Projection, Random, layer_norm, scaled, shifted, spike

Feeds = Iterable[int]


class Wiring(eqx.Module):
    """How a layer is connected: input and recurrent projections, and perhaps a norm
    between them and the state."""

    inp: Projection
    rec: Projection | None
    norm: bool = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def zeros(self) -> Float[Array, "..."]:
        return jnp.zeros(self.shape, self.inp.weight.parts[0].dtype)

    def normalised(self, z: Array, feeds: Feeds) -> Array:
        return layer_norm(z, feeds) if self.norm else z

    def drive(self, x: Array, h: Array, feeds: Feeds) -> Array:
        """Input and recurrent projections together: `[gates * channels, *space]`."""
        z = self.inp(x, feeds)
        return self.normalised(z if self.rec is None else z + self.rec(h, feeds), feeds)

    def drives(self, x: Array, h: Array, feeds: Feeds) -> tuple[Array, Array]:
        """Input and recurrent projections apart, each with a norm of its own."""
        z = self.inp(x, feeds)
        r = jnp.zeros_like(z) if self.rec is None else self.rec(h, feeds)
        return self.normalised(z, feeds), self.normalised(r, feeds)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a cell's own parameters are made from."""

    decay: str
    shared_decay: bool
    random: Random


class AbstractCell(eqx.Module):
    """A layer: `cell(state, x, feeds) -> (output, state)`, where the layer's mixing
    operations feed the groups `feeds`."""

    #: Pre-activations per neuron, and state leaves.
    gates: ClassVar[int]
    leaves: ClassVar[int]
    #: Whether the cell has recurrent weights: "always", "never", or "optional".
    recurrence: ClassVar[str]

    wiring: eqx.AbstractVar[Wiring]

    @abc.abstractmethod
    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        """Makes the cell's own parameters."""

    def init_state(self) -> Any:
        zeros = self.wiring.zeros()
        return (zeros,) * self.leaves if self.leaves > 1 else zeros

    @abc.abstractmethod
    def __call__(self, state: Any, x: Array, feeds: Feeds) -> tuple[Array, Any]:
        """One step."""

    def visible(self, state: Any) -> Array:
        """What a reader of the layer's state, one step later, sees."""
        return state


def _per_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0],) + (1,) * (len(shape) - 1)


class TanhCell(AbstractCell):
    """h' = tanh(W x + U h + b): no local path from h to h'."""

    gates: ClassVar[int] = 1
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "always"
    wiring: Wiring

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        h = jnp.tanh(self.wiring.drive(x, state, feeds))
        return h, h


class GRUCell(AbstractCell):
    """Fused weights, then a split; the reset gate multiplies the hidden projection
    after the product."""

    gates: ClassVar[int] = 3
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "always"
    wiring: Wiring
    bias_n: Float[Array, "..."]

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.bias_n = recipe.random(_per_channel(wiring.shape), 0.2)

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        z, r = self.wiring.drives(x, state, feeds)
        z_reset, z_update, z_new = jnp.split(z, 3)
        r_reset, r_update, r_new = jnp.split(r, 3)
        reset, update = (
            jax.nn.sigmoid(z_reset + r_reset),
            jax.nn.sigmoid(z_update + r_update),
        )
        new = jnp.tanh(z_new + reset * shifted(self.bias_n, r_new))
        h = new + update * (state - new)
        return h, h


class LSTMCell(AbstractCell):
    """State (c, h); S = 2, and h has no local path out."""

    gates: ClassVar[int] = 4
    leaves: ClassVar[int] = 2
    recurrence: ClassVar[str] = "always"
    wiring: Wiring

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring

    def __call__(self, state: Any, x: Array, feeds: Feeds) -> tuple[Array, Any]:
        c, h = state
        i, f, g, o = jnp.split(self.wiring.drive(x, h, feeds), 4)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h, (c, h)

    def visible(self, state: Any) -> Array:
        return state[0]


class MinGRUCell(AbstractCell):
    """h' = (1 - z) h + z n, both from the input only: position-local."""

    gates: ClassVar[int] = 2
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "never"
    wiring: Wiring

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        gate, new = jnp.split(self.wiring.drive(x, state, feeds), 2)
        gate = jax.nn.sigmoid(gate)
        h = (1 - gate) * state + gate * new
        return h, h


class IndRNNCell(AbstractCell):
    """h' = tanh(W x + u * h): a recurrent weight per neuron, position-local."""

    gates: ClassVar[int] = 1
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "never"
    wiring: Wiring
    own: Float[Array, "..."]

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.own = recipe.random(wiring.shape, 0.3, shift=0.9)

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        h = jnp.tanh(self.wiring.drive(x, state, feeds) + scaled(self.own, state))
        return h, h


class LRUCell(AbstractCell):
    """h' = λ h + sqrt(1 - λ²) W x, real and diagonal: position-local."""

    gates: ClassVar[int] = 1
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "never"
    wiring: Wiring
    decay: Decay

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.decay = Decay(
            recipe.decay, wiring.shape, recipe.shared_decay, recipe.random
        )

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        decay = self.decay()
        drive = self.wiring.drive(x, state, feeds)
        h = scaled(decay, state) + scaled(jnp.sqrt(1 - decay**2), drive)
        return h, h


class ComplexLRUCell(AbstractCell):
    """h' = λ h + W x with complex λ = decay * exp(iθ); the state is complex, the output
    its real part."""

    gates: ClassVar[int] = 2
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "never"
    wiring: Wiring
    decay: Decay
    angle: Float[Array, "..."]

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.decay = Decay(
            recipe.decay, wiring.shape, recipe.shared_decay, recipe.random
        )
        self.angle = recipe.random(_per_channel(wiring.shape), 0.5, shift=0.5)

    def init_state(self) -> Array:
        return jax.lax.complex(self.wiring.zeros(), self.wiring.zeros())

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        decay = self.decay()
        rotation = jax.lax.complex(
            decay * jnp.cos(self.angle), decay * jnp.sin(self.angle)
        )
        h = scaled(rotation, state) + jax.lax.complex(
            *jnp.split(self.wiring.drive(x, state, feeds), 2)
        )
        return h.real, h

    def visible(self, state: Array) -> Array:
        return state.real


class LeakyCell(AbstractCell):
    """A leaky integrator, h' = d h + (1 - d) tanh(W x [+ U h] + b), with a trainable
    decay."""

    gates: ClassVar[int] = 1
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "optional"
    wiring: Wiring
    decay: Decay

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.decay = Decay(
            recipe.decay, wiring.shape, recipe.shared_decay, recipe.random
        )

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        decay = self.decay()
        drive = jnp.tanh(self.wiring.drive(x, state, feeds))
        h = scaled(decay, state) + scaled(1 - decay, drive)
        return h, h


class LIFCell(AbstractCell):
    """Spiking, the output read *before* the reset; the state is the membrane after
    it."""

    gates: ClassVar[int] = 1
    leaves: ClassVar[int] = 1
    recurrence: ClassVar[str] = "never"
    wiring: Wiring
    decay: Decay

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.decay = Decay(
            recipe.decay, wiring.shape, recipe.shared_decay, recipe.random
        )

    def __call__(self, state: Array, x: Array, feeds: Feeds) -> tuple[Array, Array]:
        mem = scaled(self.decay(), state) + self.wiring.drive(x, state, feeds)
        spikes = spike(mem - 0.5)
        return spikes, mem - 0.5 * spikes


class RecurrentLIFCell(AbstractCell):
    """As LIF, with the last spikes kept as state, (mem, spikes), and sent back through
    weights; S = 2."""

    gates: ClassVar[int] = 1
    leaves: ClassVar[int] = 2
    recurrence: ClassVar[str] = "always"
    wiring: Wiring
    decay: Decay

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.decay = Decay(
            recipe.decay, wiring.shape, recipe.shared_decay, recipe.random
        )

    def __call__(self, state: Any, x: Array, feeds: Feeds) -> tuple[Array, Any]:
        mem, spikes = state
        mem = scaled(self.decay(), mem) + self.wiring.drive(x, spikes, feeds)
        spikes = spike(mem - 0.5)
        return spikes, (mem - 0.5 * spikes, spikes)

    def visible(self, state: Any) -> Array:
        return state[0]


class ALIFCell(AbstractCell):
    """Spiking with an adaptive threshold; (v, a, s) are the state, the last spike
    resets v; S = 3."""

    gates: ClassVar[int] = 1
    leaves: ClassVar[int] = 3
    recurrence: ClassVar[str] = "optional"
    wiring: Wiring
    decay: Decay
    adaptation: Decay
    strength: Float[Array, "..."]

    def __init__(self, wiring: Wiring, recipe: Recipe) -> None:
        self.wiring = wiring
        self.decay = Decay(
            recipe.decay, wiring.shape, recipe.shared_decay, recipe.random
        )
        self.adaptation = Decay("sigmoid", wiring.shape, False, recipe.random)
        self.strength = recipe.random(_per_channel(wiring.shape), 0.1, shift=0.4)

    def __call__(self, state: Any, x: Array, feeds: Feeds) -> tuple[Array, Any]:
        v, a, s = state
        v = scaled(self.decay(), v) + self.wiring.drive(x, s, feeds) - 0.5 * s
        a = scaled(self.adaptation(), a) + s
        s = spike(v - 0.5 - scaled(self.strength, a))
        return s, (v, a, s)

    def visible(self, state: Any) -> Array:
        return state[0]


CELLS: dict[str, type[AbstractCell]] = {
    "tanh": TanhCell,
    "gru": GRUCell,
    "lstm": LSTMCell,
    "mingru": MinGRUCell,
    "indrnn": IndRNNCell,
    "lru": LRUCell,
    "complex_lru": ComplexLRUCell,
    "leaky": LeakyCell,
    "lif": LIFCell,
    "recurrent_lif": RecurrentLIFCell,
    "alif": ALIFCell,
}

#: The cells that spike: their gradients are surrogates, which finite differences do not
#: see.
SPIKING = ("lif", "recurrent_lif", "alif")
