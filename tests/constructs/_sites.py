"""Operations in which a weight meets data."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import sparse

from ._construct import IN, Construct, N, leaky

DENSE = {"w": (N, IN)}
BEHIND = "a mixing operation lies between"


def grid(*shape: int):
    return lambda: jnp.zeros(shape)


def image(x):
    """Two channels of five pixels."""
    return jnp.outer(x[:2], jnp.cos(jnp.arange(5.0) + x[2]))


def conv(x, w, **options):
    numbers = ("NCH", "OIH", "NCH")
    options = {"window_strides": (1,), "padding": "SAME"} | options
    return lax.conv_general_dilated(x[None], w, dimension_numbers=numbers, **options)[0]


def row(x, number: int):
    """A row of a table, chosen by the data."""
    return jnp.clip(jnp.round(3 * x[number]), -2, 2).astype(int) + 2


def sparse_matrix():
    """Where the synapses of a sparse matrix are, [synapses, 2]."""
    post = np.array([0, 0, 1, 2, 2, 3, 3])
    return np.stack([post, np.array([0, 2, 1, 0, 1, 1, 2])], axis=1)


SYNAPSES = sparse_matrix()
POPULATION = np.array([0, 1, 1, 0])
PAIR = np.array([0, 0, 1, 1])
PLACES = np.array([[0, 1], [2, 1], [1, 1], [0, 2]])


def bcoo(w, x):
    return sparse.BCOO((w, jnp.asarray(SYNAPSES)), shape=(N, IN)) @ x


def segments(w, x):
    products = w * x[SYNAPSES[:, 1]]
    return jax.ops.segment_sum(products, jnp.asarray(SYNAPSES[:, 0]), N)


def twice(w, h, x):
    return w["w"] @ x + w["w"] @ (x * x)


def gate_read_out(w, h, x):
    gate = jax.nn.sigmoid(w["g"] @ x)
    h = jax.nn.sigmoid(w["a"]) * h + gate * (w["w"] @ x)
    return jnp.append(h, gate), h


def gated(w, h, x):
    gate = jax.nn.sigmoid(w["g"] @ x)
    return gate * (w["w"] @ x) + (1 - gate) * x.mean()


def attention(w, h, x):
    scores = jax.nn.softmax((w["k"] @ x) * (w["q"] @ x))
    return scores @ w["v"]


SITES = {
    "`W @ x`": leaky(lambda w, h, x: w["w"] @ x, DENSE),
    "`x @ W.T`": leaky(lambda w, h, x: x @ w["w"].T, DENSE),
    "bias": leaky(lambda w, h, x: w["w"] @ x + w["b"], {**DENSE, "b": (N,)}),
    "gain": leaky(lambda w, h, x: w["g"] * (w["w"] @ x), {**DENSE, "g": (N,)}),
    "a scalar weight": leaky(lambda w, h, x: w["s"] * jnp.tanh(x[0] + h), {"s": ()}),
    "einsum over two axes": leaky(
        lambda w, h, x: jnp.einsum("ijk,jk->i", w["w"], jnp.outer(x, x)),
        {"w": (N, IN, IN)},
    ),
    "einsum with heads": leaky(
        lambda w, h, x: jnp.einsum("hij,hj->hi", w["w"], jnp.stack([x, x * x])),
        {"w": (2, N, IN)},
        grid(2, N),
    ),
    "einsum over tokens": leaky(
        lambda w, h, x: jnp.einsum("oi,ti->to", w["w"], jnp.stack([x, x * x])),
        DENSE,
        grid(2, N),
    ),
    "`jax.vmap` of products": leaky(
        lambda w, h, x: jax.vmap(jnp.dot, (0, None))(w["w"], x), DENSE
    ),
    "products, summed": leaky(lambda w, h, x: (w["w"] * x[None]).sum(axis=1), DENSE),
    "10 inputs a neuron, gathered": leaky(
        lambda w, h, x: (w["w"] * x[PLACES]).sum(axis=1), {"w": (N, 2)}
    ),
    "convolution": leaky(
        lambda w, h, x: conv(image(x), w["w"]), {"w": (3, 2, 3)}, grid(3, 5)
    ),
    "strided convolution": leaky(
        lambda w, h, x: conv(image(x), w["w"], window_strides=(2,)),
        {"w": (3, 2, 3)},
        grid(3, 3),
    ),
    "dilated convolution": leaky(
        lambda w, h, x: conv(image(x), w["w"], rhs_dilation=(2,)),
        {"w": (3, 2, 2)},
        grid(3, 5),
    ),
    "transposed convolution": leaky(
        lambda w, h, x: conv(image(x), w["w"], lhs_dilation=(2,), padding=[(1, 1)]),
        {"w": (3, 2, 2)},
        grid(3, 10),
    ),
    "grouped convolution": leaky(
        lambda w, h, x: conv(image(x), w["w"], feature_group_count=2),
        {"w": (4, 1, 3)},
        grid(4, 5),
    ),
    "depthwise convolution": leaky(
        lambda w, h, x: conv(image(x), w["w"], feature_group_count=2),
        {"w": (2, 1, 3)},
        grid(2, 5),
    ),
    "pooling behind a convolution": leaky(
        lambda w, h, x: conv(image(x), w["w"]).mean(axis=1), {"w": (4, 2, 3)}
    ),
    "embedding": leaky(lambda w, h, x: w["w"][row(x, 0)], {"w": (5, N)}),
    "embedding of several tokens, summed": leaky(
        lambda w, h, x: w["w"][jnp.stack([row(x, n) for n in range(3)])].sum(axis=0),
        {"w": (5, N)},
    ),
    "embedding by two indices": leaky(
        lambda w, h, x: w["w"][row(x, 0), row(x, 1)], {"w": (5, 5, N)}
    ),
    "embedding along the second axis": leaky(
        lambda w, h, x: jnp.take(w["w"], row(x, 0), axis=1), {"w": (N, 5)}
    ),
    "sparse matrix (`BCOO @ x`)": leaky(lambda w, h, x: bcoo(w["w"], x), {"w": (7,)}),
    "sparse matrix (`segment_sum`)": leaky(
        lambda w, h, x: segments(w["w"], x), {"w": (7,)}
    ),
    "low rank, `B @ (A @ x)`": leaky(
        lambda w, h, x: w["b"] @ (w["a2"] @ x), {"b": (N, 2), "a2": (2, IN)}
    ),
    "low rank, `x @ A @ B`": leaky(
        lambda w, h, x: x @ w["a2"] @ w["b"], {"a2": (IN, 2), "b": (2, N)}
    ),
    "an adapter over a frozen matrix": leaky(
        lambda w, h, x: jnp.ones((N, IN)) @ x + 0.5 * (w["b"] @ (w["a2"] @ x)),
        {"b": (N, 2), "a2": (2, IN)},
    ),
    "a weight used twice": leaky(twice, DENSE),
    "two layers before the state": leaky(
        lambda w, h, x: w["b"] @ jnp.tanh(w["c"] @ x),
        {"b": (N, 2), "c": (2, IN)},
        now={"c": BEHIND},
    ),
    "attention": leaky(
        attention,
        {"q": (N, IN), "k": (N, IN), "v": (N, N)},
        now={"q": BEHIND, "k": BEHIND},
    ),
    "one gate for all neurons": leaky(
        lambda w, h, x: jax.nn.sigmoid(w["g"] @ x + w["e"]) * (w["w"] @ x),
        {**DENSE, "g": (IN,), "e": ()},
    ),
    "one gate for all neurons, read out": Construct(
        gate_read_out, {**DENSE, "a": (N,), "g": (IN,)}, lambda: jnp.zeros(N)
    ),
    "one gate, open or shut": leaky(gated, {**DENSE, "g": (IN,)}),
    "one gate for each population": leaky(
        lambda w, h, x: jax.nn.silu(w["g"] @ x)[POPULATION] * (w["w"] @ x),
        {**DENSE, "g": (2, IN)},
    ),
    "one gate a channel (FiLM)": leaky(
        lambda w, h, x: (w["g"] @ x)[:, None] * conv(image(x), w["k"]),
        {"k": (2, 2, 3), "g": (2, IN)},
        grid(2, 5),
    ),
    "one gate a pixel": leaky(
        lambda w, h, x: jnp.tanh(conv(image(x), w["g"])) * conv(image(x), w["k"]),
        {"k": (2, 2, 3), "g": (1, 2, 3)},
        grid(2, 5),
    ),
    "keys and values (an outer product)": leaky(
        lambda w, h, x: jnp.outer(w["k"] @ x, jnp.tanh(w["w"] @ x)),
        {**DENSE, "k": (3, IN)},
        grid(3, N),
    ),
    "one gate, by a low-rank product": leaky(
        lambda w, h, x: (w["b"] @ (w["a2"] @ x)) * (w["w"] @ x),
        {**DENSE, "b": (2,), "a2": (2, IN)},
    ),
    "one row of a table for two neurons": leaky(
        lambda w, h, x: w["t"][row(x, 0)][PAIR] * x.mean() + w["w"] @ x,
        {**DENSE, "t": (5, 2)},
    ),
    "a row for two neurons, in as many numbers": leaky(
        lambda w, h, x: (w["w"] @ x)[PAIR], DENSE
    ),
    "one drive for two neurons": leaky(
        lambda w, h, x: (lambda z: z + jnp.roll(z, 1) * x.mean())(w["w"] @ x), DENSE
    ),
    "the same gate, its weight broadcast": leaky(
        lambda w, h, x: (
            jax.nn.sigmoid(jnp.broadcast_to(w["g"], (N, IN)) @ x) * (w["w"] @ x)
        ),
        {**DENSE, "g": (IN,)},
    ),
}
