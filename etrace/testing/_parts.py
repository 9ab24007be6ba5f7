"""What the test models are made of: weight expressions, projections, decays, a spike, a
norm."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._marks import mixing_input, product_site, site

Random = Callable[..., Float[Array, "..."]]

EXPRESSIONS = (
    "plain",
    "mask",
    "select",
    "scale",
    "softplus",
    "transposed",
    "lowrank",
    "normalised",
)
DENSE_FORMS = ("wx", "xw", "einsum", "vecmat")
FORMS = (*DENSE_FORMS, "factored", "conv1d", "conv2d", "embed", "elementwise")


def normal_arrays(seed: int, dtype: Any) -> Random:
    """A source of normally distributed arrays: `random(shape, scale=1, shift=0)`; drawn
    without compiling."""
    generator = np.random.default_rng(seed)

    def random(shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> Array:
        return jnp.asarray(shift + scale * generator.normal(size=shape), dtype)

    return random


class Weight(eqx.Module):
    """A weight as an expression of parameters and constants: `weight()` is an array of
    `shape`."""

    parts: tuple[Float[Array, "..."], ...]
    mask: Bool[Array, "..."] | None
    shape: tuple[int, ...] = eqx.field(static=True)
    expression: str = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, ...], expression: str, scale: float, random: Random
    ) -> None:
        first, rest = shape[0], math.prod(shape[1:])
        per_row = (first,) + (1,) * (len(shape) - 1)
        self.shape, self.expression, self.mask = shape, expression, None
        if (
            expression == "softplus"
        ):  # softplus of N(-1, 1) has mean 0.4 and is positive
            self.parts = (random(shape, shift=-1.0),)
        elif expression == "transposed":
            self.parts = (random(shape[::-1], scale),)
        elif expression == "lowrank":
            self.parts = (
                random((first, 2), math.sqrt(scale / 1.4)),
                random((2, rest), math.sqrt(scale / 1.4)),
            )
        elif expression in ("scale", "normalised"):
            self.parts = (random(shape, scale), random(per_row, 0.2, shift=1.0))
        elif expression in ("plain", "mask", "select"):
            self.parts = (random(shape, scale),)
        else:
            raise ValueError(
                f"expression must be one of {EXPRESSIONS}, got {expression!r}."
            )
        if expression in ("mask", "select"):
            index = np.add.outer(np.arange(first), np.arange(rest)).reshape(shape)
            self.mask = jnp.asarray(index % 3 != 1)

    def __call__(self) -> Float[Array, "..."]:
        first = self.parts[0]
        if self.mask is not None and self.expression == "mask":
            return first * self.mask.astype(first.dtype)
        if self.mask is not None:
            return jnp.where(self.mask, first, 0)
        if self.expression == "scale":
            return first * self.parts[1]
        if self.expression == "normalised":
            axes = tuple(range(1, len(self.shape)))
            norm = jnp.sqrt(jnp.sum(first**2, axis=axes, keepdims=True) + 0.01)
            return self.parts[1] * first / norm
        if self.expression == "softplus":
            return jax.nn.softplus(first)
        if self.expression == "transposed":
            return first.T
        if self.expression == "lowrank":
            return (first @ self.parts[1]).reshape(self.shape)
        return first


def scaled(weight: Array, x: Array) -> Array:
    """weight * x, marked as a site."""
    return site(jnp.multiply, weight, x, elementwise=True)


def shifted(weight: Array, x: Array) -> Array:
    """weight + x, marked as a site."""
    return site(jnp.add, weight, x, elementwise=True)


def _dense(form: str, weight: Array, x: Array) -> Array:
    if form == "xw":
        return x @ weight
    if form == "vecmat":
        return (x[None] @ weight)[0]
    if form == "einsum":
        return jnp.einsum("oi,i->o", weight, x)
    return weight @ x


class Projection(eqx.Module):
    """Data to pre-activations: one operation with a weight, then a gain and a bias per
    channel, if any.

    `projection(x, feeds)` takes data of `in_shape` to `[channels, *space]`. Its mixing
    operation is marked with `feeds`.
    """

    weight: Weight
    inner: Weight | None  # only "factored": weight @ (inner @ x)
    gain: Float[Array, "..."] | None
    bias: Float[Array, "..."] | None
    form: str = eqx.field(static=True)
    in_shape: tuple[int, ...] = eqx.field(static=True)
    out_shape: tuple[int, ...] = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        form: str,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        random: Random,
        *,
        expression: str = "plain",
        scale: float = 1.0,
        gain: bool = False,
        bias: bool = False,
        padding: str = "SAME",
        stride: int = 1,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {form!r}.")
        fan_in, fan_out = math.prod(in_shape), math.prod(out_shape)
        self.form, self.in_shape, self.out_shape = form, in_shape, out_shape
        self.padding, self.stride, self.inner = padding, stride, None
        if form in ("conv1d", "conv2d"):
            kernel = (3,) if form == "conv1d" else (2, 2)
            shape, fan_in = (
                (out_shape[0], in_shape[0], *kernel),
                in_shape[0] * math.prod(kernel),
            )
        elif form == "embed":
            shape, fan_in = (*in_shape, fan_out), 1
        elif form == "elementwise":
            shape, fan_in = (out_shape[0] // in_shape[0], *in_shape), 1
        elif form == "factored":
            shape = (fan_out, 2)
            self.inner = Weight((2, fan_in), "plain", 1 / math.sqrt(fan_in), random)
            fan_in = 2
        else:
            shape = (fan_in, fan_out) if form in ("xw", "vecmat") else (fan_out, fan_in)
        self.weight = Weight(shape, expression, scale / math.sqrt(fan_in), random)
        per_channel = (out_shape[0],) + (1,) * (len(out_shape) - 1)
        self.gain = random(per_channel, 0.2, shift=1.0) if gain else None
        self.bias = random(per_channel, 0.2, shift=0.1) if bias else None

    def __call__(self, x: Array, feeds: Iterable[int]) -> Float[Array, "..."]:
        weight = self.weight()
        if self.form == "embed":
            z = site(lambda w, x: w[x], weight, x)
        elif self.form == "elementwise":  # nothing mixes: no mark
            z = scaled(weight, x[None])
        elif self.form in ("conv1d", "conv2d"):
            z = site(self._convolution, weight, mixing_input(x, feeds))
        else:
            x = mixing_input(x.reshape(-1), feeds)
            if self.inner is not None:
                z = product_site(weight, self.inner(), x)
            else:
                z = site(functools.partial(_dense, self.form), weight, x)
        z = z.reshape(self.out_shape)
        z = z if self.gain is None else scaled(self.gain, z)
        return z if self.bias is None else shifted(self.bias, z)

    def _convolution(self, weight: Array, x: Array) -> Array:
        strides = (self.stride,) * (x.ndim - 1)
        return jax.lax.conv_general_dilated(x[None], weight, strides, self.padding)[0]


class Decay(eqx.Module):
    """A trainable decay in (0, 1): one number for all neurons, or one a channel
    `[channels, 1, ...]`."""

    raw: Float[Array, "..."]
    form: str = eqx.field(static=True)

    def __init__(
        self, form: str, shape: tuple[int, ...], shared: bool, random: Random
    ) -> None:
        if form not in DECAYS:
            raise ValueError(f"decay must be one of {tuple(DECAYS)}, got {form!r}.")
        per_channel = (shape[0],) + (1,) * (len(shape) - 1)
        self.raw = random(() if shared else per_channel, 0.5, shift=DECAYS[form][1])
        self.form = form

    def __call__(self) -> Float[Array, "..."]:
        return DECAYS[self.form][0](self.raw)


#: Parametrisation, and the raw value that gives a decay of about 0.8.
DECAYS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "sigmoid": (jax.nn.sigmoid, 1.4),
    "exp": (lambda raw: jnp.exp(-jnp.exp(raw)), -1.5),
    "softplus": (lambda raw: jnp.exp(-jax.nn.softplus(raw)), -1.4),
}


@jax.custom_jvp
def spike(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 where `x` is positive, else 0; the derivative is that of a wide fast sigmoid, 1
    / (1 + 2|x|)²."""
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _spike_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return spike(x), dx / (1 + 2 * jnp.abs(x)) ** 2


def layer_norm(z: Float[Array, "..."], feeds: Iterable[int]) -> Float[Array, "..."]:
    """Zero mean and unit variance over all elements, no parameters.

    The marks sit on the reductions, not on `z` itself: what flows around the reductions
    stays local.
    """
    marked = mixing_input(z, feeds)
    centred = z - jnp.mean(marked)
    variance = jnp.mean(mixing_input(centred, feeds) ** 2)
    return centred / jnp.sqrt(variance + 0.1)
