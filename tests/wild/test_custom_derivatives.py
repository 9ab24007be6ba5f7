"""Functions with a derivative of their own."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import etrace

from .program import (
    INPUTS,
    N,
    Program,
    U,
    W,
    check,
    chosen,
    differentiated,
    errors,
    loss,
    normal,
    online,
)

A = normal(N, seed=5)
WEIGHTS = {"w": W, "a": A}


def new(w, h, x):
    return jax.nn.sigmoid(w["a"]) * h + w["w"] @ x


@jax.custom_vjp
def spike(v, slope):
    """One slope for all neurons, which is trained."""
    return (v > 0).astype(v.dtype)


def spike_backwards(saved, g):
    v, slope = saved
    return g / (1 + slope * jnp.abs(v)) ** 2, jnp.sum(g * v)


spike.defvjp(lambda v, slope: (spike(v, slope), (v, slope)), spike_backwards)


def learnt_slope(w, v, x):
    v = new(w, v, x)
    z = spike(v - 0.3, w["slope"])
    return v, v - 0.3 * z


@jax.custom_vjp
def integral(h, times):
    return h * jnp.sum(times)


def integral_backwards(saved, g):
    """It indexes the constant by a traced number, as solvers of differential equations
    do."""
    h, times = saved
    body = lambda total, n: (total + times[n], None)  # noqa: E731
    total, _ = lax.scan(body, 0.0, jnp.arange(len(times)))
    return g * total, jnp.sum(g * h) * jnp.ones_like(times)


integral.defvjp(lambda h, times: (integral(h, times), (h, times)), integral_backwards)


def of_a_constant(w, h, x):
    h = integral(h, jnp.array([0.2, 0.3])) + w["w"] @ x
    return h, h


def clipped(clip, size):
    """What flows back in time is clipped, which is not linear."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (clip(g),))

    def step(w, h, x):
        h = identity(new(w, h, x))
        return size * h, h

    return Program(step, WEIGHTS)


CLIPPED = {
    "small values": clipped(lambda g: jnp.clip(g, -0.1, 0.1), 0.02),
    "large values": clipped(lambda g: jnp.clip(g, -50.0, 50.0), 40.0),
    "norms": clipped(lambda g: g * jnp.minimum(1.0, 50 / jnp.linalg.norm(g)), 40.0),
}


@jax.custom_vjp
def reversed_gradient(x, scale):
    return x


reversed_gradient.defvjp(
    lambda x, scale: (x, scale), lambda scale, g: (-scale * g, jnp.zeros(()))
)


def adversary(w, h, x):
    h = new(w, h, x)
    return h + 0.2 * reversed_gradient(h, jnp.array(0.5)), h


def rounded(w, h, x):
    """Straight through: rounded forwards, the identity backwards."""
    h = new(w, h, x)
    h = h + lax.stop_gradient(jnp.round(4 * h) / 4 - h)
    return h, h


@jax.custom_vjp
def row_of(table, at):
    """A row, by an integer: its cotangent is float0 or None."""
    return table[at]


def row_backwards(saved, g):
    table, at = saved
    return jnp.zeros_like(table).at[at].add(g), None


row_of.defvjp(lambda table, at: (row_of(table, at), (table, at)), row_backwards)


def by_integer(w, state, x):
    h, t = state
    h = new(w, h, x) + row_of(w["table"], t % 2)
    return h, (h, t + 1)


@jax.custom_vjp
def aligned(w, x):
    """A product whose signal goes back through other weights."""
    return w @ x


aligned.defvjp(lambda w, x: (w @ x, (w, x)), lambda s, g: (jnp.outer(g, s[1]), U.T @ g))


def feedback_alignment(w, h, x):
    h = jax.nn.sigmoid(w["a"]) * h + aligned(w["u"], jnp.tanh(w["w"] @ x))
    return h, h


def aligned_recurrence(w, h, x):
    h = new(w, h, x) + aligned(w["u"], jnp.tanh(h))
    return h, h


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gated(kind, v, gate):
    return jnp.where(gate > 0, v, 0.1 * v)


@gated.defjvp
def _(kind, primals, tangents):
    (v, gate), (dv, dgate) = primals, tangents
    slope = jnp.where(gate > 0, 1.0, 0.1) if kind == "leaky" else 1.0
    return gated(kind, v, gate), slope * dv + v / (1 + gate**2) * dgate


def static_argument(w, h, x):
    z = w["w"] @ x
    h = gated("leaky", jax.nn.sigmoid(w["a"]) * h + z, z)
    return h, h


@jax.custom_vjp
def fused(v, x, decay):
    """A whole step of a neuron, its two results at once."""
    v = decay * v + x
    z = (v > 0.3).astype(float)
    return z, v - 0.3 * z


def fused_forwards(v, x, decay):
    return fused(v, x, decay), (v, decay * v + x, decay)


def fused_backwards(saved, g):
    old, v, decay = saved
    gz, gv = g
    g = gv + (gz - 0.3 * gv) / (1 + 4 * jnp.abs(v - 0.3)) ** 2
    return g * decay, g, g * old


fused.defvjp(fused_forwards, fused_backwards)


def fused_step(w, v, x):
    z, v = fused(v, w["w"] @ x, jax.nn.sigmoid(w["a"]))
    return z + v, v


def half_stopped(w, h, x):
    """Half of the gradient goes back in time."""
    h = new(w, 0.5 * h + 0.5 * lax.stop_gradient(h), x)
    return h, h


@jax.custom_vjp
def centred_at_times(x, plain):
    return x


centred_at_times.defvjp(
    lambda x, plain: (x, plain),
    lambda plain, g: (jnp.where(plain, g, g - jnp.mean(g)), None),
)


def mixed_at_times(w, state, x):
    """A derivative that mixes neurons in every other step."""
    h, t = state
    h = centred_at_times(new(w, h, x), t % 2 == 1)
    return h, (h, t + 1)


@jax.custom_vjp
def centred_if_large(x):
    return x


def centre_backwards(x, g):
    return (jnp.where(jnp.linalg.norm(x) > 5, g - jnp.mean(g), g),)


centred_if_large.defvjp(lambda x: (x, x), centre_backwards)


def mixed_if_large(w, h, x):
    """A derivative that mixes neurons where the state is large."""
    h = centred_if_large(new(w, h, 4 * x))
    return h, h


@jax.custom_gradient
def softened(v):
    return jnp.sign(v), lambda g: g * jnp.exp(-(v**2))


def by_custom_gradient(w, h, x):
    h = new(w, h, x)
    return h, h - 0.1 * softened(h)


PROGRAMS = {
    "learnt slope": Program(learnt_slope, {**WEIGHTS, "slope": jnp.array(2.0)}),
    "of a constant": Program(of_a_constant, {"w": W}),
    "reversed gradient": Program(adversary, WEIGHTS),
    "rounded": Program(rounded, WEIGHTS),
    "by an integer": Program(
        by_integer,
        {**WEIGHTS, "table": normal(2, N, seed=6)},
        lambda: (jnp.zeros(N), jnp.zeros((), int)),
    ),
    "feedback alignment": Program(feedback_alignment, {**WEIGHTS, "u": U}, exact=False),
    "aligned recurrence": Program(aligned_recurrence, {**WEIGHTS, "u": U}, exact=False),
    "mixed at times": Program(
        mixed_at_times,
        WEIGHTS,
        lambda: (jnp.zeros(N), jnp.zeros((), int)),
        exact=False,
    ),
    "mixed if large": Program(mixed_if_large, WEIGHTS, exact=False),
    "static argument": Program(static_argument, WEIGHTS),
    "fused step": Program(fused_step, WEIGHTS),
    "half stopped": Program(half_stopped, WEIGHTS),
    "custom gradient": Program(by_custom_gradient, WEIGHTS),
}


COMMON = (
    "learnt slope",
    "of a constant",
    "by an integer",
    "mixed at times",
    "mixed if large",
    "fused step",
)


@pytest.mark.parametrize("name", chosen(PROGRAMS, COMMON))
def test_gradients(name: str):
    check(PROGRAMS[name])


def test_a_constant_reaches_every_rule():
    """A user's function that indexes what it is given is given a JAX array."""
    model = PROGRAMS["of a constant"].model()
    for rule in (etrace.RTRL(model), etrace.EProp(model), etrace.SnAp(model)):
        assert jnp.all(jnp.isfinite(online(rule, INPUTS, 1)["w"]))


def clip_of_recurrence(w, h, x):
    """What is read is clipped as well, but only once a step."""
    y = CLIP(w["out"] @ h)
    h = jax.nn.sigmoid(w["a"]) * CLIP(h) + w["w"] @ x
    return y + w["out"] @ h, h


def clip_of_outputs(w, h, x):
    h = new(w, h, x)
    return CLIP(w["out"] @ h), h


@jax.custom_vjp
def CLIP(x):
    return x


CLIP.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@pytest.mark.parametrize("rule", [etrace.DRTRL, etrace.RTRL])
def test_what_is_clipped_in_time_is_warned_of(rule):
    weights = {**WEIGHTS, "out": normal(2, N, seed=7)}
    model = Program(clip_of_recurrence, weights).model()
    with pytest.warns(etrace.UntracedParameterWarning, match="not linear") as caught:
        report = rule(model).graph(INPUTS[0])
    said = {row.parameter: "not linear" in row.reason for row in report.rows}
    assert said == {f".weights['{n}']": n != "out" for n in weights}
    (message,) = (str(w.message) for w in caught)
    assert "custom_vjp_call in test_custom_derivatives.py" in message
    assert "['out']" not in message
    run = etrace.value_and_grad(loss, window=1, reduction="sum", carry=False)
    found = run(rule(model), None, INPUTS, jnp.zeros(len(INPUTS)))[1].weights
    assert max(errors(found, differentiated(model, INPUTS)[0]).values()) > 1e-3


def test_what_is_clipped_within_a_step_is_exact():
    """No warning, which would be an error, and nothing to warn of."""
    weights = {**WEIGHTS, "out": normal(2, N, seed=7)}
    check(Program(clip_of_outputs, weights))
    model = Program(clip_of_outputs, weights).model()
    assert not etrace.RTRL(model).graph(INPUTS[0]).losses


@jax.custom_vjp
def solved(x):
    """A fixed point by iteration."""
    move = lambda c: (c[0] + 1, 0.5 * jnp.tanh(c[1]) + x)  # noqa: E731
    return lax.while_loop(lambda c: c[0] < 60, move, (0, x))[1]


def solved_forwards(x):
    y = solved(x)
    return y, y


solved.defvjp(solved_forwards, lambda y, g: (g / (1 - 0.5 * (1 - jnp.tanh(y) ** 2)),))


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
def test_a_solver_is_taken_at_its_word():
    def step(w, h, x):
        h = solved(new(w, h, x))
        return h, h

    program = Program(step, WEIGHTS, exact=False)
    check(program)
    report = etrace.RTRL(program.model()).graph(INPUTS[0])
    assert all("is not looked at" in row.reason for row in report.rows)


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
@pytest.mark.parametrize("name", CLIPPED)
def test_a_gradient_clipped_in_time(name: str):
    """A window over everything is backpropagation through time. Rules that go forwards
    cannot clip what comes back: they say so, whichever they are."""
    model = CLIPPED[name].model()
    exact, _ = differentiated(model, INPUTS)
    whole = online(etrace.DRTRL(model, None, "multi-step"), INPUTS, 6)
    assert max(errors(whole, exact).values()) <= 1e-9
    for rule in (etrace.DRTRL(model), etrace.RTRL(model)):
        wrong = max(errors(online(rule, INPUTS, 1), exact).values()) > 1e-9
        assert not wrong or rule.graph(INPUTS[0]).losses, rule.name


def as_declared(x):
    """Its own derivative, as solvers declare a cast."""
    return x * 1.0


as_declared = jax.custom_jvp(as_declared)
as_declared.defjvp(lambda x, t: (as_declared(*x), as_declared(*t)))


@jax.custom_jvp
def mixed_as_declared(x):
    return x + 0.1 * jnp.sum(x)


mixed_as_declared.defjvp(lambda x, t: (mixed_as_declared(*x), mixed_as_declared(*t)))


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
@pytest.mark.parametrize(
    "fun, traced", [(as_declared, True), (mixed_as_declared, False)]
)
def test_a_function_that_is_its_own_derivative(fun, traced: bool):
    def step(w, h, x):
        h = fun(jax.nn.sigmoid(w["a"]) * h) + w["w"] @ x
        return h, h

    program = Program(step, WEIGHTS, exact=traced)
    report = etrace.DRTRL(program.model()).graph(INPUTS[0])
    assert bool(report.losses) != traced
    check(program)
