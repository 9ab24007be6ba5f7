"""Resistances and input weights, one a neuron."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ..nn._parameters import (
    Quantity,
    Real,
    Size,
    check_input,
    dtype_of,
    real,
    shape_of,
    value_of,
)
from ..nn._synapses import AbstractSynapse


class Scale(AbstractSynapse):
    r"""Scales the input of each neuron, $y_t = s\, (x_t + b)$. It has no state.

    It is a layer of [`etrace.nn.RNN`][], NIR's `Scale`, and a synapse of
    [`etrace.nn.Synaptic`][]: there it stands for a resistance, an input weight, and the
    bias of recurrent weights.

    **Arguments:**

    - `size`, `dtype`, and constants or parameters, as for [`etrace.nn.LIF`][].
    - `scale`: $s$, one number or one for each neuron.
    - `bias`: $b$, likewise; none by default.
    """

    scale: Real
    bias: Real | None
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: Size,
        scale: Quantity,
        bias: Quantity | None = None,
        *,
        dtype: Any = None,
    ):
        self.shape, self.dtype = shape_of(size), dtype_of(dtype)
        self.scale = real("scale", scale, self.shape, self.dtype)
        self.bias = bias if bias is None else real("bias", bias, self.shape, self.dtype)

    def init_state(self) -> tuple[()]:
        return ()

    def __call__(
        self,
        state: tuple[()],
        x: Float[Array, "*shape"],
        v: Float[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape"], tuple[()]]:
        check_input(x, self.shape, self)
        if self.bias is not None:
            x = x + value_of(self.bias, self.dtype)
        return value_of(self.scale, self.dtype) * x, state
