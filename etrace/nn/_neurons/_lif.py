"""Integrate-and-fire neurons with a linear membrane, and the leaky read-out."""

from typing import Any, Literal, NamedTuple, TypeAlias, Unpack

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._parameters import (
    PositiveReal,
    Quantity,
    Real,
    Shape,
    Size,
    check_input,
    choice,
    decay,
    dtype_of,
    number,
    positive,
    real,
    shape_of,
    value_of,
)
from ._base import AbstractNeuron, Wait
from ._firing import Firing, FiringOptions

Drive: TypeAlias = Literal["jump", "current"]


class Leak(eqx.Module):
    """A membrane that relaxes to rest, solved exactly over a step."""

    tau: PositiveReal
    v_rest: Real
    drive: Drive = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        tau: Quantity,
        v_rest: Quantity,
        drive: Drive,
        dt: float,
        shape: Shape,
        dtype: np.dtype,
    ):
        self.tau = positive("tau", tau, shape, dtype)
        self.v_rest = real("v_rest", v_rest, shape, dtype)
        self.drive = choice("drive", drive, ("jump", "current"))
        self.dt = number("dt", dt)

    def init(self, shape: Shape, dtype: np.dtype) -> Array:
        return jnp.broadcast_to(value_of(self.v_rest, dtype), shape)

    def __call__(
        self, v: Float[Array, "*shape"], x: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        alpha = decay(self.tau, self.dt, v.dtype)
        v_rest = value_of(self.v_rest, v.dtype)
        gain = 1 - alpha if self.drive == "current" else 1
        return v_rest + alpha * (v - v_rest) + gain * x


class LIFState(NamedTuple):
    """The membrane `v`, and the count of the refractory period."""

    v: Float[Array, "..."]
    wait: Wait


class IF(AbstractNeuron):
    r"""The perfect integrator: a membrane that forgets nothing but by its resets.

    $$ \hat v_t = v_{t-1} + x_t, \qquad z_t = H(\hat v_t - \theta), $$

    and $v_t$ from $\hat v_t$ by the reset, as in [`etrace.nn.LIF`][]. State: `v`, and
    `wait` with a refractory period.

    **Arguments:** `size`, `dtype` and the options of firing, as for
    [`etrace.nn.LIF`][]. There is no unit of time.

    ??? cite "Reference"

        Lapicque, J. Physiol. Pathol. Gen. 9:620 (1907); Gerstner, Kistler, Naud and
        Paninski, Neuronal Dynamics, Cambridge (2014), section 1.3.
    """

    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        dtype: Any = None,
        **options: Unpack[FiringOptions],
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.firing = Firing(self.shape, self.dtype, **options)

    def init_state(self) -> LIFState:
        zeros = jnp.zeros(self.shape, self.dtype)
        return LIFState(zeros, self.firing.init_wait(self.shape))

    def __call__(
        self, state: LIFState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], LIFState]:
        check_input(x, self.shape, self)
        z, v, wait = self.firing(lambda v: v + x, state.v, state.wait)
        return z, LIFState(v, wait)


class LIF(AbstractNeuron):
    r"""Leaky integrate-and-fire neurons.

    The membrane relaxes to $v_{\text{rest}}$ with the time constant $\tau$,
    $\tau\, \dot v = v_{\text{rest}} - v + I$. With $\alpha = e^{-dt / \tau}$, the exact
    solution over a step,

    $$ \hat v_t = v_{\text{rest}} + \alpha\, (v_{t-1} - v_{\text{rest}}) + g\, x_t,
       \qquad z_t = H(\hat v_t - \theta), $$

    then $v_t = \hat v_t - z_t\, \theta$ (`"soft"`), or $v_{\text{reset}}$ where
    $z_t = 1$ (`"hard"`). Here $g = 1$ if the input makes the membrane jump, and
    $g = 1 - \alpha$ for a current that is constant during the step. State: `v`, and
    `wait`, an integer, with a refractory period.

    **Arguments:**

    - `size`: the number of neurons, or a shape. A quantity below is one number, or an
        array that broadcasts to this shape: a constant if it is a number or of NumPy, a
        parameter to be trained if it is a JAX array. Time constants are then kept as
        their logarithms.
    - `tau`: the membrane's time constant, in the unit of `dt`.
    - `v_rest`: the membrane at rest, where it starts; dimensionless or in mV.
    - `drive`: `"jump"` or `"current"`, $g$ above.
    - `dt`: the length of a step, in ms if `tau` is.
    - `dtype`: of state and parameters, JAX's default float if None.

    and the options of firing,

    - `threshold`: $\theta$, in the unit of $v$.
    - `reset`: `"soft"`, `"hard"`, or `"none"`.
    - `v_reset`: what a hard reset sets the membrane to; `v_rest` if left out.
    - `reset_delay`: reset in the step after the spike; `v` then keeps the value that
        fired. A soft reset so comes after the leak, $\hat v_t = \dots - z_{t-1}\,
        \theta$, as in e-prop and snnTorch; a hard one before it. The first step reads
        the initial membrane as if a step had left it, $z_0 = H(v_0 - \theta)$.
    - `detach_reset`: do not differentiate the reset by the spike, which helps training
        through many steps.
    - `refractory`: steps after a spike in which the membrane is held and does not fire;
        the surrogate derivative is zero there, and nowhere else because of it.
    - `spike`: the surrogate gradient, of $v - \theta$.

    ??? cite "Reference"

        Gerstner, Kistler, Naud and Paninski, Neuronal Dynamics, Cambridge (2014),
        section 1.3; Rotter and Diesmann, Biological Cybernetics 81:381 (1999), for the
        exact solution; Bellec et al., Nat. Commun. 11:3625 (2020), for the delayed
        reset; Zenke and Vogels, Neural Computation 33:899 (2021), for `detach_reset`.
    """

    leak: Leak
    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau: Quantity = 20.0,
        v_rest: Quantity = 0.0,
        drive: Drive = "jump",
        dt: float = 1.0,
        dtype: Any = None,
        **options: Unpack[FiringOptions],
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.leak = Leak(tau, v_rest, drive, dt, self.shape, self.dtype)
        options.setdefault("v_reset", v_rest)
        self.firing = Firing(self.shape, self.dtype, **options)

    def init_state(self) -> LIFState:
        v = self.leak.init(self.shape, self.dtype)
        return LIFState(v, self.firing.init_wait(self.shape))

    def __call__(
        self, state: LIFState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], LIFState]:
        check_input(x, self.shape, self)
        z, v, wait = self.firing(lambda v: self.leak(v, x), state.v, state.wait)
        return z, LIFState(v, wait)


class CurrentLIFState(NamedTuple):
    """The membrane `v`, the synaptic current `i`, and the count of the refractory
    period."""

    v: Float[Array, "..."]
    i: Float[Array, "..."]
    wait: Wait


class CurrentLIF(AbstractNeuron):
    r"""Current-based LIF neurons: the input feeds a synaptic current, which decays with
    a time constant of its own and drives the membrane,

    $$ i_t = \rho\, i_{t-1} + x_t, \qquad
       \hat v_t = v_{\text{rest}} + \alpha\, (v_{t-1} - v_{\text{rest}}) + g\, i_t, $$

    with $\rho = e^{-dt / \tau_{\text{syn}}}$, and the rest as in [`etrace.nn.LIF`][].
    The current goes on in the refractory period. State: `v`, `i`, and `wait` with a
    refractory period.

    **Arguments:**

    - `tau_syn`: the time constant of the current, in the unit of `dt`.

    The others are those of [`etrace.nn.LIF`][].

    ??? cite "Reference"

        Neftci, Mostafa and Zenke, Surrogate gradient learning in spiking neural
        networks, IEEE Signal Processing Magazine 36:51 (2019).
    """

    tau_syn: PositiveReal
    leak: Leak
    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau: Quantity = 20.0,
        tau_syn: Quantity = 5.0,
        v_rest: Quantity = 0.0,
        drive: Drive = "jump",
        dt: float = 1.0,
        dtype: Any = None,
        **options: Unpack[FiringOptions],
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau_syn = positive("tau_syn", tau_syn, self.shape, self.dtype)
        self.leak = Leak(tau, v_rest, drive, dt, self.shape, self.dtype)
        options.setdefault("v_reset", v_rest)
        self.firing = Firing(self.shape, self.dtype, **options)

    def init_state(self) -> CurrentLIFState:
        v = self.leak.init(self.shape, self.dtype)
        return CurrentLIFState(v, jnp.zeros_like(v), self.firing.init_wait(self.shape))

    def __call__(
        self, state: CurrentLIFState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], CurrentLIFState]:
        check_input(x, self.shape, self)
        i = decay(self.tau_syn, self.leak.dt, self.dtype) * state.i + x
        z, v, wait = self.firing(lambda v: self.leak(v, i), state.v, state.wait)
        return z, CurrentLIFState(v, i, wait)


class LeakyIntegratorState(NamedTuple):
    """The membrane."""

    v: Float[Array, "..."]


class LeakyIntegrator(AbstractNeuron):
    r"""A read-out of spikes: a leaky membrane that never fires,

    $$ v_t = v_{\text{rest}} + \alpha\, (v_{t-1} - v_{\text{rest}}) + g\, x_t, $$

    with $\alpha = e^{-dt / \tau}$ and $g$ as in [`etrace.nn.LIF`][]. Its output is the
    new membrane. State: `v`.

    **Arguments:** `size`, `tau`, `v_rest`, `drive`, `dt` and `dtype`, as for
    [`etrace.nn.LIF`][].

    ??? cite "Reference"

        Bellec et al., A solution to the learning dilemma for recurrent networks of
        spiking neurons, Nat. Commun. 11:3625 (2020).
    """

    leak: Leak
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau: Quantity = 20.0,
        v_rest: Quantity = 0.0,
        drive: Drive = "jump",
        dt: float = 1.0,
        dtype: Any = None,
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.leak = Leak(tau, v_rest, drive, dt, self.shape, self.dtype)

    def init_state(self) -> LeakyIntegratorState:
        return LeakyIntegratorState(self.leak.init(self.shape, self.dtype))

    def __call__(
        self, state: LeakyIntegratorState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], LeakyIntegratorState]:
        check_input(x, self.shape, self)
        v = self.leak(state.v, x)
        return v, LeakyIntegratorState(v)
