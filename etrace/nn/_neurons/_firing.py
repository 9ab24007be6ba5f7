"""When neurons fire, and what becomes of their membranes then."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._parameters import Quantity, Real, Shape, check_kind, choice, real, value_of
from .._surrogate import AbstractSurrogate, Arctan
from ._base import Wait

Reset: TypeAlias = Literal["soft", "hard", "none"]


class FiringOptions(TypedDict, total=False):
    """Keywords of the spiking neurons, see `etrace.nn.LIF`."""

    threshold: Quantity
    reset: Reset
    v_reset: Quantity
    reset_delay: bool
    detach_reset: bool
    refractory: int
    spike: AbstractSurrogate


class Firing(eqx.Module):
    """Threshold, spike, reset and refractory period of a neuron."""

    threshold: Real
    v_reset: Real | None  # None unless the reset is hard
    spike: AbstractSurrogate
    reset: Reset = eqx.field(static=True)
    reset_delay: bool = eqx.field(static=True)
    detach_reset: bool = eqx.field(static=True)
    refractory: int = eqx.field(static=True)

    def __init__(
        self,
        shape: Shape,
        dtype: np.dtype,
        *,
        threshold: Quantity = 1.0,
        reset: Reset = "soft",
        v_reset: Quantity = 0.0,
        reset_delay: bool = False,
        detach_reset: bool = False,
        refractory: int = 0,
        spike: AbstractSurrogate = Arctan(),
    ):
        self.threshold = real("threshold", threshold, shape, dtype)
        self.reset = choice("reset", reset, ("soft", "hard", "none"))
        hard = reset == "hard"
        self.v_reset = real("v_reset", v_reset, shape, dtype) if hard else None
        check_kind("spike", spike, AbstractSurrogate, "Arctan()")
        self.spike = spike
        self.reset_delay = bool(reset_delay)
        self.detach_reset = bool(detach_reset)
        self.refractory = _check_refractory(refractory)

    def init_wait(self, shape: Shape) -> Wait:
        return jnp.zeros(shape, jnp.int32) if self.refractory else None

    def __call__(
        self,
        evolve: Callable[[Array], Array],
        v: Float[Array, "*shape"],
        wait: Wait,
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Wait]:
        """(spikes, membrane, wait) after a step in which the membrane evolves."""
        due = self.due(v, wait) if self.reset_delay else None
        v = self.integrate(evolve, v, wait, due)
        z = self.fire(v, wait)
        v = self.after_spike(v, z)
        return z, v, self.count(wait, z)

    def due(
        self, v: Float[Array, "*shape"], wait: Wait, shift: Array | float = 0.0
    ) -> Float[Array, "*shape"]:
        """The last step's spikes, whose reset is due in this step; of a threshold that
        is higher by `shift`."""
        z = self.spike(v - value_of(self.threshold, v.dtype) - shift)
        if wait is None:
            return z
        # A neuron that was held may be above threshold without having fired. One that
        # was free and silent keeps its surrogate derivative.
        free = (wait == 0) | (wait == self.refractory + 1)
        return jnp.where(free, z, 0)

    def integrate(
        self,
        evolve: Callable[[Array], Array],
        v: Float[Array, "*shape"],
        wait: Wait,
        due: Array | None = None,
    ) -> Float[Array, "*shape"]:
        """The membrane when spikes are decided; it is held in the refractory period."""
        if due is not None and self.reset == "hard":
            v = self._reset(v, due)
        new = evolve(v)
        if wait is not None:
            new = jnp.where(wait > 1, v, new)
        if due is not None and self.reset == "soft":
            new = self._reset(new, due)
        return new

    def fire(
        self, v: Float[Array, "*shape"], wait: Wait, shift: Array | float = 0.0
    ) -> Float[Array, "*shape"]:
        """The spikes."""
        z = self.spike(v - value_of(self.threshold, v.dtype) - shift)
        return z if wait is None else jnp.where(wait > 1, 0, z)

    def after_spike(
        self, v: Float[Array, "*shape"], z: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """The membrane after the spikes `z`."""
        return v if self.reset_delay else self._reset(v, z)

    def count(self, wait: Wait, z: Float[Array, "*shape"]) -> Wait:
        if wait is None:
            return None
        return jnp.where(z > 0, self.refractory + 1, jnp.maximum(wait - 1, 0))

    def _reset(self, v: Array, z: Array) -> Array:
        z = jax.lax.stop_gradient(z) if self.detach_reset else z
        if self.v_reset is not None:
            return v - z * (v - value_of(self.v_reset, v.dtype))
        if self.reset == "soft":
            return v - z * value_of(self.threshold, v.dtype)
        return v


def _check_refractory(steps: Any) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"refractory is {steps!r}; expected a number of steps, an int.")
    if steps < 0:
        raise ValueError(f"refractory is {steps}; expected 0 or more steps.")
    return int(steps)
