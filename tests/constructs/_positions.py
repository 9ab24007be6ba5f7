"""States: their layouts, and what lies between them and the weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._construct import IN, Construct, N, leaky
from ._sites import conv, grid, image

W = {"w": (N, IN)}
BEHIND = "a mixing operation lies between"
PERMUTATION = np.array([2, 0, 3, 1])


def normed(u):
    return (u - u.mean()) / jnp.sqrt(u.var() + 1e-2)


def centred(w, x):
    products = w["w"] * x[None]
    return products - products.mean(axis=1, keepdims=True)


def filled(u):
    return u.at[np.array([2, 0, 9, 1])].get(mode="fill", fill_value=0.0)


def fused(w, h, x):
    """GRU-like gates, in the order of the split."""
    z, r, n = jnp.split(w["w"] @ x, 3)
    z = jax.nn.sigmoid(z)
    h = z * h + (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r) * w["b"])
    return h, h


def interleaved(w, h, x):
    """Two gates a neuron, side by side."""
    gates = (w["w"] @ x).reshape(N, 2)
    h = jax.nn.sigmoid(gates[:, 0]) * h + gates[:, 1]
    return h, h


def adaptive(w, state, x):
    v, a = state
    a = 0.9 * a + 0.1 * v
    v = 0.7 * v - 0.2 * a * w["g"] + w["w"] @ x
    return v, (v, a)


def packed(w, state, x):
    seen, state = adaptive(w, tuple(state), x)
    return seen, jnp.stack(state)


def written(w, state, x):
    """In reverse: the rows of an array, each set."""
    seen, (v, a) = adaptive(w, (state[1], state[0]), x)
    return seen, state.at[1].set(v).at[0].set(a)


def compartments(w, state, x):
    """A soma and three dendrites, coupled both ways."""
    soma, dendrites = state
    drive = (w["w"] @ x).reshape(N, 3)
    dendrites = 0.7 * dendrites + w["c"] * soma[:, None] + drive
    soma = 0.8 * soma + 0.2 * jnp.tanh(dendrites).sum(axis=1)
    return soma, (soma, dendrites)


def receptors(w, state, x):
    """A membrane, and two currents with decays of their own."""
    v, currents = state
    decays = jax.nn.sigmoid(w["d"])
    currents = currents * decays[None] + (w["w"] @ x).reshape(N, 2)
    v = 0.9 * v + currents[:, 0] - currents[:, 1] * v
    return v, (v, currents)


def linear_memory(w, h, x):
    """d numbers a neuron, mixed by a matrix of its own."""
    h = jnp.einsum("nij,nj->ni", w["m"], h) + (w["w"] @ x).reshape(N, 3)
    return h, h


def shared_memory(w, h, x):
    h = h @ w["m"] + (w["w"] @ x).reshape(N, 3)
    return h, h


def delay_line(w, state, x):
    v, line = state
    v = 0.6 * v + w["w"] @ x + 0.3 * line[-1]
    return v, (v, jnp.concatenate([v[None], line[:-1]]))


def ring_buffer(w, state, x):
    v, line, at = state
    v = 0.6 * v + w["w"] @ x + 0.3 * line[at]
    return v, (v, line.at[at].set(v), (at + 1) % 3)


def populations(w, state, x):
    """Of different sizes; the small one reads the large one's state before."""
    large, small = state
    new = 0.8 * large + w["w"] @ x
    return new, (new, 0.5 * small + w["v"] @ x)


def synapse(w, state, x):
    """The membrane reads the new value of its synapse."""
    current, v = state
    current = jax.nn.sigmoid(w["d"]) * current + w["w"] @ x
    v = jax.nn.sigmoid(w["e"]) * v + current
    return v, (current, v)


def spikes(w, v, x):
    """The output reads the membrane before its reset."""
    v = 0.9 * v + w["w"] @ x
    spike = jax.nn.sigmoid(4 * (v - 0.5))
    return spike, v - spike * w["t"]


def channels_last(w, h, x):
    h = 0.9 * h + conv(image(x), w["w"]).T
    return h, h


def rotating(w, z, x):
    """A complex diagonal recurrence with complex input weights."""
    z = jnp.exp(lax.complex(-jnp.exp(w["nu"]), w["theta"])) * z
    z = z + lax.complex(w["re"], w["im"]) @ x.astype(z.dtype)
    return [z.real, z.imag], z


def complex_start():
    return jax.lax.complex(jnp.zeros(N), jnp.zeros(N))


def tail(function, **options):
    return leaky(lambda w, h, x: function(w["w"] @ x), W, **options)


POSITIONS = {
    "roll behind the weight": tail(lambda u: jnp.roll(u, 1)),
    "permutation behind the weight": tail(lambda u: u[PERMUTATION]),
    "out-of-bounds indices": tail(filled),
    "padding": tail(lambda u: jnp.pad(u[1:], (0, 1))),
    "split, reversed and joined": tail(
        lambda u: jnp.concatenate(jnp.split(u, 2)[::-1])
    ),
    "largest input of a neuron": leaky(
        lambda w, h, x: (w["w"] * x[None]).max(axis=1), W
    ),
    "largest of the centred inputs of a neuron": leaky(
        lambda w, h, x: centred(w, x).max(axis=1),
        W,
        # XLA's own derivative of this maximum may be wrong.
        same_as=lambda w, h, x: jnp.sort(centred(w, x), axis=1)[:, -1],
    ),
    "LayerNorm behind the weight": tail(normed, now={"w": BEHIND}),
    "softmax behind the weight": tail(jax.nn.softmax, now={"w": BEHIND}),
    "constant matrix behind the weight": tail(
        lambda u: jnp.ones((N, N)) @ u, now={"w": BEHIND}
    ),
    "cumulative sum behind the weight": tail(jnp.cumsum, now={"w": BEHIND}),
    "fused gates, split": Construct(fused, {"w": (3 * N, IN), "b": (N,)}),
    "fused gates, interleaved": Construct(interleaved, {"w": (2 * N, IN)}),
    "two numbers a neuron": Construct(
        adaptive, {**W, "g": (N,)}, lambda: (jnp.zeros(N), jnp.zeros(N))
    ),
    "two numbers in one array": Construct(packed, {**W, "g": (N,)}, grid(2, N)),
    "two numbers, each set in one array": Construct(
        written, {**W, "g": (N,)}, grid(2, N)
    ),
    "compartments": Construct(
        compartments,
        {"w": (3 * N, IN), "c": (N, 3)},
        lambda: (jnp.zeros(N), jnp.zeros((N, 3))),
    ),
    "receptors": Construct(
        receptors,
        {"w": (2 * N, IN), "d": (2,)},
        lambda: (jnp.zeros(N), jnp.zeros((N, 2))),
    ),
    "memory with a matrix for each neuron": Construct(
        linear_memory, {"w": (3 * N, IN), "m": (N, 3, 3)}, grid(N, 3)
    ),
    "memory with one matrix": Construct(
        shared_memory, {"w": (3 * N, IN), "m": (3, 3)}, grid(N, 3)
    ),
    "delay line": Construct(delay_line, W, lambda: (jnp.zeros(N), jnp.zeros((3, N)))),
    "ring buffer": Construct(
        ring_buffer,
        W,
        lambda: (jnp.zeros(N), jnp.zeros((3, N)), jnp.zeros((), int)),
    ),
    "synaptic filter": Construct(
        synapse, {**W, "d": (N,), "e": (N,)}, lambda: (jnp.zeros(N), jnp.zeros(N))
    ),
    "output before the reset": Construct(spikes, {**W, "t": (N,)}),
    "populations of different sizes": Construct(
        populations, {**W, "v": (2, IN)}, lambda: (jnp.zeros(N), jnp.zeros(2))
    ),
    "channels first": leaky(
        lambda w, h, x: conv(image(x), w["w"]), {"w": (3, 2, 3)}, grid(3, 5)
    ),
    "channels last": Construct(channels_last, {"w": (3, 2, 3)}, grid(5, 3)),
    "complex state": Construct(
        rotating,
        {"nu": (N,), "theta": (N,), "re": (N, IN), "im": (N, IN)},
        complex_start,
    ),
}
