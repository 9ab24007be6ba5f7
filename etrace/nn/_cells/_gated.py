"""Cells with gates: MGU, minGRU, minLSTM, eLSTM."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._parameters import dtype_of
from ._arguments import (
    DType,
    check_input,
    check_sizes,
    input_weight,
    recurrent_weight,
)


class MGU(eqx.Module):
    r"""The minimal gated unit: a GRU with one gate.

        f = σ(W_f x + U_f h + b_f)
        h̃ = tanh(W_h x + b_h + f ⊙ (U_h h))
        h = (1 - f) ⊙ h + f ⊙ h̃

    The gate acts behind U_h, as in `equinox.nn.GRUCell`, not before it as in the paper
    (U_h (f ⊙ h)): so every weight reaches the state position by position, and is
    traced. The output is the state h, `[hidden_size]`. W is normal with variance
    1 / `input_size`, U orthogonal, b zero.

    **Arguments:**

    - `input_size`: the length of the input.
    - `hidden_size`: the number of neurons.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Zhou, Wu, Zhang & Zhou, Minimal gated unit for recurrent neural networks, Int.
        J. Autom. Comput. 13 (2016).
    """

    weight_ih: Float[Array, "2*hidden inputs"]
    weight_hh: Float[Array, "2*hidden hidden"]
    bias: Float[Array, " 2*hidden"]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        dtype, (k1, k2) = dtype_of(dtype), jax.random.split(key)
        self.weight_ih = input_weight(k1, 2 * hidden_size, input_size, dtype)
        self.weight_hh = recurrent_weight(k2, 2, hidden_size, dtype)
        self.bias = jnp.zeros(2 * hidden_size, dtype)
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Float[Array, " hidden"]:
        return jnp.zeros(self.hidden_size, self.bias.dtype)

    def __call__(
        self, state: Float[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        x_gate, x_new = jnp.split(self.weight_ih @ x + self.bias, 2)
        h_gate, h_new = jnp.split(self.weight_hh @ state, 2)
        gate = jax.nn.sigmoid(x_gate + h_gate)
        h = (1 - gate) * state + gate * jnp.tanh(x_new + gate * h_new)
        return h, h


class MinGRU(eqx.Module):
    r"""The minGRU: a GRU whose gate and candidate do not look at the state.

        z = σ(W_z x + b_z)
        h = (1 - z) ⊙ h + z ⊙ (W_h x + b_h)

    The output is the state h, `[hidden_size]`. W is normal with variance
    1 / `input_size`, b zero. The recurrence is position-local.

    **Arguments:**

    - `input_size`: the length of the input.
    - `hidden_size`: the number of neurons.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, Were RNNs all we needed?,
        arXiv:2410.01201 (2024).
    """

    weight_ih: Float[Array, "2*hidden inputs"]
    bias: Float[Array, " 2*hidden"]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        dtype = dtype_of(dtype)
        self.weight_ih = input_weight(key, 2 * hidden_size, input_size, dtype)
        self.bias = jnp.zeros(2 * hidden_size, dtype)
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Float[Array, " hidden"]:
        return jnp.zeros(self.hidden_size, self.bias.dtype)

    def __call__(
        self, state: Float[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        gate, new = jnp.split(self.weight_ih @ x + self.bias, 2)
        gate = jax.nn.sigmoid(gate)
        h = (1 - gate) * state + gate * new
        return h, h


class MinLSTM(eqx.Module):
    r"""The minLSTM: an LSTM whose gates do not look at the state, and add up to one.

        f = σ(W_f x + b_f),    i = σ(W_i x + b_i)
        h = (f ⊙ h + i ⊙ (W_h x + b_h)) / (f + i)

    The output is the state h, `[hidden_size]`. W is normal with variance
    1 / `input_size`, b zero. The recurrence is position-local.

    **Arguments:**

    - `input_size`: the length of the input.
    - `hidden_size`: the number of neurons.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Feng, Tung, Ahmed, Bengio & Hajimirsadeghi, Were RNNs all we needed?,
        arXiv:2410.01201 (2024).
    """

    weight_ih: Float[Array, "3*hidden inputs"]
    bias: Float[Array, " 3*hidden"]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        dtype = dtype_of(dtype)
        self.weight_ih = input_weight(key, 3 * hidden_size, input_size, dtype)
        self.bias = jnp.zeros(3 * hidden_size, dtype)
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Float[Array, " hidden"]:
        return jnp.zeros(self.hidden_size, self.bias.dtype)

    def __call__(
        self, state: Float[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        forget, write, new = jnp.split(self.weight_ih @ x + self.bias, 3)
        # f / (f + i) by the difference of logarithms: far from zero both would vanish.
        keep = jax.nn.sigmoid(jax.nn.log_sigmoid(forget) - jax.nn.log_sigmoid(write))
        h = keep * state + (1 - keep) * new
        return h, h


class ELSTM(eqx.Module):
    r"""The eLSTM: an LSTM with elementwise recurrence, made for real-time recurrent
    learning.

        f = σ(W_f x + u_f ⊙ c + b_f)
        c = f ⊙ c + (1 - f) ⊙ tanh(W_z x + u_z ⊙ c + b_z)
        y = σ(W_o x + U_o c + b_o) ⊙ c

    The state is c, the output y, `[hidden_size]` both. W is normal with variance
    1 / `input_size`, U_o orthogonal, u uniform in ±1 / √`hidden_size`, b zero. The
    recurrence is position-local.

    **Arguments:**

    - `input_size`: the length of the input.
    - `hidden_size`: the number of neurons.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Irie, Gopalakrishnan & Schmidhuber, Exploring the promise and limits of
        real-time recurrent learning, ICLR 2024.
    """

    weight_ih: Float[Array, "2*hidden inputs"]
    weight_hh: Float[Array, " 2*hidden"]
    bias: Float[Array, " 2*hidden"]
    # The output gate stands apart: it reaches no state, and needs no trace.
    weight_io: Float[Array, "hidden inputs"]
    weight_ho: Float[Array, "hidden hidden"]
    bias_o: Float[Array, " hidden"]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        dtype, (k1, k2, k3, k4) = dtype_of(dtype), jax.random.split(key, 4)
        bound = hidden_size**-0.5
        self.weight_ih = input_weight(k1, 2 * hidden_size, input_size, dtype)
        self.weight_hh = jax.random.uniform(
            k2, (2 * hidden_size,), dtype, -bound, bound
        )
        self.bias = jnp.zeros(2 * hidden_size, dtype)
        self.weight_io = input_weight(k3, hidden_size, input_size, dtype)
        self.weight_ho = recurrent_weight(k4, 1, hidden_size, dtype)
        self.bias_o = jnp.zeros(hidden_size, dtype)
        self.input_size, self.hidden_size = input_size, hidden_size

    def init_state(self) -> Float[Array, " hidden"]:
        return jnp.zeros(self.hidden_size, self.bias.dtype)

    def __call__(
        self, state: Float[Array, " hidden"], x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, " hidden"], Float[Array, " hidden"]]:
        check_input(x, (self.input_size,))
        recurrent = self.weight_hh * jnp.concatenate([state, state])
        forget, new = jnp.split(self.weight_ih @ x + recurrent + self.bias, 2)
        forget = jax.nn.sigmoid(forget)
        c = forget * state + (1 - forget) * jnp.tanh(new)
        gate = jax.nn.sigmoid(self.weight_io @ x + self.weight_ho @ c + self.bias_o)
        return gate * c, c
