"""Steps of recurrent networks and memories as the literature has them."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from .program import STEPS, N, Program, U, W, check, chosen, normal

A = normal(N, seed=5)
WEIGHTS = {"w": W, "a": A}
QKV = {name: normal(N, 3, seed=n) for n, name in enumerate("qkv", 15)}


def leak(w, h):
    return jax.nn.sigmoid(w["a"]) * h


def pairs():
    return jnp.zeros(N), jnp.zeros(N)


def rwkv(w, state, x):
    """A running maximum keeps exponentials from overflowing."""
    a, b, p = state
    k, v = w["w"] @ x, jnp.tanh(w["v"] @ x)
    top = jnp.maximum(p, w["bonus"] + k)
    old, now = jnp.exp(p - top), jnp.exp(w["bonus"] + k - top)
    y = (old * a + now * v) / (old * b + now)
    p = p - jnp.exp(w["a"])
    top = jnp.maximum(p, k)
    old, now = jnp.exp(p - top), jnp.exp(k - top)
    return y, (old * a + now * v, old * b + now, top)


def selective(w, h, x):
    """A selective state space, as Mamba has it."""
    step, into, out = jax.nn.softplus(w["step"] @ x), w["into"] @ x, w["out"] @ x
    keep = jnp.exp(-step[:, None] * jnp.exp(w["rates"]))
    h = keep * h + (step * (w["w"] @ x))[:, None] * into[None]
    return h @ out, h


def delta(w, memory, x):
    """DeltaNet: what is stored under a key is replaced."""
    q, k, v = (w[name] @ x for name in "qkv")
    k = k / jnp.sqrt(jnp.sum(k**2) + 1e-6)
    memory = memory - jax.nn.sigmoid(w["b"] @ x) * jnp.outer(memory @ k - v, k)
    return memory @ q, memory


def trained_within(w, memory, x):
    """A memory that is trained within the step."""
    k = jnp.tanh(w["w"] @ x)
    fit = lambda memory: 0.5 * jnp.sum((memory @ k - w["a"]) ** 2)  # noqa: E731
    memory = memory - 0.5 * jax.grad(fit)(memory)
    return memory @ k, memory


def cache(w, state, x):
    """Attention over all that was, by a counter and a mask of -inf."""
    keys, values, t = state
    q, k, v = (w[name] @ x for name in "qkv")
    keys, values = keys.at[t].set(k), values.at[t].set(v)
    seen = jnp.where(jnp.arange(STEPS) <= t, keys @ q, -jnp.inf)
    return jax.nn.softmax(seen) @ values, (keys, values, t + 1)


def sliding(w, state, x):
    """Attention over the last three steps."""
    keys, values = state
    q, k, v = (w[name] @ x for name in "qkv")
    keys = jnp.concatenate([keys[1:], k[None]])
    values = jnp.concatenate([values[1:], v[None]])
    return jax.nn.softmax(keys @ q) @ values, (keys, values)


def hebbian(w, state, x):
    """Fast weights grow where pre- and postsynaptic activity meet."""
    h, trace, fast = state
    h = leak(w, h) + (w["w"] + fast) @ x
    z = jax.nn.sigmoid(4 * h)
    trace = 0.8 * trace + z
    return z, (h, trace, 0.9 * fast + 0.1 * w["rate"] * jnp.outer(trace, x))


def oscillators(w, state, x):
    y, z = state
    pull = jnp.tanh(U @ y + w["w"] @ x) - jax.nn.softplus(w["a"]) * y - 0.5 * z
    z = z + 0.2 * pull
    return y + 0.2 * z, (y + 0.2 * z, z)


def phases(w, phase, x):
    """Oscillators that pull each other, on a circle."""
    pull = jnp.mean(jnp.sin(phase[None] - phase[:, None]), 1)
    phase = phase + 0.3 * (jax.nn.softplus(w["a"]) + w["w"] @ x + pull)
    phase = jnp.mod(phase + jnp.pi, 2 * jnp.pi) - jnp.pi
    return jnp.sin(phase), phase


def hamiltonian(w, state, x):
    """A step along the gradient of an energy of each neuron."""
    q, p = state
    stiff = jax.nn.softplus(w["a"])
    energy = lambda q, p: jnp.sum(p**2 / 2 + stiff * (1 - jnp.cos(q)))  # noqa: E731
    p = p - 0.2 * jax.grad(energy)(q, p) + w["w"] @ x
    q = q + 0.2 * jax.grad(energy, 1)(q, p)
    return q, (q, p)


def kalman(w, state, x):
    cov, mean = state
    move = jnp.diag(jax.nn.sigmoid(w["a"]))
    cov, see = move @ cov @ move.T + 0.1 * jnp.eye(N), w["w"].T
    gain = jnp.linalg.solve(see @ cov @ see.T + jnp.eye(3), see @ cov).T
    mean = move @ mean + gain @ (x - see @ (move @ mean))
    return mean, (cov - gain @ see @ cov, mean)


def normalised_weights(w, h, x):
    """Weight normalisation, and a singular value by an iteration in the state."""
    h, u = h
    v = w["w"].T @ u
    v = lax.stop_gradient(v / jnp.linalg.norm(v))
    u = w["w"] @ v
    u = lax.stop_gradient(u / jnp.linalg.norm(u))
    h = leak(w, h) + (w["w"] / (u @ w["w"] @ v)) @ x
    return h, (h, u)


def batch_statistics(w, state, x):
    """Running moments of the drive, through which gradients flow."""
    h, mean, var = state
    z = w["w"] @ x
    mean = 0.9 * mean + 0.1 * z
    var = 0.9 * var + 0.1 * (z - mean) ** 2
    h = leak(w, h) + (z - mean) / jnp.sqrt(var + 1e-3)
    return h, (h, mean, var)


def channels(w, v, x):
    """A rate of Hodgkin and Huxley, its singularity taken out."""
    near = jnp.abs(v) < 1e-6
    rate = jnp.where(near, 1 - v / 2, v / jnp.expm1(jnp.where(near, 1.0, v)))
    v = leak(w, v) + 0.1 * rate + w["w"] @ x
    return v, v


def circulant(w, h, x):
    """A convolution over the neurons, by Fourier's transform."""
    mixed = jnp.fft.irfft(jnp.fft.rfft(h) * jnp.fft.rfft(w["a"]), N)
    h = 0.5 * jnp.tanh(mixed) + w["w"] @ x
    return h, h


def graph(w, h, x):
    """Messages along edges, the strongest of which counts."""
    source, target = jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 2, 3, 0, 2])
    messages = jnp.tanh(w["e"] * h[source])
    h = leak(w, h) + jax.ops.segment_max(messages, target, N) + w["w"] @ x
    return h, h


def duplicates(w, h, x):
    """Indices that occur twice, or nowhere."""
    z = w["w"] @ x
    h = leak(w, h).at[jnp.array([0, 0, 2, 9])].add(z, mode="drop")
    h = h + jnp.take(w["e"] * z, jnp.array([0, -1, 7, 2]), mode="fill", fill_value=0.3)
    return h, h


E = normal(N, seed=24)
EXACT = {
    "rwkv": Program(
        rwkv,
        {**WEIGHTS, "v": QKV["v"], "bonus": E},
        lambda: (jnp.zeros(N), jnp.zeros(N), jnp.full(N, -100.0)),
    ),
    "selective": Program(
        selective,
        {
            "w": W,
            "step": QKV["q"],
            "into": normal(2, 3, seed=17),
            "out": normal(2, 3, seed=18),
            "rates": normal(N, 2, seed=19),
        },
        lambda: jnp.zeros((N, 2)),
    ),
    "sliding": Program(sliding, QKV, lambda: (jnp.zeros((3, N)), jnp.zeros((3, N)))),
    "hebbian": Program(
        hebbian,
        {**WEIGHTS, "rate": normal(N, 3, seed=20)},
        lambda: (*pairs(), jnp.zeros((N, 3))),
    ),
    "hamiltonian": Program(hamiltonian, WEIGHTS, pairs),
    "batch statistics": Program(
        batch_statistics, WEIGHTS, lambda: (*pairs(), jnp.ones(N))
    ),
    "channels": Program(channels, WEIGHTS),
    "duplicates": Program(duplicates, {**WEIGHTS, "e": E}),
}
TOLD = {
    "delta": (delta, {**QKV, "b": normal(3, seed=21)}, lambda: jnp.zeros((N, N))),
    "trained within": (trained_within, WEIGHTS, lambda: jnp.zeros((N, N))),
    "cache": (
        cache,
        QKV,
        lambda: (jnp.zeros((STEPS, N)), jnp.zeros((STEPS, N)), jnp.zeros((), int)),
    ),
    "oscillators": (oscillators, WEIGHTS, pairs),
    "phases": (phases, WEIGHTS, lambda: jnp.zeros(N)),
    "kalman": (kalman, WEIGHTS, lambda: (jnp.eye(N), jnp.zeros(N))),
    "normalised weights": (
        normalised_weights,
        WEIGHTS,
        lambda: (jnp.zeros(N), jnp.ones(N) / 2),
    ),
    "circulant": (circulant, WEIGHTS, lambda: jnp.zeros(N)),
    "graph": (graph, {**WEIGHTS, "e": normal(5, seed=24)}, lambda: jnp.zeros(N)),
}
PROGRAMS = EXACT | {name: Program(*p, exact=False) for name, p in TOLD.items()}


COMMON = ("sliding", "duplicates", "normalised weights")


@pytest.mark.parametrize("name", chosen(PROGRAMS, COMMON))
def test_gradients(name: str):
    check(PROGRAMS[name])
