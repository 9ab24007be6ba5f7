"""Synapses as state: what becomes of a presynaptic spike over time.

A synapse stands behind the weights, one per neuron that receives: its input is the sum
of weighted spikes, its output the current into the neuron. (Short-term plasticity
stands before them, one per neuron that sends.) All kernels start or peak at 1.
"""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._parameters import (
    Fixed,
    PositiveReal,
    Quantity,
    Real,
    Size,
    check_input,
    check_kind,
    decay,
    dtype_of,
    number,
    positive,
    rate,
    real,
    shape_of,
    value_of,
)


class AbstractSynapse(eqx.Module):
    """A layer of synapses: `synapse(state, x, v)` takes the weighted spikes `x` and the
    membranes `v` they act on to `(current, state)`. Only conductances read `v`."""

    shape: eqx.AbstractVar[tuple[int, ...]]
    dtype: eqx.AbstractVar[np.dtype]

    @abc.abstractmethod
    def init_state(self) -> Any:
        """The state without any spike before."""

    @abc.abstractmethod
    def __call__(
        self,
        state: Any,
        x: Float[Array, "*shape"],
        v: Float[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape"], Any]:
        """One step of one example."""


class Delta(AbstractSynapse):
    """A synapse without time: the current is the input. It has no state.

    **Arguments:** `size` and `dtype`, as for [`etrace.nn.LIF`][].
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, size: Size, *, dtype: Any = None):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)

    def init_state(self) -> tuple[()]:
        return ()

    def __call__(
        self,
        state: tuple[()],
        x: Float[Array, "*shape"],
        v: Float[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape"], tuple[()]]:
        check_input(x, self.shape, self)
        return x, state


class ExponentialState(NamedTuple):
    """The current, or conductance."""

    g: Float[Array, "..."]


class Exponential(AbstractSynapse):
    r"""A current that decays exponentially after each spike,

    $$ g_t = e^{-dt / \tau} g_{t-1} + x_t. $$

    State: `g`.

    **Arguments:**

    - `size`, `dt` and `dtype`, and constants or parameters, as for [`etrace.nn.LIF`][].
    - `tau`: the time constant, in the unit of `dt`.

    ??? cite "Reference"

        Gerstner, Kistler, Naud and Paninski, Neuronal Dynamics, Cambridge (2014),
        section 3.1.
    """

    tau: PositiveReal
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self, size: Size, *, tau: Quantity = 5.0, dt: float = 1.0, dtype: Any = None
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau = positive("tau", tau, self.shape, self.dtype)
        self.dt = number("dt", dt)

    def init_state(self) -> ExponentialState:
        return ExponentialState(jnp.zeros(self.shape, self.dtype))

    def __call__(
        self,
        state: ExponentialState,
        x: Float[Array, "*shape"],
        v: Float[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape"], ExponentialState]:
        check_input(x, self.shape, self)
        g = decay(self.tau, self.dt, self.dtype) * state.g + x
        return g, ExponentialState(g)


class AlphaState(NamedTuple):
    """The current, and what still rises."""

    g: Float[Array, "..."]
    h: Float[Array, "..."]


class Alpha(AbstractSynapse):
    r"""A current that rises and falls with one time constant: a spike has the effect
    $(t / \tau)\, e^{1 - t / \tau}$, which peaks at 1 after the time $\tau$. Exactly, at
    the steps,

    $$ g_t = \rho\, \bigl(g_{t-1} + \tfrac{dt}{\tau} h_{t-1}\bigr), \qquad
       h_t = \rho\, h_{t-1} + e\, x_t, \qquad \rho = e^{-dt / \tau}. $$

    State: `g`, `h`.

    **Arguments:** those of [`etrace.nn.Exponential`][].

    ??? cite "Reference"

        Rall, Journal of Neurophysiology 30:1138 (1967); Rotter and Diesmann, Biological
        Cybernetics 81:381 (1999) for the exact steps.
    """

    tau: PositiveReal
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self, size: Size, *, tau: Quantity = 5.0, dt: float = 1.0, dtype: Any = None
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau = positive("tau", tau, self.shape, self.dtype)
        self.dt = number("dt", dt)

    def init_state(self) -> AlphaState:
        zeros = jnp.zeros(self.shape, self.dtype)
        return AlphaState(zeros, zeros)

    def __call__(
        self,
        state: AlphaState,
        x: Float[Array, "*shape"],
        v: Float[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape"], AlphaState]:
        check_input(x, self.shape, self)
        rho = decay(self.tau, self.dt, self.dtype)
        g = rho * (state.g + rate(self.tau, self.dt, self.dtype) * state.h)
        return g, AlphaState(g, rho * state.h + math.e * x)


class DualExponentialState(NamedTuple):
    """The part that falls and the part that rises; the current is their difference."""

    fall: Float[Array, "..."]
    rise: Float[Array, "..."]


class DualExponential(AbstractSynapse):
    r"""A current that rises with one time constant and falls with another: a spike has
    the effect $A\, (e^{-t / \tau_{\text{fall}}} - e^{-t / \tau_{\text{rise}}})$, with
    $A$ such that it peaks at 1. Each part is that of [`etrace.nn.Exponential`][].
    State: `fall`, `rise`.

    **Arguments:**

    - `tau_rise`, `tau_fall`: the time constants, in the unit of `dt`. The first is the
        smaller one.

    The others are those of [`etrace.nn.Exponential`][].

    ??? cite "Reference"

        Roth and van Rossum, Modeling synapses, in: Computational Modeling Methods for
        Neuroscientists, MIT Press (2009).
    """

    tau_rise: PositiveReal
    tau_fall: PositiveReal
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau_rise: Quantity = 2.0,
        tau_fall: Quantity = 10.0,
        dt: float = 1.0,
        dtype: Any = None,
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau_rise = positive("tau_rise", tau_rise, self.shape, self.dtype)
        self.tau_fall = positive("tau_fall", tau_fall, self.shape, self.dtype)
        both = isinstance(self.tau_rise, Fixed) and isinstance(self.tau_fall, Fixed)
        if both and np.any(np.asarray(tau_rise) >= np.asarray(tau_fall)):
            raise ValueError(
                f"tau_rise is {tau_rise!r} and tau_fall {tau_fall!r}; expected the "
                "rise to be faster. For equal time constants use etrace.nn.Alpha."
            )
        self.dt = number("dt", dt)

    def init_state(self) -> DualExponentialState:
        zeros = jnp.zeros(self.shape, self.dtype)
        return DualExponentialState(zeros, zeros)

    def __call__(
        self,
        state: DualExponentialState,
        x: Float[Array, "*shape"],
        v: Float[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape"], DualExponentialState]:
        check_input(x, self.shape, self)
        fall = decay(self.tau_fall, self.dt, self.dtype) * state.fall + x
        rise = decay(self.tau_rise, self.dt, self.dtype) * state.rise + x
        return self._scale() * (fall - rise), DualExponentialState(fall, rise)

    def _scale(self) -> Array:
        """A. The peak is at t = log(τ_fall / τ_rise) / (1/τ_rise - 1/τ_fall)."""
        rise, fall = (
            1 / value_of(tau, self.dtype) for tau in (self.tau_rise, self.tau_fall)
        )
        peak = jnp.log(rise / fall) / (rise - fall)
        return 1 / (jnp.exp(-peak * fall) - jnp.exp(-peak * rise))


class Conductance(AbstractSynapse):
    r"""A synapse that opens a conductance: what flows depends on how far the membrane
    is from the reversal potential,

    $$ I_t = g_t\, (E - v_{t-1}), $$

    with $g_t$ the output of another synapse. State: that of the other synapse.

    **Arguments:**

    - `synapse`: what gives $g$, such as [`etrace.nn.Exponential`][].
    - `reversal`: the potential $E$, in the unit of the membrane: a constant or a
        parameter, as for [`etrace.nn.LIF`][].

    Called as `synapse(state, x, v)`; [`etrace.nn.Synaptic`][] puts it before a neuron.
    For neurons with `drive="current"`, $g$ is in units of the leak conductance. The
    membrane is that before the step: $g$ times 1 - exp(-dt/τ) should stay below 1.

    ??? cite "Reference"

        Dayan and Abbott, Theoretical Neuroscience, MIT Press (2001), section 5.8.
    """

    synapse: AbstractSynapse
    reversal: Real
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, synapse: AbstractSynapse, reversal: Quantity):
        check_kind("synapse", synapse, AbstractSynapse, "Exponential(size)")
        self.shape, self.dtype = synapse.shape, synapse.dtype
        self.synapse = synapse
        self.reversal = real("reversal", reversal, self.shape, self.dtype)

    def init_state(self) -> Any:
        return self.synapse.init_state()

    def __call__(
        self,
        state: Any,
        x: Float[Array, "*shape"],
        v: Float[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape"], Any]:
        if v is None:
            raise TypeError(
                "v is missing; expected the membrane that the conductance acts on: "
                "synapse(state, x, v). etrace.nn.Synaptic(synapse, neuron) passes it."
            )
        g, state = self.synapse(state, x, v)
        return g * (value_of(self.reversal, self.dtype) - v), state


class PlasticityState(NamedTuple):
    """The utilisation `u` and the fraction `r` of resources that are available."""

    u: Float[Array, "..."]
    r: Float[Array, "..."]


class ShortTermPlasticity(eqx.Module):
    r"""Tsodyks and Markram's short-term facilitation and depression, of the spikes
    $x_t$ that a neuron sends. Between spikes, exactly,

    $$ \hat u_t = e^{-dt / \tau_f} u_{t-1}, \qquad
       \hat r_t = 1 + e^{-dt / \tau_d} (r_{t-1} - 1), $$

    and at a spike

    $$ u_t = \hat u_t + U (1 - \hat u_t)\, x_t, \qquad
       y_t = u_t \hat r_t x_t, \qquad r_t = \hat r_t - y_t. $$

    The output $y$ takes the place of the spikes before the weights. State: `u`, `r`,
    one per neuron that sends.

    **Arguments:**

    - `size`, `dt` and `dtype`, and constants or parameters, as for [`etrace.nn.LIF`][].
    - `tau_f`: the time constant of facilitation, in the unit of `dt`.
    - `tau_d`: the time constant of depression, by which resources recover.
    - `utilisation`: what a single spike uses, $U$, between 0 and 1.

    ??? cite "Reference"

        Tsodyks, Pawelzik and Markram, Neural networks with dynamic synapses, Neural
        Computation 10:821 (1998).
    """

    tau_f: PositiveReal
    tau_d: PositiveReal
    utilisation: Real
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau_f: Quantity = 50.0,
        tau_d: Quantity = 200.0,
        utilisation: Quantity = 0.2,
        dt: float = 1.0,
        dtype: Any = None,
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau_f = positive("tau_f", tau_f, self.shape, self.dtype)
        self.tau_d = positive("tau_d", tau_d, self.shape, self.dtype)
        self.utilisation = real("utilisation", utilisation, self.shape, self.dtype)
        fixed = isinstance(self.utilisation, Fixed)
        if fixed and not np.all((0 < (U := np.asarray(utilisation))) & (U <= 1)):
            raise ValueError(
                f"utilisation is {utilisation!r}; expected fractions from above 0 to 1."
            )
        self.dt = number("dt", dt)

    def init_state(self) -> PlasticityState:
        zeros = jnp.zeros(self.shape, self.dtype)
        return PlasticityState(zeros, zeros + 1)

    def __call__(
        self, state: PlasticityState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], PlasticityState]:
        check_input(x, self.shape, self)
        u = decay(self.tau_f, self.dt, self.dtype) * state.u
        r = 1 + decay(self.tau_d, self.dt, self.dtype) * (state.r - 1)
        u = u + value_of(self.utilisation, self.dtype) * (1 - u) * x
        y = u * r * x
        return y, PlasticityState(u, r - y)
