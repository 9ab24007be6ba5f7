"""Spikes, and what stands in for their derivative."""

import abc
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._parameters import number


class AbstractSurrogate(eqx.Module):
    """A spike: 1 where its argument is positive and 0 elsewhere, differentiated by a
    surrogate.

    `spike(v)` takes the distance of the membrane from the threshold, of any shape and
    floating-point dtype, and returns zeros and ones of the same. Forward and reverse
    mode use its method `derivative` in place of the true derivative. To make a
    surrogate of your own, subclass this and define `derivative`, element by element.
    """

    @abc.abstractmethod
    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """What is used as the derivative of the spike at `v`."""

    def __call__(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _spike(self, v)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spike(surrogate: AbstractSurrogate, v: Array) -> Array:
    return (v > 0).astype(v.dtype)


@_spike.defjvp
def _spike_jvp(
    surrogate: AbstractSurrogate, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (v,), (dv,) = primals, tangents
    return _spike(surrogate, v), surrogate.derivative(v) * dv


class Triangle(AbstractSurrogate):
    r"""A triangle, the derivative of a piecewise quadratic function:
    $\gamma \max(0, 1 - |v| / w)$. No gradient farther than $w$ from the threshold.

    **Arguments:**

    - `gamma`: the height $\gamma$. Below 1, it dampens what flows back through many
        steps.
    - `width`: half the width $w$ at the base, in the unit of $v$.

    ??? cite "Reference"

        Bellec et al., Long short-term memory and learning-to-learn in networks of
        spiking neurons, NeurIPS (2018), with `gamma` 0.3; Esser et al., PNAS 113:11441
        (2016).
    """

    gamma: float = eqx.field(static=True)
    width: float = eqx.field(static=True)

    def __init__(self, gamma: float = 0.3, width: float = 1.0):
        self.gamma = number("gamma", gamma)
        self.width = number("width", width)

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.gamma * jax.nn.relu(1 - jnp.abs(v) / self.width)


class Sigmoid(AbstractSurrogate):
    r"""The derivative of a steep sigmoid: $\alpha\, \sigma(\alpha v)\,
    (1 - \sigma(\alpha v))$, with $\sigma(u) = 1 / (1 + e^{-u})$.

    **Arguments:**

    - `alpha`: the slope $\alpha$, in units of $1/v$. The height is $\alpha / 4$.

    ??? cite "Reference"

        Zenke and Vogels, The remarkable robustness of surrogate gradient learning,
        Neural Computation 33:899 (2021).
    """

    alpha: float = eqx.field(static=True)

    def __init__(self, alpha: float = 4.0):
        self.alpha = number("alpha", alpha)

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        u = self.alpha * v
        # σ(-u) is 1 - σ(u), without the cancellation that would cost the tail.
        return self.alpha * jax.nn.sigmoid(u) * jax.nn.sigmoid(-u)


class FastSigmoid(AbstractSurrogate):
    r"""SuperSpike, the derivative of a fast sigmoid: $1 / (1 + \alpha |v|)^2$.

    **Arguments:**

    - `alpha`: the slope $\alpha$, in units of $1/v$. The height is 1.

    ??? cite "Reference"

        Zenke and Ganguli, SuperSpike: supervised learning in multilayer spiking neural
        networks, Neural Computation 30:1514 (2018).
    """

    alpha: float = eqx.field(static=True)

    def __init__(self, alpha: float = 10.0):
        self.alpha = number("alpha", alpha)

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 1 / jnp.square(1 + self.alpha * jnp.abs(v))


class Arctan(AbstractSurrogate):
    r"""The derivative of an arctangent: $\frac{\alpha}{2} \big/ \bigl(1 +
    (\tfrac{\pi}{2} \alpha v)^2\bigr)$.

    **Arguments:**

    - `alpha`: the slope $\alpha$, in units of $1/v$. The height is $\alpha / 2$.

    ??? cite "Reference"

        Fang et al., Incorporating learnable membrane time constant to enhance learning
        of spiking neural networks, ICCV (2021).
    """

    alpha: float = eqx.field(static=True)

    def __init__(self, alpha: float = 2.0):
        self.alpha = number("alpha", alpha)

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.alpha / 2 / (1 + jnp.square(math.pi / 2 * self.alpha * v))


class Gaussian(AbstractSurrogate):
    r"""A Gaussian density:
    $\mathcal N(v;\, 0, \sigma^2) = e^{-v^2 / 2 \sigma^2} / (\sigma \sqrt{2 \pi})$.

    **Arguments:**

    - `sigma`: the standard deviation $\sigma$, in the unit of $v$.

    ??? cite "Reference"

        Yin, Corradi and Bohté, Effective and efficient computation with multiple-
        timescale spiking recurrent neural networks, ICONS (2020).
    """

    sigma: float = eqx.field(static=True)

    def __init__(self, sigma: float = 0.5):
        self.sigma = number("sigma", sigma)

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _normal(v, 0.0, self.sigma)


class MultiGaussian(AbstractSurrogate):
    r"""A Gaussian with shallow negative flanks:

    $$(1 + h)\, \mathcal N(v; 0, \sigma^2) - h\, \mathcal N(v; \sigma, (s \sigma)^2) -
    h\, \mathcal N(v; -\sigma, (s \sigma)^2).$$

    **Arguments:**

    - `sigma`: the standard deviation $\sigma$ in the middle, in the unit of $v$.
    - `height`: the weight $h$ of the flanks.
    - `spread`: how much wider than the middle the flanks are, $s$.

    ??? cite "Reference"

        Yin, Corradi and Bohté, Accurate and efficient time-domain classification with
        adaptive spiking recurrent neural networks, Nature Machine Intelligence 3:905
        (2021).
    """

    sigma: float = eqx.field(static=True)
    height: float = eqx.field(static=True)
    spread: float = eqx.field(static=True)

    def __init__(self, sigma: float = 0.5, height: float = 0.15, spread: float = 6.0):
        self.sigma = number("sigma", sigma)
        self.height = number("height", height)
        self.spread = number("spread", spread)

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        wide = self.spread * self.sigma
        flanks = _normal(v, self.sigma, wide) + _normal(v, -self.sigma, wide)
        return (1 + self.height) * _normal(v, 0.0, self.sigma) - self.height * flanks


class Slayer(AbstractSurrogate):
    r"""SLAYER's exponential, the density of a spike's escape over the threshold:
    $\alpha\, e^{-\beta |v|}$.

    **Arguments:**

    - `alpha`: the height $\alpha$.
    - `beta`: how fast it falls off, $\beta$, in units of $1/v$.

    ??? cite "Reference"

        Shrestha and Orchard, SLAYER: spike layer error reassignment in time, NeurIPS
        (2018).
    """

    alpha: float = eqx.field(static=True)
    beta: float = eqx.field(static=True)

    def __init__(self, alpha: float = 1.0, beta: float = 5.0):
        self.alpha = number("alpha", alpha)
        self.beta = number("beta", beta)

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.alpha * jnp.exp(-self.beta * jnp.abs(v))


class StraightThrough(AbstractSurrogate):
    r"""The straight-through estimator: $1$ everywhere, as if the spike were $v$.

    ??? cite "Reference"

        Bengio, Léonard and Courville, Estimating or propagating gradients through
        stochastic neurons for conditional computation, arXiv:1308.3432 (2013).
    """

    def derivative(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.ones_like(v)


def _normal(v: Array, mean: float, sigma: float) -> Array:
    """The density of a normal distribution."""
    scale = 1 / (sigma * math.sqrt(2 * math.pi))
    return scale * jnp.exp(-0.5 * jnp.square((v - mean) / sigma))
