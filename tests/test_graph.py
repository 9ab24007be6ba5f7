"""The analysis: unmodified models, constructs of plain JAX, and the report."""

import functools
import gc
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.testing as et
from etrace._analysis import replicate as _replicate
from etrace._analysis.cache import forget
from etrace.nn import MGU, RNN

from .helpers import clear_caches, examples, spike

N, IN, OUT, STEPS = 4, 3, 2, 6


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return 0.5 * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def sequence(*shape: int) -> tuple[jax.Array, jax.Array]:
    return normal(STEPS, *shape, seed=1), normal(STEPS, OUT, seed=2)


def online(model: eqx.Module, inputs, targets, window: int = 2, **options):
    driver = etrace.value_and_grad(
        et.squared_error, window=window, reduction="sum", carry=False
    )
    return driver(etrace.DRTRL(model, **options), None, inputs, targets)[1]


def close(a: Any, b: Any) -> bool:
    return bool(et.gradient_distance(a, b) < 1e-9)


# ------------------------------------------------------------------- unmodified models


class Recurrent(eqx.Module):
    """Equinox cells as they are, one on top of the other, with a linear read-out."""

    cells: tuple[eqx.Module, ...]
    readout: eqx.nn.Linear

    def init_state(self):
        return tuple(
            (jnp.zeros(c.hidden_size),) * 2
            if isinstance(c, eqx.nn.LSTMCell)
            else jnp.zeros(c.hidden_size)
            for c in self.cells
        )

    def __call__(self, state, x):
        new = []
        for cell, s in zip(self.cells, state, strict=True):
            s = cell(x, s)
            x = s[0] if isinstance(s, tuple) else s
            new.append(s)
        return self.readout(x), tuple(new)


class ConvCell(eqx.Module):
    """A gated cell of two convolutions over an image."""

    gate: eqx.nn.Conv2d
    candidate: eqx.nn.Conv2d
    readout: eqx.nn.Linear

    def init_state(self):
        return jnp.zeros((2, 3, 3))

    def __call__(self, state, x):
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([x, state])))
        state = gate * state + (1 - gate) * jnp.tanh(self.candidate(x))
        return self.readout(state.reshape(-1)), state


class PreResetLIF(eqx.Module):
    """Its outputs are the spikes, which read the membrane before the reset."""

    inp: eqx.nn.Linear
    recurrent: jax.Array
    tau: jax.Array
    readout: jax.Array

    def init_state(self):
        return jnp.zeros(N), jnp.zeros(N)

    def __call__(self, state, x):
        mem, spk = state
        mem = jax.nn.sigmoid(self.tau) * mem + self.inp(x) + self.recurrent @ spk
        spk = spike(mem - 0.3, 10.0)
        mem = mem - spk * 0.3
        return self.readout @ spk, (mem, spk)


def unmodified(name: str) -> tuple[eqx.Module, tuple[int, ...]]:
    keys = jax.random.split(jax.random.key(0), 4)
    linear = eqx.nn.Linear(N, OUT, key=keys[0])
    gru = eqx.nn.GRUCell(IN, N, key=keys[1])
    lstm = eqx.nn.LSTMCell(IN, N, key=keys[1])
    match name:
        case "GRU":
            return Recurrent((gru,), linear), (IN,)
        case "LSTM":
            return Recurrent((lstm,), linear), (IN,)
        case "GRU on LSTM":
            return Recurrent((lstm, eqx.nn.GRUCell(N, N, key=keys[2])), linear), (IN,)
        case "conv":
            gate = eqx.nn.Conv2d(3, 2, 3, padding=1, key=keys[1])
            candidate = eqx.nn.Conv2d(1, 2, 3, padding=1, key=keys[2])
            readout = eqx.nn.Linear(18, OUT, key=keys[3])
            return ConvCell(gate, candidate, readout), (1, 3, 3)
        case _:
            inp = eqx.nn.Linear(IN, N, key=keys[1])
            parts = normal(N, N, seed=3), normal(N, seed=4), normal(OUT, N, seed=5)
            return PreResetLIF(inp, *parts), (IN,)


MODELS = ["GRU", "LSTM", "GRU on LSTM", "conv", "pre-reset LIF"]


@pytest.mark.parametrize("name", MODELS)
def test_unmodified_models_are_traced(name: str):
    model, shape = unmodified(name)
    inputs, targets = sequence(*shape)
    report = etrace.DRTRL(model).graph(inputs[0])  # a warning would be an error
    status = {row.parameter: row.status for row in report.rows}
    assert len(status) == len(jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
    for parameter, found in status.items():
        assert found == ("output" if "readout" in parameter else "traced")
    grads = online(model, inputs, targets)
    _, expected = et.bptt(model, et.squared_error, inputs, targets)
    assert close(grads.readout, expected.readout)
    _, now = et.truncated(model, et.squared_error, inputs, targets, window=1)
    assert et.gradient_distance(grads, now) > 1e-3


def test_lstm_remembers_the_cell_alone():
    model, _ = unmodified("LSTM")
    single = etrace.DRTRL(model).graph(jnp.zeros(IN))
    multi = etrace.DRTRL(model, vjp_method="multi-step").graph(jnp.zeros(IN))
    assert {s[0] for row in single.rows for s in row.trace_shapes} == {1}
    assert {s[0] for row in multi.rows for s in row.trace_shapes} == {2}


# -------------------------------------------------------------- constructs of plain JAX


class Plain(eqx.Module):
    """A step made of three weights and a function of them."""

    a: jax.Array
    b: jax.Array
    r: jax.Array
    step: Callable = eqx.field(static=True)
    start: Callable = eqx.field(static=True)

    def init_state(self):
        return self.start()

    def __call__(self, state, x):
        return self.step(self, state, x)


def plain(step: Callable, start: Callable = lambda: jnp.zeros(N)) -> Plain:
    a, b, r = normal(N, seed=3), normal(N, IN, seed=4), normal(OUT, N, seed=5)
    return Plain(a, b, r, step, start)


def vector_step(update: Callable) -> Callable:
    """A step of a state vector h, read out linearly."""

    def step(m, h, x):
        h = update(m, h, x)
        return m.r @ h, h

    return step


def leak(m, h):
    return jax.nn.sigmoid(m.a) * h


@pytest.mark.parametrize(
    "name", examples(ci=("GRU on LSTM", "conv"), thorough=tuple(MODELS))
)
def test_the_first_use_may_be_inside_jit(name: str):
    model, shape = unmodified(name)
    inputs, targets = sequence(*shape)
    expected = online(model, inputs, targets)
    clear_caches()
    forget()
    assert close(eqx.filter_jit(online)(model, inputs, targets), expected)


def test_a_warning_comes_once_per_model():
    model, (inputs, _) = (
        plain(vector_step(lambda m, h, x: jnp.cumsum(m.b @ x))),
        sequence(IN),
    )
    with pytest.warns(etrace.UntracedParameterWarning):
        etrace.DRTRL(model).init(inputs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        etrace.DRTRL(model).init(inputs[0])


class Masked(eqx.Module):
    """A weight of which a constant array says where it is zero."""

    weight: jax.Array
    mask: Any

    def init_state(self):
        return jnp.zeros(2)

    def __call__(self, state, x):
        state = 0.5 * state + jnp.where(self.mask, self.weight, 0) @ x
        return state, state


@pytest.mark.parametrize("array", [np.array, jnp.asarray])
def test_analysed_again_for_another_constant(array: Callable):
    """Also if a NumPy array is written to."""

    def traced(model) -> Any:
        return etrace.DRTRL(model).graph(jnp.zeros(2)).graph

    weight, mask = jnp.ones((2, 2)), array([[True, True], [True, False]])
    model = Masked(weight, mask)
    first = traced(model)
    assert traced(Masked(2 * weight, mask)) is first
    assert traced(Masked(weight, array([[True, True], [True, False]]))) is first
    assert traced(Masked(weight, array([[True, True], [True, True]]))) is not first
    if isinstance(mask, np.ndarray):
        mask[1, 1] = True
        assert traced(model) is not first


def test_no_weight_is_kept_alive():
    model = plain(vector_step(lambda m, h, x: leak(m, h) + m.b @ x))
    weight = weakref.ref(model.b)
    etrace.DRTRL(model).graph(jnp.zeros(IN))
    del model
    gc.collect()
    assert weight() is None


def test_lateral_coupling_is_cut_and_reported():
    """The neighbour's share is recurrence between neurons; the leak is traced."""

    def step(m, h, x, scale=0.3):
        h = leak(m, h) + scale * jnp.roll(h, 1) + m.b @ x
        return m.r @ h, h

    model, (inputs, targets) = plain(step), sequence(IN)
    # Of so few neurons a position may hold all, unless it is told otherwise.
    assert etrace.DRTRL(model).graph(inputs[0]).graph.positions.groups[0].size == 1
    report = etrace.DRTRL(model, position_size=1).graph(inputs[0])
    assert "position_size=4 follows it" in str(report)
    got = online(model, inputs, targets, position_size=1)

    def marked(m, h, x):
        h = leak(m, h) + 0.3 * jnp.roll(et.mixing_input(h, feeds=(0,)), 1) + m.b @ x
        return m.r @ h, h

    groups = (et.StateGroup(leaves=(0,)),)
    _, expected = et.dense_reference(
        plain(marked), et.squared_error, inputs, targets, groups=groups
    )[:2]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert jnp.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_what_another_layer_remembers_is_reported():
    """Behind a read-out that leaks, and between layers."""

    def step(m, state, x, smooth):
        h, y = state
        h = leak(m, h) + m.b @ x
        y = 0.9 * y + m.r @ h if smooth else m.r @ h
        return y, (h, y)

    for smooth in (True, False):
        model = plain(
            lambda m, state, x, smooth=smooth: step(m, state, x, smooth),
            lambda: (jnp.zeros(N), jnp.zeros(OUT)),
        )
        losses = etrace.DRTRL(model).graph(jnp.zeros(IN)).losses
        found = [x for x in losses if "remembers what it read" in x.reason]
        assert [x.what for x in found] == [("[0]",)] * smooth
        assert all(x.primitive == "dot_general" and "EProp" in x.remedy for x in found)
        assert not etrace.RTRL(model).graph(jnp.zeros(IN)).losses
        told = functools.partial(etrace.EProp, kappa=0.9)
        rules = [told, functools.partial(etrace.OTPE, leak=0.9)]
        for rule in (*rules, functools.partial(etrace.ThreeFactor, rule=told)):
            losses = rule(model).graph(jnp.zeros(IN)).losses
            (loss,) = losses
            assert loss.what == ("[0]",)
            assert ("was told" if smooth else "none does") in loss.reason


def test_a_group_that_is_reached_by_several_paths_is_reported():
    """Locally and by mixing: it is traced elsewhere only."""

    def step(m, state, x):
        a, b = state
        z = m.b @ x
        return m.r @ b, (a + z, b + z + jnp.cumsum(z))

    model = plain(step, lambda: (jnp.zeros(N), jnp.zeros(N)))
    with pytest.warns(etrace.UntracedParameterWarning, match="some groups"):
        report = etrace.DRTRL(model).graph(jnp.zeros(IN))
    (row,) = [row for row in report.rows if row.parameter == ".b"]
    assert row.status == "partly" and len(row.groups) == 1


def broadcast(m, state, x):
    """One drive to a neuron of each group, and to 40 of the other."""
    a, b = state
    z = m.b @ x
    return m.r @ (a + b.sum(1)), (leak(m, a) + z, 0.9 * b + jnp.tanh(z)[:, None])


def test_what_several_positions_share_has_a_trace_for_each():
    model = plain(broadcast, lambda: (jnp.zeros(N), jnp.zeros((N, 40))))
    inputs, targets = sequence(IN)
    exact = et.bptt(model, et.squared_error, inputs, targets, reduction="sum")[1]
    assert close(online(model, inputs, targets), exact)
    report = etrace.DRTRL(model).graph(inputs[0])
    rows = [row for row in report.rows if row.parameter == ".b"]
    assert all(row.status == "traced" for row in rows)
    shapes = [shape for row in rows for shape in row.trace_shapes]
    assert sorted(shapes) == [(1, 1, 1, N, IN), (1, 1, 40, N, IN)]


def test_traces_for_each_position_may_be_too_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_replicate, "MAX_TRACE", 40 * N * IN - 1)
    forget()
    model = plain(broadcast, lambda: (jnp.zeros(N), jnp.zeros((N, 40))))
    with pytest.warns(etrace.UntracedParameterWarning, match="several positions"):
        report = etrace.DRTRL(model).graph(jnp.zeros(IN))
    forget()
    (row,) = [row for row in report.rows if row.parameter == ".b"]
    assert row.status == "partly" and len(row.groups) == 1


def test_a_custom_derivative_that_mixes_is_not_trusted():
    """Elementwise forwards, but its derivative is not: no local path leads through."""

    @jax.custom_vjp
    def sly(u):
        return 2 * u

    sly.defvjp(lambda u: (2 * u, None), lambda _, g: (jnp.sum(g) + 0 * g,))
    model = plain(vector_step(lambda m, h, x: leak(m, h) + sly(m.b @ x)))
    with pytest.warns(etrace.UntracedParameterWarning):
        report = etrace.DRTRL(model).graph(jnp.zeros(IN))
    assert {r.parameter: r.status for r in report.rows}[".b"] == "now"


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
def test_indices_from_a_long_loop_over_constants():
    """JAX 0.6 cannot evaluate it while a step is analysed, newer releases do."""

    def step(m, h, x):
        _, numbers = jax.lax.scan(lambda n, _: (n + 1, n), 0, None, length=40)
        return leak(m, h) + (m.b @ x)[numbers[:N][::-1]]

    model = plain(vector_step(step))
    rows = etrace.DRTRL(model).graph(jnp.zeros(IN)).rows
    known = all(row.status in ("traced", "output") for row in rows)
    assert known or jax.__version__.startswith("0.6")
    inputs, targets = sequence(IN)
    found = online(model, inputs, targets)
    bptt = et.bptt(model, et.squared_error, inputs, targets, reduction="sum")[1]
    assert close(found, bptt) == known


# --------------------------------------------------------------------------- the report


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_reported_bytes_are_the_traces_bytes(name: str, dtype: Any):
    model, shape = unmodified(name)
    algorithm = etrace.DRTRL(model, batched=True, trace_dtype=dtype)
    example = jnp.zeros((5, *shape))
    report = algorithm.graph(example)
    *_, trace = algorithm.init(example)
    actual = sum(x.nbytes for x in jax.tree.leaves(trace))
    assert report.nbytes == actual == sum(row.nbytes for row in report.rows)
    assert report.batch == 5


def test_the_report_says_where_and_what():
    model, _ = unmodified("GRU")
    text = str(etrace.DRTRL(model, name="mine").graph(jnp.zeros(IN)))
    for part in (
        "mine",
        ".cells[0].weight_hh",
        "dot_general",
        "[12,4] [4] → [12]",
        "__call__)",
        "traced",
        "now (exact)",
        "the state enters its own recurrence",
        "Hidden groups",
    ):
        assert part in text


class Layered(eqx.Module):
    """A model made of layers of libraries."""

    cell: eqx.nn.GRUCell
    norm: eqx.nn.LayerNorm
    readout: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.cell = eqx.nn.GRUCell(IN, N, key=keys[0])
        self.norm = eqx.nn.LayerNorm(N)
        self.readout = eqx.nn.Linear(N, OUT, key=keys[1])

    def init_state(self) -> jax.Array:
        return jnp.zeros(N)

    def __call__(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = self.norm(self.cell(x, h))
        return self.readout(h), h


def test_lines_are_the_users_own():
    start = Layered.__call__.__code__.co_firstlineno
    with pytest.warns(etrace.UntracedParameterWarning) as caught:
        report = etrace.DRTRL(Layered()).graph(jnp.zeros(IN))
        here = inspect.currentframe().f_lineno - 1
    lines = {row.parameter: row.source.split(" ")[0] for row in report.rows}
    assert lines[".cell.weight_hh"] == f"test_graph.py:{start + 1}"
    assert lines[".norm.weight"] == f"test_graph.py:{start + 1}"
    assert lines[".readout.weight"] == f"test_graph.py:{start + 2}"
    assert (caught[0].filename, caught[0].lineno) == (__file__, here)
    # A model that is a library's as a whole.
    rows = etrace.DRTRL(RNN([MGU(IN, N, key=jax.random.key(0))])).graph(jnp.zeros(IN))
    assert all(row.source.startswith(("_gated.py", "_linear.py")) for row in rows.rows)


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
def test_functions_of_jax_are_at_the_line_that_calls_them():
    def normed(m, h, x):
        h = leak(m, h) + m.b @ x
        return h / jnp.var(h)

    # JAX traces its own functions once, whoever calls them.
    jax.make_jaxpr(jnp.var)(jnp.zeros(N))
    loss = etrace.DRTRL(plain(vector_step(normed))).graph(jnp.zeros(IN)).losses[-1]
    line = normed.__code__.co_firstlineno + 2
    assert loss.primitive == "reduce_sum"
    assert loss.source.startswith(f"test_graph.py:{line} ")


def test_every_occurrence_has_a_row():
    def twice(m, h, x):
        return leak(m, h) * m.a + m.b @ x + m.b @ (x * x)

    model = plain(vector_step(twice))
    rows = etrace.DRTRL(model).graph(jnp.zeros(IN)).rows
    found = sorted((row.parameter, row.times) for row in rows)
    assert found == [(".a", 1), (".a", 1), (".b", 2), (".r", 1)]


class Sparse(eqx.Module):
    """Synapses that are read and summed where the model's index arrays say."""

    synapses: jax.Array
    post: np.ndarray
    pre: np.ndarray

    def __init__(self):
        self.synapses = jnp.array([0.5, -0.3, 0.8])
        self.post, self.pre = np.array([0, 1, 1]), np.array([1, 0, 1])

    def init_state(self):
        return jnp.zeros(2)

    def __call__(self, h, x):
        drive = jax.ops.segment_sum(self.synapses * x[self.pre], self.post, 2)
        h = 0.9 * h + drive
        return h, h


def test_what_init_knew_is_known_inside_jit():
    """Index arrays are traced there, and the sums would be of who knows what."""
    xs, targets = jnp.ones((4, 2)), jnp.zeros((4, 2))
    driver = etrace.value_and_grad(et.squared_error, window=1)
    algorithm = etrace.DRTRL(Sparse())
    state = algorithm.init(xs[0])
    _, expected, _ = driver(algorithm, algorithm.init(xs[0]), xs, targets)
    _, grads, _ = eqx.filter_jit(driver)(algorithm, state, xs, targets)
    assert close(grads.synapses, expected.synapses)
    with pytest.warns(etrace.UntracedParameterWarning, match="synapses"):
        eqx.filter_jit(driver)(algorithm, None, xs, targets)
