"""Cells whose state is an image: convolutions in place of matrix products."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._parameters import dtype_of
from ._arguments import DType, check_input, check_sizes


class ConvGRU(eqx.Module):
    r"""A GRU over a grid in one, two or three dimensions.

        z = σ(W_z * x + U_z * h + b_z),    r = σ(W_r * x + U_r * h + b_r)
        h̃ = tanh(W_h * x + b_h + r ⊙ (U_h * h + b_n))
        h = z ⊙ h + (1 - z) ⊙ h̃

    with * a convolution that keeps the size of the grid. As in `equinox.nn.GRUCell` the
    reset gate r acts behind U_h, not before it: so every weight reaches the state
    position by position, and is traced. The output is the state h, `[hidden_channels,
    *grid]`. Kernels are initialised as `equinox.nn.Conv` does, b is zero.

    **Arguments:**

    - `input_shape`: the shape of the input, `(channels, *grid)`: three numbers for an
        image.
    - `hidden_channels`: the number of neurons at each point of the grid.
    - `kernel_size`: the size of the kernels, a number or one per dimension of the grid.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Ballas, Yao, Pal & Courville, Delving deeper into convolutional networks for
        learning video representations, ICLR 2016.
    """

    conv_ih: eqx.nn.Conv
    conv_hh: eqx.nn.Conv
    bias_n: Float[Array, "hidden *ones"]
    input_shape: tuple[int, ...] = eqx.field(static=True)
    hidden_channels: int = eqx.field(static=True)

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden_channels: int,
        kernel_size: int | Sequence[int],
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        sizes = _kernel_size(input_shape, hidden_channels, kernel_size)
        self.input_shape, self.hidden_channels = tuple(input_shape), hidden_channels
        self.conv_ih, self.conv_hh = _convolutions(
            self.input_shape, hidden_channels, 3, sizes, dtype_of(dtype), key
        )
        self.bias_n = jnp.zeros((hidden_channels, *(1 for _ in sizes)), dtype_of(dtype))

    def init_state(self) -> Float[Array, "hidden *grid"]:
        shape = (self.hidden_channels, *self.input_shape[1:])
        return jnp.zeros(shape, self.bias_n.dtype)

    def __call__(
        self, state: Float[Array, "hidden *grid"], x: Float[Array, "inputs *grid"]
    ) -> tuple[Float[Array, "hidden *grid"], Float[Array, "hidden *grid"]]:
        check_input(x, self.input_shape)
        x_reset, x_keep, x_new = jnp.split(self.conv_ih(x), 3)
        h_reset, h_keep, h_new = jnp.split(self.conv_hh(state), 3)
        reset = jax.nn.sigmoid(x_reset + h_reset)
        keep = jax.nn.sigmoid(x_keep + h_keep)
        new = jnp.tanh(x_new + reset * (h_new + self.bias_n))
        h = keep * state + (1 - keep) * new
        return h, h


class ConvLSTM(eqx.Module):
    r"""An LSTM over a grid in one, two or three dimensions.

        i, f, g, o = W * x + U * h + b
        c = σ(f) ⊙ c + σ(i) ⊙ tanh(g)
        h = σ(o) ⊙ tanh(c)

    with * a convolution that keeps the size of the grid. There are no peepholes. The
    state is `(h, c)`, the output h, `[hidden_channels, *grid]`. Kernels are initialised
    as `equinox.nn.Conv` does, b is zero, that of f one.

    **Arguments:**

    - `input_shape`: the shape of the input, `(channels, *grid)`: three numbers for an
        image.
    - `hidden_channels`: the number of neurons at each point of the grid.
    - `kernel_size`: the size of the kernels, a number or one per dimension of the grid.
    - `dtype`: of the parameters, JAX's default float by default.
    - `key`: a random key, for the initial weights.

    ??? cite "Reference"

        Shi, Chen, Wang, Yeung, Wong & Woo, Convolutional LSTM network: a machine
        learning approach for precipitation nowcasting, NeurIPS 2015. The forget gate's
        bias: Jozefowicz, Zaremba & Sutskever, ICML 2015.
    """

    conv_ih: eqx.nn.Conv
    conv_hh: eqx.nn.Conv
    input_shape: tuple[int, ...] = eqx.field(static=True)
    hidden_channels: int = eqx.field(static=True)

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden_channels: int,
        kernel_size: int | Sequence[int],
        dtype: DType = None,
        *,
        key: PRNGKeyArray,
    ):
        sizes = _kernel_size(input_shape, hidden_channels, kernel_size)
        self.input_shape, self.hidden_channels = tuple(input_shape), hidden_channels
        conv, self.conv_hh = _convolutions(
            self.input_shape, hidden_channels, 4, sizes, dtype_of(dtype), key
        )
        forget = slice(hidden_channels, 2 * hidden_channels)
        self.conv_ih = eqx.tree_at(
            lambda conv: conv.bias, conv, replace_fn=lambda bias: bias.at[forget].set(1)
        )

    def init_state(
        self,
    ) -> tuple[Float[Array, "hidden *grid"], Float[Array, "hidden *grid"]]:
        shape = (self.hidden_channels, *self.input_shape[1:])
        zeros = jnp.zeros(shape, self.conv_ih.weight.dtype)
        return zeros, zeros

    def __call__(
        self,
        state: tuple[Float[Array, "hidden *grid"], Float[Array, "hidden *grid"]],
        x: Float[Array, "inputs *grid"],
    ) -> tuple[
        Float[Array, "hidden *grid"],
        tuple[Float[Array, "hidden *grid"], Float[Array, "hidden *grid"]],
    ]:
        check_input(x, self.input_shape)
        h, c = state
        write, forget, new, read = jnp.split(self.conv_ih(x) + self.conv_hh(h), 4)
        c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(write) * jnp.tanh(new)
        h = jax.nn.sigmoid(read) * jnp.tanh(c)
        return h, (h, c)


def _kernel_size(
    input_shape: Sequence[int], hidden_channels: int, kernel_size: int | Sequence[int]
) -> tuple[int, ...]:
    """The kernel's size in every dimension; raises unless all three fit together."""
    if not isinstance(input_shape, Sequence) or not 2 <= len(input_shape) <= 4:
        raise ValueError(
            f"input_shape is {input_shape!r}; expected (channels, *grid), with one "
            "to three dimensions of a grid, such as (3, 32, 32) for an image."
        )
    for number in input_shape:
        check_sizes(input_shape=number)
    check_sizes(hidden_channels=hidden_channels)
    dimensions = len(input_shape) - 1
    whole = (kernel_size,) * dimensions if isinstance(kernel_size, int) else kernel_size
    for number in whole:
        check_sizes(kernel_size=number)
    if len(whole) != dimensions:
        raise ValueError(
            f"kernel_size is {kernel_size}; expected a number, or one for each of the "
            f"{dimensions} dimensions of the grid in input_shape {tuple(input_shape)}."
        )
    return tuple(whole)


def _convolutions(
    input_shape: tuple[int, ...],
    hidden: int,
    gates: int,
    kernel_size: tuple[int, ...],
    dtype: jnp.dtype,
    key: PRNGKeyArray,
) -> tuple[eqx.nn.Conv, eqx.nn.Conv]:
    """From the input and from the state to all gates; the first with a bias of zero."""

    def conv(channels: int, use_bias: bool, key: PRNGKeyArray) -> eqx.nn.Conv:
        return eqx.nn.Conv(
            len(kernel_size),
            channels,
            gates * hidden,
            kernel_size,
            padding="SAME",
            use_bias=use_bias,
            dtype=dtype,
            key=key,
        )

    k1, k2 = jax.random.split(key)
    first = conv(input_shape[0], True, k1)
    first = eqx.tree_at(lambda conv: conv.bias, first, replace_fn=jnp.zeros_like)
    return first, conv(hidden, False, k2)
