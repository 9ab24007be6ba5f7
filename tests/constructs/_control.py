"""Control flow, and functions with derivatives of their own."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas

from ..helpers import spike
from ._construct import IN, Construct, N, leaky

W = {"w": (N, IN)}


@jax.custom_vjp
def clipped(x):
    """Its derivative is cut off, not the value."""
    return x


clipped.defvjp(lambda x: (x, x), lambda x, g: (jnp.where(jnp.abs(x) < 1, g, 0),))


@jax.custom_vjp
def sloped(v, slope):
    return jnp.tanh(v)


sloped.defvjp(
    lambda v, k: (jnp.tanh(v), (v, k)),
    lambda r, g: (g / (1 + r[1] ** 2 * jnp.abs(r[0])), jnp.sum(g * jnp.sin(r[0]))),
)


def write_tanh(x, out):
    out[...] = jnp.tanh(x[...])


@jax.custom_vjp
def kernel(x):
    """An operation whose inside nobody knows, with the derivative that it needs."""
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pallas.pallas_call(write_tanh, out_shape=out, interpret=True)(x)


def kernel_forwards(x):
    y = kernel(x)
    return y, y


kernel.defvjp(kernel_forwards, lambda y, g: (g * (1 - y * y),))


@jax.custom_vjp
def centred(x):
    """Elementwise forwards; its derivative mixes."""
    return jnp.tanh(x)


centred.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g - g.mean(),))


def loop(rounds: int):
    def step(w, h, x):
        drive = w["w"] @ x
        move = lambda _, h: h + (drive - jnp.sinh(h) * jnp.exp(w["r"])) / rounds  # noqa: E731
        h = lax.fori_loop(0, rounds, move, h)
        return h, h

    return Construct(step, {**W, "r": (N,)})


def two_leaves(w, state, x):
    drive = w["w"] @ x

    def move(carry, dt):
        v, u = carry
        return (v + dt * (drive - v - u), u + dt * (w["r"] * v - u)), None

    state, _ = lax.scan(move, state, jnp.full(40, 0.05))
    return state[0], state


def product_inside(rounds: int):
    def step(w, h, x):
        move = lambda _, h: h + (w["w"] @ x - h) / rounds  # noqa: E731
        h = lax.fori_loop(0, rounds, move, h)
        return h, h

    return step


def two_inside(rounds: int):
    def step(w, h, x):
        move = lambda _, h: h + (w["v"] @ jnp.tanh(w["w"] @ x) - h) / rounds  # noqa: E731
        h = lax.fori_loop(0, rounds, move, h)
        return h, h

    return step


def branches(w, h, x):
    first = lambda h: 0.9 * h + w["w"] @ x  # noqa: E731
    second = lambda h: w["g"] * h  # noqa: E731
    h = lax.cond(x[0] > 0, first, second, h)
    return h, h


def switched(w, h, x):
    which = jnp.clip(jnp.round(x[0] * 3), 0, 2).astype(int)
    cases = [
        lambda h: w["g"] * h,
        lambda h: w["w"] @ x,
        lambda h: 0.5 * h + w["w"] @ x,
    ]
    h = lax.switch(which, cases, h)
    return h, h


def counted(w, h, x):
    """A number of rounds that depends on data, on the way to no weight."""
    rounds = lax.while_loop(lambda n: n < 3 * jnp.exp(x[0]), lambda n: n + 1.0, 1.0)
    h = 0.9 * h + (w["w"] @ x) / rounds
    return h, h


def repeat_while(rounds, move, start):
    """Of unknown length."""
    cond = lambda c: c[0] < rounds  # noqa: E731
    return lax.while_loop(cond, lambda c: (c[0] + 1.0, move(c[1])), (0.0, start))[1]


def repeat_at_most(rounds, move, start):
    """The same for up to 16 rounds, with a derivative in JAX."""
    body = lambda n, y: jnp.where(n < rounds, move(y), y)  # noqa: E731
    return lax.fori_loop(0, 16, body, start)


def settling(repeat):
    """A number of rounds that depends on data, over the state."""

    def step(w, h, x):
        move = lambda h: h + 0.2 * (jnp.cos(h) * w["r"] - h)  # noqa: E731
        h = repeat(3 * jnp.exp(x[0]), move, h) + w["w"] @ x
        return h, h

    return step


def turning(repeat):
    """Over the inputs, before any weight."""

    def step(w, h, x):
        x = repeat(3 * jnp.exp(x[0]), lambda x: 0.9 * jnp.roll(x, 1), x)
        h = 0.9 * h + w["w"] @ x
        return h, h

    return step


def recurrent_inside(rounds: int):
    def step(w, h, x):
        drive = w["w"] @ x
        move = lambda _, h: h + (jnp.tanh(drive + w["u"] @ h) - h) / rounds  # noqa: E731
        h = lax.fori_loop(0, rounds, move, h)
        return h, h

    return step


def rooted(w, h, x):
    drive = w["w"] @ x
    return lax.cond(
        x[0] > 0, lambda u: jnp.sqrt(u * u), lambda u: jnp.sqrt(-x[0]) * u, drive
    )


CONTROL = {
    "`cond`": Construct(branches, {**W, "g": (N,)}),
    "`switch`": Construct(switched, {**W, "g": (N,)}),
    "`where`": leaky(
        lambda w, h, x: jnp.where(h > 0, w["w"] @ x, w["b"]), {**W, "b": (N,)}
    ),
    "`fori_loop` of 3 substeps": loop(3),
    "`fori_loop` of 100 substeps": loop(100),
    "`scan` of 40 substeps, two numbers": Construct(
        two_leaves, {**W, "r": (N,)}, lambda: (jnp.zeros(N), jnp.zeros(N))
    ),
    "a product with a weight in 5 substeps": Construct(product_inside(5), W),
    "a product with a weight in 40 substeps": Construct(product_inside(40), W),
    "two products with weights in 40 substeps": Construct(
        two_inside(40),
        {"v": (N, 2), "w": (2, IN)},
        now={"w": "a mixing operation lies between"},
    ),
    "a recurrent product in 40 substeps": Construct(
        recurrent_inside(40),
        {**W, "u": (N, N)},
        now={
            "w": "a mixing operation lies between",
            "u": "scan is not a traceable operation",
        },
    ),
    "`while_loop`, for a count": Construct(counted, W),
    "`while_loop` over the state": Construct(
        settling(repeat_while), {**W, "r": (N,)}, same_as=settling(repeat_at_most)
    ),
    "`while_loop` over the inputs": Construct(
        turning(repeat_while), W, same_as=turning(repeat_at_most)
    ),
    "`jax.checkpoint`": leaky(
        lambda w, h, x: jax.checkpoint(lambda w: jnp.tanh(w @ x))(w["w"]), W
    ),
    "nested `jit`": leaky(lambda w, h, x: jax.jit(lambda w: w @ x)(w["w"]), W),
    "`vmap` inside the step": leaky(
        lambda w, h, x: jax.vmap(lambda row, h: jnp.tanh(row @ x - h))(w["w"], h), W
    ),
    "surrogate gradient (`custom_jvp`)": leaky(lambda w, h, x: spike(w["w"] @ x), W),
    "`custom_vjp`": leaky(lambda w, h, x: clipped(w["w"] @ x), W),
    "`custom_vjp`, one slope for all neurons": leaky(
        lambda w, h, x: sloped(w["w"] @ x, w["k"]), {**W, "k": ()}
    ),
    "`eqx.error_if`": leaky(
        lambda w, h, x: eqx.error_if(w["w"] @ x, jnp.any(x > 99), "never"), W
    ),
    "`cond` with a root, in the branch not taken": leaky(rooted, W),
    "`custom_vjp` that mixes": leaky(
        lambda w, h, x: centred(w["w"] @ x),
        W,
        now={"w": "a mixing operation lies between"},
    ),
    "a kernel of one's own (Pallas)": leaky(lambda w, h, x: kernel(w["w"] @ x), W),
    "`stop_gradient`": leaky(
        lambda w, h, x: w["w"] @ x - 0.1 * lax.stop_gradient(h), W
    ),
}
