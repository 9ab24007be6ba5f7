"""Solvers that take several substeps in one step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import etrace

from .program import IN, INPUTS, N, Net, Program, U, W, check, errors, normal, online

WEIGHTS = {"w": W, "tau": jnp.array(0.4), "g": jnp.linspace(0.5, 1.0, N)}


def start() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros(N), jnp.full(N, 0.1)


def neuron(w, state, drive):
    """One substep: a voltage and a gate, conductances and a time constant."""
    v, m = state
    m = m + 0.05 * jax.nn.sigmoid(w["tau"]) * (jax.nn.sigmoid(v) - m)
    return v + 0.05 * (w["g"] * m**3 * (1 - v) - 0.1 * v + drive), m


def scanned(rounds: int) -> Callable:
    def step(w, state, x):
        substep = lambda s, _: (neuron(w, s, w["w"] @ x), None)  # noqa: E731
        state = lax.scan(substep, state, None, length=rounds)[0]
        return state[0], state

    return step


def looped(rounds: int) -> Callable:
    def step(w, state, x):
        substep = jax.jit(lambda i, s: neuron(w, s, w["w"] @ x))
        state = lax.fori_loop(0, rounds, substep, state)
        return state[0], state

    return step


def written_out(rounds: int) -> Callable:
    def step(w, state, x):
        for _ in range(rounds):
            state = neuron(w, state, w["w"] @ x)
        return state[0], state

    return step


def of_every_substep(w, state, x):
    """Inputs, noise and a spike of every substep; from the last to the first."""
    keys = jax.random.split(jax.random.key(0), 3)

    def substep(state, now):
        x, key = now
        noise = 0.1 * jax.random.normal(key, (N,))
        state = neuron(w, state, jnp.tanh(w["w"] @ x) + noise)
        return state, (jax.nn.sigmoid(3 * state[0]), w["w"] @ x)

    xs = jnp.stack([x, 0.5 * x, -x])
    state, (spikes, drive) = lax.scan(substep, state, (xs, keys), reverse=True)
    return jnp.mean(spikes, axis=0) + 0.1 * drive[-1], state


def compartments(w, state, x):
    """Two compartments a neuron, in one array."""
    drive = w["w"] @ x

    def substep(v, _):
        exchange = w["g"][:, None] * (v[:, ::-1] - v)
        outside = jnp.stack([drive, jnp.zeros(N)], axis=1)
        return v + 0.1 * (outside - v + exchange), None

    v = lax.scan(substep, state, None, length=4)[0]
    return v[:, 1], v


def recurrent(w, h, x):
    """The recurrent product in every substep."""
    drive = w["w"] @ x

    def substep(h, _):
        pull = jnp.tanh(drive + w["u"] @ h) - h
        return h + 0.3 * jax.nn.sigmoid(w["tau"]) * pull, None

    h = lax.scan(substep, h, None, length=3)[0]
    return h, h


EXACT = {
    "scanned": Program(scanned(4), WEIGHTS, start),
    "many": Program(scanned(60), WEIGHTS, start),
    "by fori_loop and jit": Program(looped(5), WEIGHTS, start),
    "inputs of every substep": Program(of_every_substep, WEIGHTS, start),
    "compartments": Program(compartments, WEIGHTS, lambda: jnp.zeros((N, 2))),
}


@pytest.mark.parametrize("name", EXACT)
def test_gradients(name: str):
    check(EXACT[name])


def rows(step: Callable, weights: dict[str, Any], state: Callable) -> list[tuple]:
    report = etrace.DRTRL(Net(weights, step, state)).graph(INPUTS[0])
    return [(r.parameter, r.status, r.trace_shapes, r.nbytes) for r in report.rows]


def test_a_loop_stays_a_loop():
    """However many rounds it has, of a form in which a weight has one trace."""

    def equations(step: Callable) -> int:
        graph = etrace.DRTRL(Net(WEIGHTS, step, start)).graph(INPUTS[0]).graph
        assert sum(e.name == "scan" for e in graph.program.equations) == 1
        return len(graph.program.equations)

    assert len({equations(scanned(n)) for n in (2, 20, 60)}) == 1
    traced = ("traced", ((2, 1, 1, N, IN),), 8 * 2 * N * IN)
    for step in (scanned(4), looped(4), of_every_substep):
        found = {name: own for name, *own in rows(step, WEIGHTS, start)}
        assert set(found) == {f".weights['{name}']" for name in WEIGHTS}
        if step is not of_every_substep:
            assert tuple(found[".weights['w']"]) == traced


@pytest.mark.parametrize("rounds", [1, 4])
def test_loops_are_what_is_written_out(rounds: int):
    models = [
        Net(WEIGHTS, step(rounds), start) for step in (written_out, scanned, looped)
    ]
    want, *others = (eqx.filter_jit(online)(etrace.DRTRL(m), INPUTS, 2) for m in models)
    for found in others:
        assert max(errors(found, want).values()) < 1e-12


def test_uses_of_a_weight_share_a_trace():
    weights = {"w": W, "u": U, "tau": jnp.linspace(0.0, 1.0, N)}
    check(Program(recurrent, weights, exact=False))
    report = etrace.DRTRL(Net(weights, recurrent, lambda: jnp.zeros(N))).graph(
        INPUTS[0]
    )
    found = {r.parameter[10:-2]: r for r in report.rows}
    assert {r.status for r in report.rows} == {"traced"} and len(report.rows) == 3
    assert [found[n].uses for n in ("w", "u", "tau")] == [1, 3, 3]
    assert [found[n].nbytes for n in ("w", "u", "tau")] == [
        8 * N * IN,
        8 * N * N,
        8 * N,
    ]
    assert "[1,1,1,4,4] of 3 uses" in str(report)


@pytest.mark.parametrize(
    "rule", [etrace.DRTRL, etrace.OSTL, etrace.HybridDRTRL, etrace.ESDRTRL]
)
def test_a_shared_trace_is_the_sum_of_several(rule: type):
    """A weight read twice, and two weights of the same value read once each."""

    def twice(w, h, x):
        z = w["w"] @ x + w["w"] @ jnp.roll(x, 1) ** 2
        h = jax.nn.sigmoid(w["a"]) * (0.9 * h + z) + 0.1 * w["a"] * z
        return h, h

    def apart(w, h, x):
        z = w["w1"] @ x + w["w2"] @ jnp.roll(x, 1) ** 2
        h = jax.nn.sigmoid(w["a"]) * (0.9 * h + z) + 0.1 * w["a"] * z
        return h, h

    a, state = normal(N, seed=5), lambda: jnp.zeros(N)
    one = rule(Net({"w": W, "a": a}, twice, state))
    two = rule(Net({"w1": W, "w2": W, "a": a}, apart, state))
    for window in (1, 3):
        found = online(one, INPUTS, window)
        want = online(two, INPUTS, window)
        want = {"w": want["w1"] + want["w2"], "a": want["a"]}
        assert max(errors(found, want).values()) < 1e-12


def test_neurons_of_two_groups_share_no_trace():
    """Though they are as many, and read the weight in the same way."""

    def step(w, state, x):
        slow, fast = state
        slow, fast = 0.9 * slow + w["w1"] @ x, jnp.tanh(0.3 * fast + w["w2"] @ x)
        return jnp.concatenate([slow, fast]), (slow, fast)

    def tied(w, state, x):
        return step({"w1": w["w"], "w2": w["w"]}, state, x)

    state = lambda: (jnp.zeros(N), jnp.zeros(N))  # noqa: E731
    one = etrace.DRTRL(Net({"w": W}, tied, state))
    assert len(one.graph(INPUTS[0]).graph.traces) == 2
    two = etrace.DRTRL(Net({"w1": W, "w2": W}, step, state))
    want = online(two, INPUTS, 1)
    found = online(one, INPUTS, 1)
    assert max(errors(found, {"w": want["w1"] + want["w2"]}).values()) < 1e-12
