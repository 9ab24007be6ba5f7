"""Traces that no signal of the same step reaches, and what is said of them."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.testing as et

N, IN, OUT = 3, 2, 2


class Net(eqx.Module):
    """Leaky neurons, and `after`, which makes outputs and a further state of them."""

    w: jax.Array
    a: jax.Array
    out: jax.Array
    after: Callable = eqx.field(static=True)
    start: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, after: Callable, start: tuple[int, ...] = (OUT,)):
        keys = jax.random.split(jax.random.key(2))
        self.w = jax.random.normal(keys[0], (N, IN))
        self.a = jnp.linspace(0.5, 0.9, N)
        self.out = jax.random.normal(keys[1], (OUT, N))
        self.after, self.start = after, start

    def init_state(self):
        return jnp.zeros(N), jnp.zeros(self.start)

    def __call__(self, state, x):
        h, memory = state
        h = self.a * h + jnp.tanh(self.w @ x)
        y, memory = self.after(self, h, memory)
        return y, (h, memory)


def queued(m, h, queue):
    """Late outputs: those of two steps before."""
    return queue[-1], jnp.concatenate([(m.out @ h)[None], queue[:-1]])


def read_from_the_new_queue(m, h, queue):
    queue = jnp.concatenate([(m.out @ h)[None], queue[:-1]])
    return queue[-1], queue


def counted_late(m, h, count):
    return count, count + m.out @ h


def counted(m, h, count):
    count = count + m.out @ h
    return count, count


def watched(m, h, mean):
    """A running mean that no output ever depends on."""
    return m.out @ h, 0.9 * mean + 0.1 * (m.out @ h)


def own_queue(m, h, queue):
    """The neurons' own numbers are late, [delay, neurons]."""
    return m.out @ queue[-1], jnp.concatenate([h[None], queue[:-1]])


QUEUE = (2, OUT)
XS = jax.random.normal(jax.random.key(1), (7, IN))
TARGETS = jnp.ones((7, OUT))
RUN = etrace.value_and_grad(et.squared_error, window=3, reduction="sum", carry=False)
DRTRL = etrace.DRTRL


@functools.cache
def exact(*net: Any) -> Net:
    return RUN(etrace.RTRL(Net(*net)), None, XS, TARGETS)[1]


def lost(rule: Callable, *net: Any) -> list[str]:
    """What is said of lost credit, of a model that is seen for the first time."""
    after, *start = net
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rule(Net(functools.partial(after), *start)).init(XS[0])
    return [str(w.message) for w in caught if w.category is etrace.LostCreditWarning]


LOST = {
    "queue": (DRTRL, queued, QUEUE),
    "queue, read when it has moved": (DRTRL, read_from_the_new_queue, QUEUE),
    "count, read late": (DRTRL, counted_late),
    "filtered": (functools.partial(etrace.EProp, kappa=1), counted_late),
    "factored": (etrace.ESDRTRL, queued, QUEUE),
    "RFLO": (
        functools.partial(etrace.RFLO, leak=0.9, feedback="symmetric"),
        counted_late,
    ),
    "SnAp of one step": (etrace.SnAp, queued, QUEUE),
}


@pytest.mark.filterwarnings("ignore::etrace.LostCreditWarning")
@pytest.mark.parametrize("name", LOST)
def test_lost_credit_is_warned_of(name: str):
    rule, *net = LOST[name]
    (message,) = lost(rule, *net)
    assert "the past of .a, .w gets no credit" in message
    assert "[0]: no output of the same step reads it" in message
    assert "test_lost_credit.py" in message and "multi-step" in message
    got = RUN(rule(Net(*net)), None, XS, TARGETS)[1]
    assert not jnp.any(got.w) and not jnp.any(got.a)
    assert jnp.any(exact(*net).w) and jnp.any(exact(*net).a)


ARRIVING = {
    "read in the same step": (DRTRL, counted),
    "of no consequence": (DRTRL, watched),
    "the neurons' own queue": (DRTRL, own_queue, (2, N)),
    "RTRL": (etrace.RTRL, queued, QUEUE),
    "windows": (functools.partial(DRTRL, vjp_method="multi-step"), queued, QUEUE),
    "SnAp of two steps": (functools.partial(etrace.SnAp, n=2), queued, QUEUE),
    "random feedback": (
        functools.partial(etrace.EProp, feedback="random"),
        queued,
        QUEUE,
    ),
    "RFLO": (functools.partial(etrace.RFLO, leak=0.9), queued, QUEUE),
    "a modulator": (etrace.ThreeFactor, queued, QUEUE),
}


@pytest.mark.parametrize("name", ARRIVING)
def test_credit_that_arrives_is_not_warned_of(name: str):
    rule, *net = ARRIVING[name]
    assert not lost(rule, *net)
    if rule is not etrace.ThreeFactor:  # which needs one
        got = RUN(rule(Net(*net)), None, XS, TARGETS)[1]
        assert jnp.any(got.w)


@pytest.mark.filterwarnings("ignore::etrace.LostCreditWarning")
def test_the_report_and_the_check_say_so():
    alg = DRTRL(Net(queued, QUEUE))
    report = alg.graph(XS[0])
    why = "no output of the same step reads it"
    reasons = {row.parameter: row.reason for row in report.rows}
    assert why in reasons[".w"] and why in reasons[".a"] and not reasons[".out"]
    (loss,) = report.losses
    assert loss.what == ("[0]",) and loss.primitive == "dot_general"
    lines = str(report).splitlines()
    assert any(line.endswith("dot_general → group 1") for line in lines)
    assert any(line.endswith("  outputs") for line in lines)
    check = etrace.check_gradients(alg, et.squared_error, XS, TARGETS)
    with pytest.raises(AssertionError, match=why):
        check.assert_close()
    assert [bool(p.reason) for p in check.parameters] == [True, True, False]


def test_the_report_says_what_reads_a_group():
    text = str(DRTRL(Net(counted)).graph(XS[0]))
    assert "dot_general → group 1, outputs" in text
    assert "dot_general → group 1\n" in str(DRTRL(Net(watched)).graph(XS[0])) + "\n"


class Spiking(eqx.Module):
    """Neurons without recurrence whose spikes are summed by a read-out."""

    w: jax.Array
    out: jax.Array

    def init_state(self):
        return jnp.zeros(N), jnp.zeros(OUT)

    def __call__(self, state, x):
        v, count = state
        v = 0.8 * v + self.w @ x
        spike = etrace.nn.Sigmoid()(v - 0.3)
        count = count + self.out @ spike
        return count, (v - 0.3 * jax.lax.stop_gradient(spike), count)


class Integrating(eqx.Module):
    """Neurons that sum what comes in."""

    w: jax.Array
    out: jax.Array

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        h = h + self.w @ x
        return self.out @ jnp.tanh(h), h


PERFECT = {
    "EProp": (Spiking, functools.partial(etrace.EProp, kappa=1)),
    "OTPE": (Spiking, functools.partial(etrace.OTPE, leak=1)),
    "OTTT": (Integrating, functools.partial(etrace.OTTT, leak=1)),
    "RFLO": (
        Integrating,
        functools.partial(etrace.RFLO, leak=1.0, feedback="symmetric"),
    ),
}


@pytest.mark.parametrize("name", PERFECT)
def test_a_perfect_integrator_is_exact(name: str):
    kind, rule = PERFECT[name]
    net = Net(counted)
    model = kind(net.w, net.out)
    exact = RUN(etrace.RTRL(model), None, XS, TARGETS)[1]
    assert jnp.allclose(
        exact.w, et.bptt(model, et.squared_error, XS, TARGETS)[1].w, rtol=1e-9
    )
    got = RUN(rule(model), None, XS, TARGETS)[1]
    now = RUN(DRTRL(model), None, XS, TARGETS)[1].w
    assert jnp.allclose(got.w, exact.w, rtol=1e-9)
    assert jnp.allclose(got.out, exact.out, rtol=1e-9)
    assert kind is Integrating or not jnp.allclose(now, exact.w, rtol=1e-3)
