"""Cells without gates: vanilla, leaky, independently recurrent."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._parameters import PositiveReal, Quantity, decay, dtype_of, positive
from ._arguments import (
    DType,
    check_functions,
    check_input,
    check_sizes,
    input_weight,
    recurrent_weight,
)


class VanillaRNN(eqx.Module):
    r"""A fully recurrent layer.

        h = φ(W x + U h + b)

    The output is the state h, `[hidden_size]`. W is normal with variance
    1 / `input_size`, U orthogonal, b zero.

    **Arguments:**

    - `input_size`: the length of the input.
    - `hidden_size`: the number of neurons.
    - `activation`: φ, an elementwise function; tanh by default.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Elman, Finding structure in time, Cognitive Science 14 (1990). Orthogonal U:
        Henaff, Szlam & LeCun, ICML 2016.
    """

    weight_ih: Float[Array, "hidden inputs"]
    weight_hh: Float[Array, "hidden hidden"]
    bias: Float[Array, " hidden"]
    activation: Callable
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: Callable = jnp.tanh,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_functions(activation=activation)
        dtype, (k1, k2) = dtype_of(dtype), jax.random.split(key)
        self.weight_ih = input_weight(k1, hidden_size, input_size, dtype)
        self.weight_hh = recurrent_weight(k2, 1, hidden_size, dtype)
        self.bias = jnp.zeros(hidden_size, dtype)
        self.activation = activation
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Float[Array, " hidden"]:
        return jnp.zeros(self.hidden_size, self.bias.dtype)

    def __call__(
        self, state: Float[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        h = self.activation(self.weight_ih @ x + self.weight_hh @ state + self.bias)
        return h, h


class CTRNN(eqx.Module):
    r"""Leaky neurons in continuous time, each with its time constant τ.

        τ dh/dt = -h + φ(W x + U h + b)

    with the right-hand φ held during a step of length one, solved exactly:

        h = α h + (1 - α) φ(W x + U h + b),    α = exp(-1 / τ)

    The output is the state h, `[hidden_size]`. W is normal with variance
    1 / `input_size`, U orthogonal, b zero. Without U (`recurrent=False`) the neurons
    are leaky integrators, and the recurrence is position-local.

    **Arguments:**

    - `input_size`: the length of the input.
    - `hidden_size`: the number of neurons.
    - `activation`: φ, an elementwise function; tanh by default.
    - `tau`: the time constants in steps, one number or one per neuron. A JAX array is
        trained, through its logarithm; a number or a NumPy array stays as it is.
    - `recurrent`: whether neurons are connected by U.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Funahashi & Nakamura, Approximation of dynamical systems by continuous time
        recurrent neural networks, Neural Networks 6 (1993).
    """

    weight_ih: Float[Array, "hidden inputs"]
    weight_hh: Float[Array, "hidden hidden"] | None
    bias: Float[Array, " hidden"]
    tau: PositiveReal
    activation: Callable
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: Callable = jnp.tanh,
        tau: Quantity = 10.0,
        recurrent: bool = True,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_functions(activation=activation)
        dtype, (k1, k2) = dtype_of(dtype), jax.random.split(key)
        self.weight_ih = input_weight(k1, hidden_size, input_size, dtype)
        self.weight_hh = None
        if recurrent:
            self.weight_hh = recurrent_weight(k2, 1, hidden_size, dtype)
        self.bias = jnp.zeros(hidden_size, dtype)
        self.tau = positive("tau", tau, (hidden_size,), dtype)
        self.activation = activation
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Float[Array, " hidden"]:
        return jnp.zeros(self.hidden_size, self.bias.dtype)

    def __call__(
        self, state: Float[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        drive = self.weight_ih @ x + self.bias
        if self.weight_hh is not None:
            drive = drive + self.weight_hh @ state
        keep = decay(self.tau, 1.0, state.dtype)
        h = keep * state + (1 - keep) * self.activation(drive)
        return h, h


class IndRNN(eqx.Module):
    r"""Independently recurrent neurons: each reads its own past alone.

        h = φ(W x + u ⊙ h + b)

    The output is the state h, `[hidden_size]`. W is normal with variance
    1 / `input_size`, u uniform in [0, 1), b zero. The recurrence is position-local.

    **Arguments:**

    - `input_size`: the length of the input.
    - `hidden_size`: the number of neurons.
    - `activation`: φ, an elementwise function; the rectifier by default.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Li, Li, Cook, Zhu & Gao, Independently recurrent neural network (IndRNN):
        building a longer and deeper RNN, CVPR 2018.
    """

    weight_ih: Float[Array, "hidden inputs"]
    weight_hh: Float[Array, " hidden"]
    bias: Float[Array, " hidden"]
    activation: Callable
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: Callable = jax.nn.relu,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_functions(activation=activation)
        dtype, (k1, k2) = dtype_of(dtype), jax.random.split(key)
        self.weight_ih = input_weight(k1, hidden_size, input_size, dtype)
        self.weight_hh = jax.random.uniform(k2, (hidden_size,), dtype)
        self.bias = jnp.zeros(hidden_size, dtype)
        self.activation = activation
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Float[Array, " hidden"]:
        return jnp.zeros(self.hidden_size, self.bias.dtype)

    def __call__(
        self, state: Float[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        h = self.activation(self.weight_ih @ x + self.weight_hh * state + self.bias)
        return h, h
