"""What every neuron model is."""

import abc
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int


class AbstractNeuron(eqx.Module):
    """A layer of neurons that do not talk to each other.

    `neuron.init_state()` is the state before the first step, and `neuron(state, x)`
    takes the input current of each neuron to `(output, state)`: the spikes of a spiking
    neuron, zeros and ones, or the membrane of a read-out. Every state has the membrane
    `v` as a field.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    dtype: eqx.AbstractVar[np.dtype]

    @abc.abstractmethod
    def init_state(self) -> Any:
        """The state at rest."""

    @abc.abstractmethod
    def __call__(
        self, state: Any, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], Any]:
        """One step of one example."""


#: Counts down from `refractory + 1` at a spike, to 0; None for neurons without a
#: refractory period. The next step is one of the period where it is above 1. It ends at
#: 0, not at 1, to tell neurons that were held in the last step, 1 to `refractory`, from
#: those that were free: a delayed reset reads the spikes of these.
Wait = Int[Array, "..."] | None
