"""Neurons with a nonlinear membrane, by Euler's method. Potentials are in mV, times in
ms; input currents in mV too, that is, multiplied by the membrane's resistance."""

from typing import Any, NamedTuple, TypedDict, Unpack

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._parameters import (
    PositiveReal,
    Quantity,
    Real,
    Size,
    check_input,
    dtype_of,
    number,
    positive,
    rate,
    real,
    shape_of,
    value_of,
)
from .._surrogate import AbstractSurrogate, Arctan
from ._base import AbstractNeuron, Wait
from ._firing import Firing
from ._lif import LIFState


class PeakOptions(TypedDict, total=False):
    """Keywords of firing, of the neurons with a peak: see `etrace.nn.ExpIF`."""

    detach_reset: bool
    refractory: int
    spike: AbstractSurrogate


def _peak(
    shape: tuple[int, ...],
    dtype: np.dtype,
    threshold: Quantity,
    v_reset: Quantity,
    *,
    detach_reset: bool = False,
    refractory: int = 0,
    spike: AbstractSurrogate = Arctan(alpha=0.1),
) -> Firing:
    """A spike at the peak of the upstroke, and a hard reset.

    The surrogate is as wide as the upstroke is tall, some mV.
    """
    return Firing(
        shape,
        dtype,
        threshold=threshold,
        reset="hard",
        v_reset=v_reset,
        detach_reset=detach_reset,
        refractory=refractory,
        spike=spike,
    )


class ExponentialLeak(eqx.Module):
    """A leak, and the exponential upstroke of a spike."""

    tau: PositiveReal
    v_rest: Real
    v_rheobase: Real
    sharpness: PositiveReal
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        tau: Quantity,
        v_rest: Quantity,
        v_rheobase: Quantity,
        sharpness: Quantity,
        dt: float,
        shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        self.tau = positive("tau", tau, shape, dtype)
        self.v_rest = real("v_rest", v_rest, shape, dtype)
        self.v_rheobase = real("v_rheobase", v_rheobase, shape, dtype)
        self.sharpness = positive("sharpness", sharpness, shape, dtype)
        self.dt = number("dt", dt)

    def init(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return jnp.broadcast_to(value_of(self.v_rest, dtype), shape)

    def __call__(
        self, v: Float[Array, "*shape"], x: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        v_rest, v_rheobase, sharpness = (
            value_of(p, v.dtype) for p in (self.v_rest, self.v_rheobase, self.sharpness)
        )
        upstroke = sharpness * jnp.exp((v - v_rheobase) / sharpness)
        return v + rate(self.tau, self.dt, v.dtype) * (v_rest - v + upstroke + x)


class ExpIF(AbstractNeuron):
    r"""Exponential integrate-and-fire neurons,

    $$ \tau\, \dot v = v_{\text{rest}} - v + \Delta\, e^{(v - v_T) / \Delta} + x, $$

    by a step of Euler's method, $\hat v_t = v_{t-1} + dt\, \dot v(v_{t-1}, x_t)$. A
    neuron fires where $\hat v_t > \theta$ and is reset to $v_{\text{reset}}$. State:
    `v`, and `wait` with a refractory period.

    **Arguments:**

    - `size`, `dt` and `dtype`, and constants or parameters, as for [`etrace.nn.LIF`][].
    - `tau`: the membrane's time constant, in ms.
    - `v_rest`: the membrane's leak potential, in mV, where it starts.
    - `v_rheobase`: $v_T$, where the upstroke of a spike begins, in mV.
    - `sharpness`: of the upstroke, $\Delta$, in mV.
    - `threshold`: $\theta$, where a spike is counted, in mV. Well above `v_rheobase`,
        but not by more than some times the sharpness: steps become too large there.
    - `v_reset`: in mV.
    - `detach_reset`, `refractory` and `spike`, as for [`etrace.nn.LIF`][]; the
        surrogate gradient has the width of some mV.

    ??? cite "Reference"

        Fourcaud-Trocmé, Hansel, van Vreeswijk and Brunel, How spike generation
        mechanisms determine the neuronal response to fluctuating inputs, Journal of
        Neuroscience 23:11628 (2003).
    """

    leak: ExponentialLeak
    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau: Quantity = 10.0,
        v_rest: Quantity = -65.0,
        v_rheobase: Quantity = -59.9,
        sharpness: Quantity = 3.48,
        threshold: Quantity = -42.5,
        v_reset: Quantity = -68.0,
        dt: float = 1.0,
        dtype: Any = None,
        **options: Unpack[PeakOptions],
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.leak = ExponentialLeak(
            tau, v_rest, v_rheobase, sharpness, dt, self.shape, self.dtype
        )
        self.firing = _peak(self.shape, self.dtype, threshold, v_reset, **options)

    def init_state(self) -> LIFState:
        v = self.leak.init(self.shape, self.dtype)
        return LIFState(v, self.firing.init_wait(self.shape))

    def __call__(
        self, state: LIFState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], LIFState]:
        check_input(x, self.shape, self)
        z, v, wait = self.firing(lambda v: self.leak(v, x), state.v, state.wait)
        return z, LIFState(v, wait)


class AdExState(NamedTuple):
    """The membrane `v`, the adaptation current `w`, and the count of the refractory
    period."""

    v: Float[Array, "..."]
    w: Float[Array, "..."]
    wait: Wait


class AdEx(AbstractNeuron):
    r"""Adaptive exponential integrate-and-fire neurons,

    $$ \tau\, \dot v = v_{\text{rest}} - v + \Delta\, e^{(v - v_T) / \Delta} - w + x,
       \qquad \tau_w\, \dot w = a\, (v - v_{\text{rest}}) - w, $$

    by a step of Euler's method from $(v_{t-1}, w_{t-1})$. A neuron fires where
    $\hat v_t > \theta$; then $v_t = v_{\text{reset}}$ and $w_t = \hat w_t + b$. The
    adaptation goes on in the refractory period. State: `v`, `w`, and `wait` with a
    refractory period.

    **Arguments:**

    - `tau_w`: the time constant of the adaptation, in ms.
    - `a`: how the adaptation follows the membrane, as a fraction of the leak
        conductance.
    - `b`: what a spike adds to the adaptation, in mV.

    The others are those of [`etrace.nn.ExpIF`][].

    ??? cite "Reference"

        Brette and Gerstner, Adaptive exponential integrate-and-fire model as an
        effective description of neuronal activity, Journal of Neurophysiology 94:3637
        (2005); its parameters, with currents divided by the leak conductance.
    """

    tau_w: PositiveReal
    a: Real
    b: Real
    leak: ExponentialLeak
    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau: Quantity = 9.37,
        tau_w: Quantity = 144.0,
        a: Quantity = 0.133,
        b: Quantity = 2.68,
        v_rest: Quantity = -70.6,
        v_rheobase: Quantity = -50.4,
        sharpness: Quantity = 2.0,
        threshold: Quantity = -40.4,
        v_reset: Quantity = -70.6,
        dt: float = 1.0,
        dtype: Any = None,
        **options: Unpack[PeakOptions],
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau_w = positive("tau_w", tau_w, self.shape, self.dtype)
        self.a = real("a", a, self.shape, self.dtype)
        self.b = real("b", b, self.shape, self.dtype)
        self.leak = ExponentialLeak(
            tau, v_rest, v_rheobase, sharpness, dt, self.shape, self.dtype
        )
        self.firing = _peak(self.shape, self.dtype, threshold, v_reset, **options)

    def init_state(self) -> AdExState:
        v = self.leak.init(self.shape, self.dtype)
        return AdExState(v, jnp.zeros_like(v), self.firing.init_wait(self.shape))

    def __call__(
        self, state: AdExState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], AdExState]:
        check_input(x, self.shape, self)
        v, w, wait = state
        a, b, v_rest = (
            value_of(p, self.dtype) for p in (self.a, self.b, self.leak.v_rest)
        )
        pull = a * (v - v_rest) - w
        z, v, wait = self.firing(lambda v: self.leak(v, x - w), v, wait)
        w = w + rate(self.tau_w, self.leak.dt, self.dtype) * pull + b * z
        return z, AdExState(v, w, wait)


class IzhikevichState(NamedTuple):
    """The membrane `v`, its recovery `u`, and the count of the refractory period."""

    v: Float[Array, "..."]
    u: Float[Array, "..."]
    wait: Wait


class Izhikevich(AbstractNeuron):
    r"""Izhikevich's neurons,

    $$ \dot v = 0.04\, v^2 + 5 v + 140 - u + x, \qquad \dot u = a\, (b v - u), $$

    by a step of Euler's method from $(v_{t-1}, u_{t-1})$, with $v$ in mV and times in
    ms. A neuron fires where $\hat v_t$ exceeds the threshold; then $v_t = c$ and $u_t =
    \hat u_t + d$. The recovery goes on in the refractory period. State: `v`, `u`, and
    `wait` with a refractory period.

    **Arguments:**

    - `a`, `b`, `c`, `d`: rate and sensitivity of the recovery, the membrane after a
        spike, and what the spike adds to the recovery. Regular spiking by default.
    - `threshold`: the peak of a spike, in mV.
    - `dt`: in ms; Euler's method needs it to be below 1.
    - `size`, `dtype`, `detach_reset`, `refractory` and `spike`, as for
        [`etrace.nn.ExpIF`][].

    ??? cite "Reference"

        Izhikevich, Simple model of spiking neurons, IEEE Transactions on Neural
        Networks 14:1569 (2003).
    """

    a: Real
    b: Real
    d: Real
    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        a: Quantity = 0.02,
        b: Quantity = 0.2,
        c: Quantity = -65.0,
        d: Quantity = 8.0,
        threshold: Quantity = 30.0,
        dt: float = 0.5,
        dtype: Any = None,
        **options: Unpack[PeakOptions],
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.dt = number("dt", dt)
        self.a = real("a", a, self.shape, self.dtype)
        self.b = real("b", b, self.shape, self.dtype)
        self.d = real("d", d, self.shape, self.dtype)
        real("c", c, self.shape, self.dtype)  # named as the user named it
        self.firing = _peak(self.shape, self.dtype, threshold, c, **options)

    def init_state(self) -> IzhikevichState:
        # As in Izhikevich's program; at rest, v is -70 mV for the default parameters.
        v = jnp.full(self.shape, -65.0, self.dtype)
        u = value_of(self.b, self.dtype) * v
        return IzhikevichState(v, u, self.firing.init_wait(self.shape))

    def __call__(
        self, state: IzhikevichState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], IzhikevichState]:
        check_input(x, self.shape, self)
        v, u, wait = state
        a, b, d = (value_of(p, self.dtype) for p in (self.a, self.b, self.d))
        recovery = a * (b * v - u)
        dv = lambda v: 0.04 * jnp.square(v) + 5 * v + 140 - u + x  # noqa: E731
        z, v, wait = self.firing(lambda v: v + self.dt * dv(v), v, wait)
        return z, IzhikevichState(v, u + self.dt * recovery + d * z, wait)
