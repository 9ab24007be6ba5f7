"""Linear state-space layers with a diagonal, complex state."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from .._parameters import dtype_of
from ._arguments import DType, check_input, check_sizes


class LRU(eqx.Module):
    r"""The linear recurrent unit.

        h = λ ⊙ h + exp(γ) ⊙ (B x),    λ = exp(-exp(ν) + i exp(θ))
        y = Re(C h) + D ⊙ x

    The state h is complex, `[hidden_size]`, the output y real, `[input_size]`. λ starts
    evenly distributed over a ring of the unit disc, exp(γ) as √(1 - |λ|²), so that
    white noise gives every h the same variance. B, C and D are normal: both parts of B
    with variance 1 / (2 `input_size`), both of C with 1 / `hidden_size`, D with one.
    The recurrence is position-local.

    ν, θ, γ are the parameters `nu_log`, `theta_log`, `gamma_log`; B and C are stored as
    their real and imaginary parts, `B_re`, `B_im`, `C_re`, `C_im`.

    **Arguments:**

    - `input_size`: the length of input and output.
    - `hidden_size`: the number of complex numbers in the state.
    - `r_min`, `r_max`: the smallest and the largest |λ| at the start. Long memory needs
        |λ| near one.
    - `max_phase`: the largest angle of λ at the start.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu & De, Resurrecting recurrent
        neural networks for long sequences, ICML 2023. Learned online: Zucchet, Meier,
        Schug, Mujika & Sacramento, Online learning of long-range dependencies, NeurIPS
        2023.
    """

    nu_log: Float[Array, " hidden"]
    theta_log: Float[Array, " hidden"]
    gamma_log: Float[Array, " hidden"]
    B_re: Float[Array, "hidden inputs"]
    B_im: Float[Array, "hidden inputs"]
    C_re: Float[Array, "inputs hidden"]
    C_im: Float[Array, "inputs hidden"]
    D: Float[Array, " inputs"]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        _check_ring(r_min, r_max, max_phase)
        dtype, keys = dtype_of(dtype), jax.random.split(key, 7)
        # The squared radius of a point drawn evenly from a ring is uniform. Neither end
        # is drawn: there ν or θ would be infinite.
        smallest = float(jnp.finfo(dtype).eps)
        u1, u2 = (
            jax.random.uniform(k, (hidden_size,), dtype, smallest, 1 - smallest)
            for k in keys[:2]
        )
        squared_radius = r_min**2 + u1 * (r_max**2 - r_min**2)
        self.nu_log = jnp.log(-0.5 * jnp.log(squared_radius))
        self.theta_log = jnp.log(max_phase * u2)
        self.gamma_log = 0.5 * jnp.log1p(-squared_radius)

        def normal(k: PRNGKeyArray, shape: tuple[int, ...], variance: float) -> Array:
            return math.sqrt(variance) * jax.random.normal(k, shape, dtype)

        wide, tall = (hidden_size, input_size), (input_size, hidden_size)
        self.B_re, self.B_im = (normal(k, wide, 0.5 / input_size) for k in keys[2:4])
        self.C_re, self.C_im = (normal(k, tall, 1 / hidden_size) for k in keys[4:6])
        self.D = normal(keys[6], (input_size,), 1.0)
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Complex[Array, " hidden"]:
        return _complex_zeros((self.hidden_size,), self.D.dtype)

    def __call__(
        self, state: Complex[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " inputs"], Complex[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        decay = jnp.exp(jax.lax.complex(-jnp.exp(self.nu_log), jnp.exp(self.theta_log)))
        # Products of real matrices: a complex one would multiply x by zeros as well.
        drive = jax.lax.complex(self.B_re @ x, self.B_im @ x)
        h = decay * state + jnp.exp(self.gamma_log).astype(drive.dtype) * drive
        return self.C_re @ h.real - self.C_im @ h.imag + self.D * x, h


class S4D(eqx.Module):
    r"""The diagonal S4: a small linear state-space model for every channel.

    Channel x of the input drives `state_size` complex numbers h in continuous time,

        dh/dt = a ⊙ h + x,    a = -exp(ρ) + i ω
        y = 2 Re(c · h) + d x

    discretised with a step Δ of the channel's own, x held during the step:

        h = exp(Δ a) ⊙ h + (exp(Δ a) - 1) / a · x

    The state is `[size, state_size]`, the output `[size]`. a starts as -1/2 + iπn
    (S4D-Lin), Δ log-uniformly in [`dt_min`, `dt_max`], c normal, d normal. Channels do
    not mix: put a nonlinearity and a linear layer behind it. The recurrence is
    position-local, and a trace is as small as the state.

    ρ, ω and Δ are the parameters `A_re_log`, `A_im` and `dt_log`; c is stored as its
    real and imaginary part, `C_re`, `C_im`.

    **Arguments:**

    - `size`: the number of channels, of input and output.
    - `state_size`: the number of complex numbers in a channel's state.
    - `dt_min`, `dt_max`: the range of the first Δ. A channel remembers about 1 / Δ
        steps.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Gu, Gupta, Goel & Ré, On the parameterization and initialization of diagonal
        state space models, NeurIPS 2022.
    """

    A_re_log: Float[Array, "size state"]
    A_im: Float[Array, "size state"]
    dt_log: Float[Array, " size"]
    C_re: Float[Array, "size state"]
    C_im: Float[Array, "size state"]
    D: Float[Array, " size"]
    size: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        state_size: int = 32,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(size=size, state_size=state_size)
        if not 0 < dt_min <= dt_max:
            raise ValueError(
                f"dt_min is {dt_min} and dt_max {dt_max}; expected positive numbers, "
                "the first no larger than the second."
            )
        dtype, (k1, k2, k3, k4) = dtype_of(dtype), jax.random.split(key, 4)
        shape = (size, state_size)
        self.A_re_log = jnp.full(shape, math.log(0.5), dtype)
        frequencies = math.pi * jnp.arange(state_size, dtype=dtype)
        self.A_im = jnp.broadcast_to(frequencies, shape)
        low, high = math.log(dt_min), math.log(dt_max)
        self.dt_log = jax.random.uniform(k1, (size,), dtype, low, high)
        self.C_re = math.sqrt(0.5) * jax.random.normal(k2, shape, dtype)
        self.C_im = math.sqrt(0.5) * jax.random.normal(k3, shape, dtype)
        self.D = jax.random.normal(k4, (size,), dtype)
        self.size, self.state_size = size, state_size

    def init_state(self) -> Complex[Array, "size state"]:
        return _complex_zeros((self.size, self.state_size), self.D.dtype)

    def __call__(
        self, state: Complex[Array, "size state"], x: Float[Array, " size"]
    ) -> tuple[Float[Array, " size"], Complex[Array, "size state"]]:
        check_input(x, (self.size,))
        a = jax.lax.complex(-jnp.exp(self.A_re_log), self.A_im)
        step = jnp.exp(self.dt_log).astype(a.dtype)[:, None] * a
        h = jnp.exp(step) * state + jnp.expm1(step) / a * x.astype(a.dtype)[:, None]
        y = 2 * jnp.sum(self.C_re * h.real - self.C_im * h.imag, axis=1)
        return y + self.D * x, h


def _complex_zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> Complex[Array, "..."]:
    zeros = jnp.zeros(shape, dtype)
    return jax.lax.complex(zeros, zeros)


def _check_ring(r_min: float, r_max: float, max_phase: float) -> None:
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(
            f"r_min is {r_min} and r_max {r_max}; expected 0 <= r_min < r_max <= 1."
        )
    if not max_phase > 0:
        raise ValueError(f"max_phase is {max_phase}; expected a positive angle.")
