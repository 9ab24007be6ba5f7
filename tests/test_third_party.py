"""Cells that others wrote, from PyPI, as they are.

Each has a wrapper of a few lines to fit the protocol. What etrace says about its
parameters is compared with its equations, the gradient with BPTT and, where the
recurrence goes through other neurons, with a recursion on full Jacobians.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import etrace
import etrace.nn as nn
import etrace.testing as et

from .helpers import spike

N, OUT, STEPS = 4, 2, 7
SLOPE = 2.0  # of the surrogate gradient of spikes
KEYS = jax.random.split(jax.random.key(0), 6)
INPUTS = jax.random.normal(KEYS[0], (STEPS, N))
TARGETS = jax.random.normal(KEYS[1], (STEPS, OUT))

pytestmark = pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")


@pytest.fixture(autouse=True)
def _promotion_as_others_expect_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# ------------------------------------------------------------- the cells, and wrappers


class Memax(eqx.Module):
    """A layer of memax, called with a sequence of one step."""

    cell: Any

    def init_state(self):
        # That of its LRU is of single precision, whatever the parameters are.
        state, started = self.cell.initialize_carry()
        wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float64))  # noqa: E731
        return jax.tree.map(wide, state), started

    def __call__(self, state, x):
        states, y = self.cell(state, (x[None], jnp.zeros(1, bool)))
        return y[0], self.cell.latest_recurrent_state(states)


class Jaxpike(eqx.Module):
    """A network of jaxpike."""

    network: Any

    def init_state(self):
        return self.network.init_state((N,))

    def __call__(self, state, x):
        state, y = self.network(state, x)
        return y, state


class Megalodon(eqx.Module):
    """The moving average of megalodon-jax, called with a batch of one sequence of one
    step."""

    cell: Any

    def init_state(self):
        return jnp.zeros((1, N, self.cell.ndim), jnp.complex64)

    def __call__(self, state, x):
        y, state = self.cell(x[None, :, None], state, return_state=True)
        return y[0, :, 0], state


def memax(module: str, name: str, *sizes: int) -> Callable:
    def make():
        cells = pytest.importorskip(f"memax.equinox.{module}")
        return Memax(getattr(cells, name)(*sizes, key=KEYS[2]))

    return make


def jaxpike(neuron: str, *taus: float, layers: int = 1, **options: Any) -> Callable:
    def make():
        jp = pytest.importorskip("jaxpike")
        keys = jax.random.split(KEYS[3], layers)
        parts = [
            part
            for key in keys
            for part in (
                jp.Dense(N, N, key=key, gain=8.0),
                getattr(jp, neuron)(
                    *(jnp.full(N, tau) for tau in taus),
                    surrogate=jp.FastSigmoid(SLOPE),
                    **options,
                ),
            )
        ]
        return Jaxpike(jp.Sequential(*parts))

    return make


def megalodon() -> Any:
    layers = pytest.importorskip("megalodon_jax.layers.complex_ema")
    return Megalodon(layers.ComplexEMA(N, 3, key=KEYS[2]))


# -------------------------------------------------------------- what is known about it


class Case(NamedTuple):
    """A cell, and what its equations say."""

    make: Callable[[], Any]
    traced: set[str]  # parameters that reach the state position by position
    now: set[str] = set()  # those that reach it through other neurons alone
    output: set[str] = set()  # those that reach no state
    exact: bool = True  # whether the recurrence is position-local
    tolerance: float = 1e-10


def affine(*names: str) -> set[str]:
    return {f".{name}.{part}" for name in names for part in ("weight", "bias")}


CELL = "algebra.algebra"  # where memax keeps the recurrence of a layer
CASES = {
    "memax LRU": Case(
        memax("semigroups.lru", "LRU", N, N),
        {".nu_log", ".theta_log", ".gamma_log", ".B_re", ".B_im"},
        output={".C_re", ".C_im", ".D"},
    ),
    "memax S6": Case(
        memax("semigroups.s6", "S6", N, N),
        {".A_log", *affine("B", "dt.layers[0]")},
        output=affine("C"),
    ),
    "memax LSTM": Case(
        memax("set_actions.lstm", "LSTM", N),
        affine(*(f"{CELL}.W_{g}" for g in "fioc"))
        | {f".{CELL}.U_{g}.weight" for g in "fioc"},
        exact=False,
    ),
    "memax GRU": Case(
        memax("set_actions.gru", "GRU", N),
        affine(f"{CELL}.W_z", f"{CELL}.W_h")
        | {f".{CELL}.U_z.weight", f".{CELL}.U_h.weight"},
        now=affine(f"{CELL}.W_r") | {f".{CELL}.U_r.weight"},
        exact=False,
    ),
    "memax MGU": Case(
        memax("set_actions.mgu", "MGU", N),
        affine(f"{CELL}.W_f", f"{CELL}.W_h")
        | {f".{CELL}.U_f.weight", f".{CELL}.U_h.weight"},
        exact=False,
    ),
    "jaxpike LIF": Case(
        jaxpike("LIF", 5.0),
        affine("layers[0]") | {".layers[1].log_tau"},
        tolerance=1e-5,  # its states are of single precision always
    ),
    "jaxpike ALIF": Case(
        jaxpike("ALIF", 5.0, 20.0, reset="zero"),
        affine("layers[0]") | {".layers[1].log_tau", ".layers[1].log_tau_a"},
        tolerance=1e-5,
    ),
    "jaxpike, two layers": Case(
        jaxpike("LIF", 5.0, layers=2),
        affine("layers[0]", "layers[2]") | {".layers[1].log_tau", ".layers[3].log_tau"},
        exact=False,
        tolerance=1e-5,
    ),
    "megalodon ComplexEMA": Case(
        megalodon,
        {".alpha", ".delta", ".theta"},
        output={".gamma_real", ".gamma_imag", ".omega"},
        tolerance=1e-5,
    ),
}


def model(case: Case) -> nn.RNN:
    return nn.RNN([case.make()], eqx.nn.Linear(N, OUT, key=KEYS[4]))


def gradient(net: nn.RNN, method: str, window: int) -> Any:
    driver = etrace.value_and_grad(
        et.squared_error, window=window, reduction="sum", carry=False
    )
    return driver(etrace.DRTRL(net, None, method), None, INPUTS, TARGETS)[1]


def without_prefix(parameter: str) -> str:
    for prefix in (".cells[0].cell", ".cells[0].network"):
        parameter = parameter.removeprefix(prefix)
    return parameter


@pytest.mark.parametrize("name", CASES)
def test_the_report(name):
    """Of every parameter, where it has a path to the state at all."""
    case = CASES[name]
    net = model(case)
    found: dict[str, set[str]] = {}
    for row in etrace.DRTRL(net).graph(INPUTS[0]).rows:
        found.setdefault(without_prefix(row.parameter), set()).add(row.status)
    # A parameter can meet data that reach no state at another place as well.
    found = {k: v - {"output"} or v for k, v in found.items()}
    expected = {
        **dict.fromkeys(case.traced, {"traced"}),
        **dict.fromkeys(case.now, {"now"}),
        **dict.fromkeys(case.output | affine("readout"), {"output"}),
    }
    assert found == expected
    params = eqx.filter(net, eqx.is_inexact_array)
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)
    ]
    assert set(map(without_prefix, paths)) == set(expected)


@pytest.mark.parametrize("name", CASES)
def test_a_whole_window_is_bptt(name):
    net = model(CASES[name])
    _, expected = et.bptt(net, et.squared_error, INPUTS, TARGETS)
    got = gradient(net, "multi-step", STEPS)
    assert et.gradient_distance(got, expected) < CASES[name].tolerance


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].exact])
def test_single_steps_are_bptt(name):
    """Of one layer with a position-local recurrence."""
    net = model(CASES[name])
    got = gradient(net, "single-step", 3)
    _, expected = et.bptt(net, et.squared_error, INPUTS, TARGETS)
    _, now = et.truncated(net, et.squared_error, INPUTS, TARGETS)
    assert et.gradient_distance(got, expected) < CASES[name].tolerance
    assert et.gradient_distance(expected.cells, now.cells) > 1e-2


# ------------------------------------------------- what D-RTRL is, on the equations


class Reference(NamedTuple):
    """The equations of a model: `step(params, own, others, x)` is the output and the
    new state, where a neuron reads its own past from `own` and that of others, through
    recurrent weights, from `others`. `local` is the same with gradients stopped where a
    weight acts on what enters the recurrence. `groups` says which neurons stand
    together, one number for each element of the state; `group_of` the group of a
    parameter's trace, None for one without."""

    params: dict[str, jax.Array]
    step: Callable
    state: jax.Array
    groups: np.ndarray
    group_of: Callable[[str], int | None]
    local: Callable


def dense(ref: Reference) -> dict[str, jax.Array]:
    """M = D M + I on full Jacobians, D and I masked; now + (∂L/∂own) M."""
    flat, restore = ravel_pytree(ref.params)
    groups = {name: ref.group_of(name) for name in ref.params}
    labels = ravel_pytree(
        {
            name: jnp.full(x.shape, -1 if groups[name] is None else groups[name])
            for name, x in ref.params.items()
        }
    )[0]
    keep_m = ref.groups[:, None] == np.asarray(labels)[None]
    keep_d = ref.groups[:, None] == ref.groups[None]

    def new(flat, own, others, x):
        return ref.local(restore(flat), own, others, x)[1]

    def loss(flat, own, others, x, target):
        return et.squared_error(ref.step(restore(flat), own, others, x)[0], target)

    @jax.jit
    def advance(influence, state, x, target):
        now, signal = jax.grad(loss, (0, 1))(flat, state, state, x, target)
        immediate, d = jax.jacrev(new, (0, 1))(flat, state, state, x)
        gradient = now + signal @ influence
        influence = keep_m * ((keep_d * d) @ influence + immediate)
        return gradient, influence, new(flat, state, state, x)

    total, influence, state = 0.0, jnp.zeros(keep_m.shape), ref.state
    for x, target in zip(INPUTS, TARGETS):
        gradient, influence, state = advance(influence, state, x, target)
        total = total + gradient
    return restore(total)


def named(net: nn.RNN) -> dict[str, jax.Array]:
    """Parameters by the last part of their name: `W_f.weight`, `layers[1].log_tau`."""
    leaves = jax.tree.leaves_with_path(eqx.filter(net, eqx.is_inexact_array))
    names = (without_prefix(jax.tree_util.keystr(path)) for path, _ in leaves)
    return {
        name.removeprefix(f".{CELL}").removeprefix("."): x
        for name, (_, x) in zip(names, leaves, strict=True)
    }


def linear(p, name, x):
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def lstm(p, own, others, x):
    (c, _), (_, h) = jnp.split(own, 2), jnp.split(others, 2)
    z = {g: linear(p, f"W_{g}", x) + p[f"U_{g}.weight"] @ h for g in "fioc"}
    sigma = jax.nn.sigmoid
    c = sigma(z["f"]) * c + sigma(z["i"]) * jnp.tanh(z["c"])
    h = sigma(z["o"]) * c
    return linear(p, "readout", h), jnp.concatenate([c, h])


def gru(p, own, others, x):
    z = jax.nn.sigmoid(linear(p, "W_z", x) + p["U_z.weight"] @ others)
    r = jax.nn.sigmoid(linear(p, "W_r", x) + p["U_r.weight"] @ others)
    new = jnp.tanh(linear(p, "W_h", x) + p["U_h.weight"] @ (r * others))
    h = (1 - z) * own + z * new
    return linear(p, "readout", h), h


def mgu(p, own, others, x, enters=lambda f: f):
    f = jax.nn.sigmoid(linear(p, "W_f", x) + p["U_f.weight"] @ others)
    new = jnp.tanh(linear(p, "W_h", x) + p["U_h.weight"] @ (enters(f) * others))
    h = (1 - f) * own + f * new
    return linear(p, "readout", h), h


def two_lif_layers(p, own, others, x):
    new = []
    for i, v in zip((0, 2), jnp.split(own, 2)):
        keep = jnp.exp(-1 / jnp.exp(p[f"layers[{i + 1}].log_tau"]))
        v = keep * v + (1 - keep) * linear(p, f"layers[{i}]", x)
        x = spike(v - 1, SLOPE)
        new.append(v - x)
    return linear(p, "readout", x), jnp.concatenate(new)


def single_group(name: str) -> int | None:
    """For memax: no trace for the read-out, nor for what acts only before a product."""
    return None if name.startswith(("readout", "W_r", "U_r")) else 0


def lif_group(name: str) -> int | None:
    return {"layers[0": 0, "layers[1": 0, "layers[2": 1, "layers[3": 1}.get(name[:8])


REFERENCES = {
    "memax LSTM": (lstm, np.zeros(2 * N), single_group),
    "memax GRU": (gru, np.zeros(N), single_group),
    "memax MGU": (
        mgu,
        np.zeros(N),
        single_group,
        functools.partial(mgu, enters=jax.lax.stop_gradient),
    ),
    "jaxpike, two layers": (two_lif_layers, np.repeat([0, 1], N), lif_group),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_single_steps_are_the_dense_recursion(name):
    net = model(CASES[name])
    step, groups, group_of, *local = REFERENCES[name]
    params = {k: x.astype(float) for k, x in named(net).items()}
    state, own = jnp.zeros(len(groups)), (local or [step])[0]
    ref = Reference(params, step, state, groups, group_of, own)
    steps = gradient(net, "single-step", 3)
    expected, got = dense(ref), named(steps)
    _, exact = et.bptt(net, et.squared_error, INPUTS, TARGETS)
    _, now = et.truncated(net, et.squared_error, INPUTS, TARGETS)
    assert expected.keys() == got.keys()
    assert et.gradient_distance(got, expected) < CASES[name].tolerance
    for other in (exact, now):
        assert et.gradient_distance(steps.cells, other.cells) > 1e-2
