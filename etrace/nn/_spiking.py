"""Layers of spiking neurons: behind a synapse, and with recurrent connections."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._neurons import AbstractNeuron
from ._parameters import check_input, check_kind
from ._synapses import AbstractSynapse

#: Weights `[outputs, inputs]`, of one key, a shape and a dtype: `jax.nn.initializers`.
Initialiser = Callable[..., Float[Array, "..."]]


class SynapticState(NamedTuple):
    """The states of a synapse and of the neuron behind it."""

    synapse: Any
    neuron: Any

    @property
    def v(self) -> Float[Array, "..."]:
        return self.neuron.v


class Synaptic(AbstractNeuron):
    r"""A neuron behind a synapse: the input goes to the synapse, and the current that
    comes out, which for [`etrace.nn.Conductance`][] depends on the membrane before the
    step, to the neuron. State: `synapse`, `neuron`.

    **Arguments:**

    - `synapse`, `neuron`: of the same size. The neuron may itself be `Synaptic`.
    """

    synapse: AbstractSynapse
    neuron: AbstractNeuron
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, synapse: AbstractSynapse, neuron: AbstractNeuron):
        check_kind("synapse", synapse, AbstractSynapse, "Exponential(size)")
        check_kind("neuron", neuron, AbstractNeuron, "LIF(size)")
        ours, theirs = (synapse.shape, synapse.dtype), (neuron.shape, neuron.dtype)
        if ours != theirs:
            raise ValueError(
                f"synapse has shape and dtype {ours[0]}, {ours[1]}, and neuron "
                f"{theirs[0]}, {theirs[1]}; expected the same."
            )
        self.synapse, self.neuron = synapse, neuron
        self.shape, self.dtype = theirs

    def init_state(self) -> SynapticState:
        return SynapticState(self.synapse.init_state(), self.neuron.init_state())

    def __call__(
        self, state: SynapticState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], SynapticState]:
        current, synapse = self.synapse(state.synapse, x, state.v)
        z, neuron = self.neuron(state.neuron, current)
        return z, SynapticState(synapse, neuron)


class RecurrentState(NamedTuple):
    """The state of the neurons, and the last spikes."""

    neuron: Any
    spikes: Float[Array, " neurons"]


class Recurrent(eqx.Module):
    r"""Neurons with input weights and recurrent weights,

    $$ z_t, s_t = \text{neuron}\bigl(s_{t-1},\; W x_t + U z_{t-1}\bigr). $$

    With populations (`excitatory`), Dale's law holds: $U_{ij} = |w_{ij}|\, \sigma_j$,
    where the sign $\sigma_j$ is +1 for the first neurons and -1 for the others. At the
    beginning inhibition is as much stronger as there are fewer neurons of its kind, so
    that both are in balance. State: `neuron`, `spikes`.

    **Arguments:**

    - `inputs`: the number of inputs.
    - `neuron`: a layer of neurons, its size one number; [`etrace.nn.Synaptic`][] for
        neurons behind a synapse.
    - `excitatory`: the fraction of the neurons that excite, between 0 and 1; None for
        weights of any sign.
    - `self_connections`: whether a neuron is connected to itself.
    - `weight_init`, `recurrent_init`: how the weights begin, as in
        `jax.nn.initializers`, for weights `[neurons, inputs]`. By default normally
        distributed with variance 1 / inputs, and 1 / neurons.
    - `key`: what the weights are drawn from.

    ??? cite "Reference"

        Bellec et al., Nat. Commun. 11:3625 (2020); Song, Yang and Wang, PLoS
        Computational Biology 12:e1004792 (2016) for Dale's law.
    """

    neuron: AbstractNeuron
    weight: Float[Array, "neurons inputs"]
    recurrent: Float[Array, "neurons neurons"]
    excitatory: int | None = eqx.field(static=True)
    self_connections: bool = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        neuron: AbstractNeuron,
        *,
        excitatory: float | None = None,
        self_connections: bool = False,
        weight_init: Initialiser | None = None,
        recurrent_init: Initialiser | None = None,
        key: PRNGKeyArray,
    ):
        check_kind("neuron", neuron, AbstractNeuron, "LIF(size)")
        if len(neuron.shape) != 1:
            raise ValueError(
                f"neuron has the shape {neuron.shape}; expected one axis, as of "
                "etrace.nn.LIF(100)."
            )
        if not isinstance(inputs, int) or inputs < 1:
            raise ValueError(f"inputs is {inputs!r}; expected a positive int.")
        (n,) = neuron.shape
        k1, k2 = jax.random.split(key)
        # [outputs, inputs], unlike what jax.nn.initializers assumes.
        normal = jax.nn.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=-1, out_axis=-2
        )
        self.neuron = neuron
        self.weight = (weight_init or normal)(k1, (n, inputs), neuron.dtype)
        recurrent = (recurrent_init or normal)(k2, (n, n), neuron.dtype)
        self.excitatory = None if excitatory is None else _count(excitatory, n)
        if self.excitatory is not None:
            recurrent = jnp.abs(recurrent) * _balance(self.excitatory, n, neuron.dtype)
        self.recurrent = recurrent
        self.self_connections = bool(self_connections)

    def init_state(self) -> RecurrentState:
        zeros = jnp.zeros(self.neuron.shape, self.neuron.dtype)
        return RecurrentState(self.neuron.init_state(), zeros)

    def __call__(
        self, state: RecurrentState, x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " neurons"], RecurrentState]:
        check_input(x, (self.weight.shape[1],), self)
        drive = self.weight @ x + self.connections() @ state.spikes
        z, neuron = self.neuron(state.neuron, drive)
        return z, RecurrentState(neuron, z)

    def connections(self) -> Float[Array, "neurons neurons"]:
        """The recurrent weights with their signs: column j is what neuron j sends."""
        u, n = self.recurrent, len(self.recurrent)
        if self.excitatory is not None:
            signs = np.where(np.arange(n) < self.excitatory, 1, -1)
            u = jnp.abs(u) * jnp.asarray(signs[None], u.dtype)
        if not self.self_connections:
            u = jnp.where(np.eye(n, dtype=bool), 0, u)
        return u


def _count(excitatory: Any, n: int) -> int:
    if isinstance(excitatory, bool) or not isinstance(excitatory, int | float):
        raise TypeError(f"excitatory is {excitatory!r}; expected a fraction, or None.")
    if not 0 <= excitatory <= 1:
        raise ValueError(f"excitatory is {excitatory}; expected a fraction in [0, 1].")
    return round(excitatory * n)


def _balance(excitatory: int, n: int, dtype: Any) -> Array:
    """How strong the columns of each population are, `[1, neurons]`."""
    inhibitory = n - excitatory
    ratio = excitatory / inhibitory if excitatory and inhibitory else 1.0
    scale = np.where(np.arange(n) < excitatory, 1.0, ratio)
    return jnp.asarray(scale[None], dtype)
