"""Integrate-and-fire neurons that adapt to their own spikes."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

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
    decay,
    dtype_of,
    positive,
    real,
    shape_of,
    value_of,
)
from ._base import AbstractNeuron, Wait
from ._firing import Firing, FiringOptions
from ._lif import Drive, Leak


class ALIFState(NamedTuple):
    """The membrane `v`, the adaptation `a`, and the count of the refractory period."""

    v: Float[Array, "..."]
    a: Float[Array, "..."]
    wait: Wait


class ALIF(AbstractNeuron):
    r"""LIF neurons whose threshold rises with each spike and falls back slowly,

    $$ a_t = \rho\, a_{t-1} + z_{t-1}, \qquad
       \hat v_t = v_{\text{rest}} + \alpha\, (v_{t-1} - v_{\text{rest}}) + g\, x_t,
       \qquad z_t = H(\hat v_t - \theta - \beta a_t), $$

    with $\rho = e^{-dt / \tau_a}$. The reset is that of [`etrace.nn.LIF`][], a soft one
    of the size $\theta$, without the adaptation. With `reset_delay` and
    `detach_reset` it is the neuron of e-prop. State: `v`, `a`, and `wait` with a
    refractory period. Kept in the state is the adaptation after the spikes of the step,
    $a_{t+1}$; with `reset_delay` it is $a_t$.

    **Arguments:**

    - `tau_a`: the time constant of the adaptation, in the unit of `dt`.
    - `beta`: how much a spike raises the threshold, $\beta$.

    The others are those of [`etrace.nn.LIF`][].

    ??? cite "Reference"

        Bellec et al., Long short-term memory and learning-to-learn in networks of
        spiking neurons, NeurIPS (2018); Bellec et al., Nat. Commun. 11:3625 (2020).
    """

    tau_a: PositiveReal
    beta: Real
    leak: Leak
    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau: Quantity = 20.0,
        tau_a: Quantity = 200.0,
        beta: Quantity = 0.1,
        v_rest: Quantity = 0.0,
        drive: Drive = "jump",
        dt: float = 1.0,
        dtype: Any = None,
        **options: Unpack[FiringOptions],
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau_a = positive("tau_a", tau_a, self.shape, self.dtype)
        self.beta = real("beta", beta, self.shape, self.dtype)
        self.leak = Leak(tau, v_rest, drive, dt, self.shape, self.dtype)
        options.setdefault("v_reset", v_rest)
        self.firing = Firing(self.shape, self.dtype, **options)

    def init_state(self) -> ALIFState:
        v = self.leak.init(self.shape, self.dtype)
        return ALIFState(v, jnp.zeros_like(v), self.firing.init_wait(self.shape))

    def __call__(
        self, state: ALIFState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], ALIFState]:
        check_input(x, self.shape, self)
        firing, (v, a, wait) = self.firing, state
        beta = value_of(self.beta, self.dtype)
        rho = decay(self.tau_a, self.leak.dt, self.dtype)
        if firing.reset_delay:
            due = firing.due(v, wait, beta * a)
            a = rho * a + due
        else:
            due = None
        v = firing.integrate(lambda v: self.leak(v, x), v, wait, due)
        z = firing.fire(v, wait, beta * a)
        if due is None:
            a = rho * a + z
        return z, ALIFState(firing.after_spike(v, z), a, firing.count(wait, z))


class GIFState(NamedTuple):
    """The membrane `v`, the adaptation currents, and the count of the refractory
    period."""

    v: Float[Array, "..."]
    currents: tuple[Float[Array, "..."], ...]
    wait: Wait


class GIF(AbstractNeuron):
    r"""Generalised integrate-and-fire neurons: each spike starts currents that flow
    back into the membrane, for adaptation or bursts,

    $$ \hat v_t = v_{\text{rest}} + \alpha\, (v_{t-1} - v_{\text{rest}})
         + g\, \bigl(x_t + \textstyle\sum_k i^k_{t-1}\bigr), \qquad
       i^k_t = \rho_k\, i^k_{t-1} + A_k z_t, $$

    with $\rho_k = e^{-dt / \tau_k}$; the rest as in [`etrace.nn.LIF`][]. Their sum is
    the spike-triggered current $\eta(t) = \sum_k A_k e^{-t / \tau_k}$ of the
    literature. State: `v`, `currents`, and `wait` with a refractory period.

    **Arguments:**

    - `tau_currents`: the time constants $\tau_k$, one for each current, in the unit of
        `dt`.
    - `jumps`: what a spike adds to each current, $A_k$; negative to adapt.

    The others are those of [`etrace.nn.LIF`][].

    ??? cite "Reference"

        Mihalas and Niebur, A generalized linear integrate-and-fire neural model
        produces diverse spiking behaviors, Neural Computation 21:704 (2009), with a
        constant threshold; Mensi et al., Journal of Neurophysiology 107:1756 (2012).
    """

    tau_currents: tuple[PositiveReal, ...]
    jumps: tuple[Real, ...]
    leak: Leak
    firing: Firing
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        *,
        tau: Quantity = 20.0,
        tau_currents: Sequence[Quantity] = (10.0, 100.0),
        jumps: Sequence[Quantity] = (-0.1, -0.02),
        v_rest: Quantity = 0.0,
        drive: Drive = "jump",
        dt: float = 1.0,
        dtype: Any = None,
        **options: Unpack[FiringOptions],
    ):
        _check_pairs(tau_currents, jumps)
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.tau_currents = tuple(
            positive(f"tau_currents[{k}]", tau_k, self.shape, self.dtype)
            for k, tau_k in enumerate(tau_currents)
        )
        self.jumps = tuple(
            real(f"jumps[{k}]", jump, self.shape, self.dtype)
            for k, jump in enumerate(jumps)
        )
        self.leak = Leak(tau, v_rest, drive, dt, self.shape, self.dtype)
        options.setdefault("v_reset", v_rest)
        self.firing = Firing(self.shape, self.dtype, **options)

    def init_state(self) -> GIFState:
        v = self.leak.init(self.shape, self.dtype)
        currents = tuple(jnp.zeros_like(v) for _ in self.jumps)
        return GIFState(v, currents, self.firing.init_wait(self.shape))

    def __call__(
        self, state: GIFState, x: Float[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape"], GIFState]:
        check_input(x, self.shape, self)
        total = sum(state.currents, start=x)
        z, v, wait = self.firing(lambda v: self.leak(v, total), state.v, state.wait)
        currents = tuple(
            decay(tau, self.leak.dt, self.dtype) * i + value_of(jump, self.dtype) * z
            for tau, jump, i in zip(
                self.tau_currents, self.jumps, state.currents, strict=True
            )
        )
        return z, GIFState(v, currents, wait)


def _check_pairs(tau_currents: Any, jumps: Any) -> None:
    for name, value in (("tau_currents", tau_currents), ("jumps", jumps)):
        if not isinstance(value, tuple | list):
            raise TypeError(
                f"{name} is {value!r}; expected a tuple, an entry for each current."
            )
    if len(tau_currents) != len(jumps):
        raise ValueError(
            f"tau_currents has {len(tau_currents)} entries and jumps {len(jumps)}; "
            "expected one of each for every current."
        )
