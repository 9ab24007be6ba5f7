"""Branches, loops and scans within a step."""

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etrace

from .program import (
    IN,
    N,
    Net,
    Program,
    U,
    W,
    check,
    chosen,
    differentiated,
    loss,
    normal,
)

pytestmark = pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")

WEIGHTS = {"w": W, "a": normal(N, seed=5)}


def clock():
    return jnp.zeros(N), jnp.zeros((), int)


def new(w, h, x):
    return jax.nn.sigmoid(w["a"]) * h + w["w"] @ x


def cond_on_time(w, state, x):
    h, t = state
    h = lax.cond(t % 2 == 0, lambda h: new(w, h, x), lambda h: 0.5 * h, h)
    return h, (h, t + 1)


def switch_on_time(w, state, x):
    h, t = state
    cases = [
        lambda h: new(w, h, x),
        lambda h: 0.3 * h,
        lambda h: jnp.tanh(h) + (w["w"] @ x) ** 2,
    ]
    h = lax.switch(t % 3, cases, h)
    return h, (h, t + 1)


def cond_with_nan(w, h, x):
    """The root of a negative number, in the branch not taken."""
    a = w["w"][0, 0] * x[0]
    h = jax.nn.sigmoid(w["a"]) * h + lax.cond(a > 0, lambda a: a**0.5, jnp.sin, a)
    return h, h


def cond_with_singular_weight(w, h, x):
    """The root of weights that are zero, their quotients, in branches not taken."""
    which = (x[0] > 9).astype(int) + (x[1] > 9).astype(int)
    whole = lambda: w["w"] @ x  # noqa: E731
    root = lambda: jnp.sqrt(w["w"]) @ x / jnp.sum(w["w"])  # noqa: E731
    quotient = lambda: jnp.sum(x[None] / w["w"] / jnp.linalg.norm(w["w"]), axis=1)  # noqa: E731
    h = jax.nn.sigmoid(w["a"]) * h + lax.switch(which, [whole, root, quotient])
    return h, h


def cond_with_nan_everywhere(w, h, x):
    """The same of every neuron: both branches are computed, the roots are guarded."""
    z = w["w"] @ x
    root = jnp.sqrt(jnp.where(z > 0, z, 1.0))
    h = jax.nn.sigmoid(w["a"]) * h + jnp.where(z > 0, root, jnp.sin(z))
    return h, h


def while_on_inputs(w, h, x):
    halved = lax.while_loop(lambda x: jnp.max(jnp.abs(x)) > 0.5, lambda x: x / 2, x)
    h = new(w, h, halved)
    return h, h


def neuron_by_neuron(w, h, x):
    """A loop that writes one neuron at a time."""

    def write(n, h):
        row = {"a": w["a"][n], "w": w["w"][n]}
        return h.at[n].set(new(row, h[n], x))

    h = lax.fori_loop(0, N, write, h)
    return h, h


def mapped(w, h, x):
    row = lambda p: jax.nn.sigmoid(p[0]) * p[1] + jnp.dot(p[2], x)  # noqa: E731
    h = lax.map(row, (w["a"], h, w["w"]))
    return h, h


def chunk(w, h, x):
    """Three steps of a linear recurrence, as a parallel scan."""
    keep = jnp.broadcast_to(jax.nn.sigmoid(w["a"])[None], (IN, N))
    combine = lambda p, q: (q[0] * p[0], q[0] * p[1] + q[1])  # noqa: E731
    keep, drive = lax.associative_scan(combine, (keep, jnp.tanh(w["w"].T * x[:, None])))
    h = keep[-1] * h + drive[-1]
    return h, h


def rematerialised(w, h, x):
    body = jax.checkpoint(lambda h, _: (jnp.tanh(0.5 * h + w["w"] @ x), None))
    h = lax.scan(body, jax.nn.sigmoid(w["a"]) * h, None, length=3)[0]
    return h, h


def checkpointed_while(w, h, x):
    u = w["w"] @ x
    body = lambda c: (c[0] + 1, jax.nn.sigmoid(w["a"]) * c[1] + u)  # noqa: E731
    h = eqxi.while_loop(
        lambda c: c[0] < 4,
        body,
        (0, h),
        max_steps=8,
        kind="checkpointed",
        checkpoints=3,
    )[1]
    return h, h


def sweep(w, h, x):
    """Each neuron sees the one before it as it is now."""
    body = lambda n, h: h.at[n].set(  # noqa: E731
        jax.nn.sigmoid(w["a"][n]) * h[n] + jnp.dot(w["w"][n], x) + 0.1 * h[n - 1]
    )
    h = lax.fori_loop(0, N, body, h)
    return h, h


def both_ways(w, h, x):
    """A bidirectional pass over the neurons."""

    def cell(y, p):
        a, h, row = p
        y = jax.nn.sigmoid(a) * h + jnp.dot(row, x) + 0.3 * y
        return y, y

    over = (w["a"], h, w["w"])
    forth, back = (lax.scan(cell, 0.0, over, reverse=r)[1] for r in (False, True))
    h = 0.5 * (forth + back)
    return h, h


def implicit(w, h, x):
    """A step of Euler's method backwards."""
    h = jnp.linalg.solve(jnp.eye(N) + 0.1 * U, new(w, h, x))
    return h, h


def cable(w, h, x):
    diagonal = 2 + jax.nn.softplus(w["a"])
    lower, upper = (-0.5 * jnp.ones(N).at[n].set(0.0) for n in (0, -1))
    right = (h + w["w"] @ x)[:, None]
    h = lax.linalg.tridiagonal_solve(lower, diagonal, upper, right)[:, 0]
    return h, h


def root(w, h, x):
    """An implicit equation, differentiated by the implicit function theorem."""
    target = new(w, h, x)
    equation = lambda y: y - 0.5 * jnp.tanh(y) - target  # noqa: E731
    solve = lambda f, y: lax.fori_loop(0, 60, lambda _, y: y - f(y), y)  # noqa: E731
    tangent = lambda g, y: y / g(jnp.ones(N))  # noqa: E731
    h = lax.custom_root(equation, h, solve, tangent)
    return h, h


EXACT = {
    "cond on time": Program(cond_on_time, WEIGHTS, clock),
    "switch on time": Program(switch_on_time, WEIGHTS, clock),
    "cond with NaN": Program(cond_with_nan, WEIGHTS),
    "cond with a singular weight": Program(
        cond_with_singular_weight, {**WEIGHTS, "w": jnp.zeros((N, IN))}
    ),
    "guarded NaN": Program(cond_with_nan_everywhere, WEIGHTS),
    "while on inputs": Program(while_on_inputs, WEIGHTS),
    "neuron by neuron": Program(neuron_by_neuron, WEIGHTS),
    "mapped": Program(mapped, WEIGHTS),
    "a parallel scan": Program(chunk, WEIGHTS),
    "rematerialised": Program(rematerialised, WEIGHTS),
}
TOLD = {
    "checkpointed while": Program(checkpointed_while, WEIGHTS, exact=False),
    "sweep": Program(sweep, WEIGHTS, exact=False),
    "both ways": Program(both_ways, WEIGHTS, exact=False),
    "implicit": Program(implicit, WEIGHTS, exact=False),
    "cable": Program(cable, WEIGHTS, exact=False),
    "root": Program(root, WEIGHTS, exact=False),
}
PROGRAMS = {**EXACT, **TOLD}


COMMON = (
    "cond on time",
    "cond with NaN",
    "cond with a singular weight",
    "checkpointed while",
    "a parallel scan",
)


@pytest.mark.parametrize("name", chosen(PROGRAMS, COMMON))
def test_gradients(name: str):
    check(PROGRAMS[name])


def test_a_branch_not_taken_in_a_batch():
    """Each example takes its own branch, and no NaN comes from the other."""

    def step(w, h, x):
        a = w["w"] * x
        h = 0.8 * h + lax.cond(a > 0, lambda a: a**0.5, jnp.sin, a)
        return h, h

    model = Net({"w": jnp.array(2.0)}, step, lambda: jnp.zeros(()))
    inputs = jnp.array([[1.0, -1.0], [-1.0, -0.5], [0.5, 2.0]])
    single = [differentiated(model, inputs[:, n])[0]["w"] for n in (0, 1)]
    run = etrace.value_and_grad(loss, window=3, reduction="sum", carry=False)
    for rule in (etrace.RTRL, etrace.DRTRL):
        found = run(rule(model, batched=True), None, inputs, jnp.zeros((3, 2)))[1]
        np.testing.assert_allclose(found.weights["w"], sum(single), rtol=1e-9)
