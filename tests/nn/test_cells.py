"""Rate-based cells: their equations, how they start, and that they learn online."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.nn as nn
import etrace.testing as et

from ..mistakes import refused
from . import equations

IN, N, STEPS = 3, 4, 6
KEY = jax.random.key(0)

# Each cell: how it is made, its equations, and the parameters that reach no state.
TAU = np.array([2.0, 3.0, 5.0, 9.0])
CELLS = {
    "vanilla": (lambda: nn.VanillaRNN(IN, N, key=KEY), equations.vanilla, ()),
    "ctrnn": (lambda: nn.CTRNN(IN, N, tau=TAU, key=KEY), equations.ctrnn, ()),
    "trained ctrnn": (
        lambda: nn.CTRNN(IN, N, tau=jnp.array(TAU), key=KEY),
        equations.ctrnn,
        (),
    ),
    "leaky": (
        lambda: nn.CTRNN(IN, N, tau=jnp.array(4.0), recurrent=False, key=KEY),
        equations.ctrnn,
        (),
    ),
    "indrnn": (lambda: nn.IndRNN(IN, N, key=KEY), equations.indrnn, ()),
    "mgu": (lambda: nn.MGU(IN, N, key=KEY), equations.mgu, ()),
    "mingru": (lambda: nn.MinGRU(IN, N, key=KEY), equations.mingru, ()),
    "minlstm": (lambda: nn.MinLSTM(IN, N, key=KEY), equations.minlstm, ()),
    "elstm": (
        lambda: nn.ELSTM(IN, N, key=KEY),
        equations.elstm,
        (".weight_io", ".weight_ho", ".bias_o"),
    ),
    "lru": (lambda: nn.LRU(IN, N, key=KEY), equations.lru, (".C_re", ".C_im", ".D")),
    "s4d": (
        lambda: nn.S4D(IN, N, dt_min=0.1, dt_max=0.5, key=KEY),
        equations.s4d,
        (".C_re", ".C_im", ".D"),
    ),
    "convgru": (lambda: nn.ConvGRU((2, 5), 3, 3, key=KEY), equations.convgru, ()),
    "convlstm": (
        lambda: nn.ConvLSTM((1, 3, 2), 2, (3, 2), key=KEY),
        equations.convlstm,
        (),
    ),
    "3d": (lambda: nn.ConvLSTM((1, 2, 2, 3), 1, 2, key=KEY), equations.convlstm, ()),
}
# What a neuron's state does goes through other neurons alone, or partly.
MIXING = ["vanilla", "ctrnn", "trained ctrnn", "mgu", "convgru", "convlstm", "3d"]


def make(name):
    """The layer, no parameter left at zero or at what it shares with others."""
    layer = CELLS[name][0]()
    params, rest = eqx.partition(layer, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return eqx.combine(treedef.unflatten(moved), rest)


def data(layer):
    """Inputs, and targets for the outputs."""
    k1, k2 = jax.random.split(jax.random.key(2))
    inputs = jax.random.normal(k1, (STEPS, *getattr(layer, "input_shape", (IN,))))
    output, _ = eqx.filter_eval_shape(layer, layer.init_state(), inputs[0])
    return inputs, jax.random.normal(k2, (STEPS, *output.shape))


@pytest.mark.parametrize("name", CELLS)
def test_equations(name):
    layer, (inputs, _) = make(name), data(make(name))
    state = layer.init_state()
    last, outputs = jax.lax.scan(lambda s, x: layer(s, x)[::-1], state, inputs)

    equation = CELLS[name][1]
    layer, state, inputs = jax.tree.map(
        lambda x: np.asarray(x) if eqx.is_array(x) else x, (layer, state, inputs)
    )
    expected = []
    for x in inputs:
        y, state = equation(layer, state, x)
        expected.append(y)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-14)
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------- learned online


class Cut(eqx.Module):
    """A recurrent weight that passes no gradient on to the state."""

    weight: jax.Array | eqx.nn.Conv

    def __matmul__(self, h):
        return self.weight @ jax.lax.stop_gradient(h)

    def __call__(self, h):
        return self.weight(jax.lax.stop_gradient(h))


def cut(layer):
    """The layer, its neurons blind for what becomes of their state in others.

    For one layer, D-RTRL is backpropagation through this.
    """
    if hasattr(layer, "conv_hh"):
        return eqx.tree_at(lambda layer: layer.conv_hh, layer, replace_fn=Cut)
    return eqx.tree_at(lambda layer: layer.weight_hh, layer, replace_fn=Cut)


def online(layer, inputs, targets, method="single-step", window=2):
    driver = etrace.value_and_grad(
        et.squared_error, window=window, reduction="sum", carry=False
    )
    return driver(etrace.DRTRL(layer, None, method), None, inputs, targets)[1]


@pytest.mark.parametrize("name", CELLS)
def test_learned_online(name):
    """A window as long as the sequence is BPTT; single steps are D-RTRL, and the past
    is part of them."""
    layer = make(name)
    inputs, targets = data(layer)
    _, exact = et.bptt(layer, et.squared_error, inputs, targets)
    whole = online(layer, inputs, targets, "multi-step", STEPS)
    assert et.gradient_distance(whole, exact) < 1e-12

    steps = online(layer, inputs, targets)
    _, now = et.truncated(layer, et.squared_error, inputs, targets)
    expected = exact
    if name in MIXING:
        _, expected = et.bptt(cut(layer), et.squared_error, inputs, targets)
        assert et.gradient_distance(steps, exact) > 1e-2
        leaves = jax.tree.leaves(expected)  # one of them lies one level deeper
        expected = jax.tree.structure(steps).unflatten(leaves)
    assert et.gradient_distance(steps, expected) < 1e-12
    if name == "vanilla":  # nothing of its state stays with a neuron
        assert et.gradient_distance(steps, now) < 1e-12
    else:
        assert et.gradient_distance(steps, now) > 1e-2


@pytest.mark.parametrize("name", CELLS)
def test_every_parameter_is_traced(name):
    """But for those that reach no state."""
    layer = make(name)
    inputs, _ = data(layer)
    found = {}  # a warning would be an error
    for row in etrace.DRTRL(layer).graph(inputs[0]).rows:
        found.setdefault(row.parameter, set()).add(row.status)
    params = eqx.filter(layer, eqx.is_inexact_array)
    names = map(jax.tree_util.keystr, dict(jax.tree.leaves_with_path(params)))
    outputs = CELLS[name][2]
    expected = {n: {"output" if n in outputs else "traced"} for n in names}
    assert found == expected


# -------------------------------------------------------------------------- the start


def test_initial_weights():
    """Inputs and states keep their variance."""
    layer = nn.MGU(200, 100, key=KEY)
    assert layer.weight_ih.var() * 200 == pytest.approx(1, rel=0.05)
    for u in jnp.split(layer.weight_hh, 2):
        np.testing.assert_allclose(u.T @ u, np.eye(100), atol=1e-12)
    assert not layer.bias.any()
    assert nn.VanillaRNN(200, 100, key=KEY).weight_ih.var() * 200 == pytest.approx(
        1, rel=0.05
    )
    u = nn.IndRNN(3, 1000, key=KEY).weight_hh
    assert 0 <= u.min() and u.max() < 1 and u.mean() == pytest.approx(0.5, rel=0.05)


def test_forget_bias():
    bias = nn.ConvLSTM((2, 4), 3, 3, key=KEY).conv_ih.bias[:, 0]
    assert bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6


def test_lru_starts_in_its_ring():
    layer = nn.LRU(3, 4000, r_min=0.8, r_max=0.9, max_phase=0.3, key=KEY)
    radius = np.exp(-np.exp(layer.nu_log))
    assert radius.min() >= 0.8 and radius.max() <= 0.9
    assert (radius**2).mean() == pytest.approx((0.8**2 + 0.9**2) / 2, rel=0.01)
    phase = np.exp(layer.theta_log)
    assert 0 <= phase.min() and phase.max() <= 0.3
    np.testing.assert_allclose(np.exp(layer.gamma_log), np.sqrt(1 - radius**2))


def test_lru_keeps_the_variance():
    """Of white noise, in the state and in what is read out from it."""
    layer = nn.LRU(50, 400, r_min=0.5, r_max=0.9, key=KEY)
    inputs = jax.random.normal(KEY, (400, 50))

    def step(h, x):
        y, h = layer(h, x)
        return h, (y - layer.D * x, h)

    _, (read, states) = jax.lax.scan(step, layer.init_state(), inputs)
    assert jnp.mean(jnp.abs(states[50:]) ** 2) == pytest.approx(1, rel=0.1)
    assert jnp.var(read[50:]) == pytest.approx(1, rel=0.1)


def test_s4d_starts_as_s4d_lin():
    layer = nn.S4D(500, 4, key=KEY)
    np.testing.assert_allclose(np.exp(layer.A_re_log), 0.5)
    np.testing.assert_allclose(layer.A_im[7], np.pi * np.arange(4))
    dt = layer.dt_log
    assert np.log(1e-3) <= dt.min() and dt.max() <= np.log(1e-1)
    assert dt.mean() == pytest.approx(np.log(1e-2), rel=0.03)


@pytest.mark.parametrize("name", ["ctrnn", "elstm", "convlstm"])
def test_cast(name):
    """A layer can be cast as a whole: its state follows."""
    layer = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, make(name)
    )
    inputs = data(make(name))[0].astype(jnp.bfloat16)
    output, state = layer(layer.init_state(), inputs[0])
    for x in jax.tree.leaves((layer.init_state(), output, state)):
        assert x.dtype == jnp.bfloat16


SMALL = {
    "vanilla": lambda dtype: nn.VanillaRNN(3, 4, dtype=dtype, key=KEY),
    "ctrnn": lambda dtype: nn.CTRNN(3, 4, tau=jnp.ones(4), dtype=dtype, key=KEY),
    "indrnn": lambda dtype: nn.IndRNN(3, 4, dtype=dtype, key=KEY),
    "mgu": lambda dtype: nn.MGU(3, 4, dtype=dtype, key=KEY),
    "mingru": lambda dtype: nn.MinGRU(3, 4, dtype=dtype, key=KEY),
    "minlstm": lambda dtype: nn.MinLSTM(3, 4, dtype=dtype, key=KEY),
    "elstm": lambda dtype: nn.ELSTM(3, 4, dtype=dtype, key=KEY),
    "lru": lambda dtype: nn.LRU(3, 4, dtype=dtype, key=KEY),
    "s4d": lambda dtype: nn.S4D(3, 4, dtype=dtype, key=KEY),
    "convgru": lambda dtype: nn.ConvGRU((3, 4), 2, 3, dtype=dtype, key=KEY),
    "convlstm": lambda dtype: nn.ConvLSTM((3, 4), 2, 3, dtype=dtype, key=KEY),
}


@pytest.mark.parametrize("name", SMALL)
def test_dtype(name):
    """Of parameters, states and outputs; by default JAX's own."""
    dtypes = [jnp.float64, jnp.float32]
    if name not in ("lru", "s4d"):  # there is no complex number of half precision
        dtypes.append(jnp.bfloat16)
    layers = [SMALL[name](None), *map(SMALL[name], dtypes[1:])]
    for layer, dtype in zip(layers, dtypes, strict=True):
        start = layer.init_state()
        shape = getattr(layer, "input_shape", (3,))
        output, state = eqx.filter_eval_shape(layer, start, jnp.zeros(shape, dtype))
        params = jax.tree.leaves(eqx.filter(layer, eqx.is_inexact_array))
        parts = [jnp.finfo(x.dtype).dtype for x in jax.tree.leaves((start, state))]
        assert {*(x.dtype for x in params), *parts, output.dtype} == {jnp.dtype(dtype)}


# ------------------------------------------------------------------------- mistakes

MISTAKES = {
    "a size of zero": (
        lambda: nn.MGU(0, 4, key=KEY),
        ValueError,
        "input_size is 0; expected a positive integer",
    ),
    "a size that is none": (
        lambda: nn.LRU(3, 4.0, key=KEY),
        TypeError,
        "hidden_size is 4.0; expected a positive integer",
    ),
    "an activation": (
        lambda: nn.VanillaRNN(3, 4, "tanh", key=KEY),
        TypeError,
        "activation is 'tanh'; expected a function",
    ),
    "a dtype": (
        lambda: nn.MinGRU(3, 4, dtype=int, key=KEY),
        TypeError,
        "dtype is int64; expected a floating-point",
    ),
    "a time constant": (
        lambda: nn.CTRNN(3, 4, tau=-1.0, key=KEY),
        ValueError,
        "tau is -1.0; expected it to be positive",
    ),
    "time constants": (
        lambda: nn.CTRNN(3, 4, tau=np.ones(3), key=KEY),
        ValueError,
        r"tau has the shape \(3,\); expected",
    ),
    "a ring": (
        lambda: nn.LRU(3, 4, r_min=0.9, r_max=0.5, key=KEY),
        ValueError,
        "r_min is 0.9 and r_max 0.5; expected 0 <= r_min < r_max <= 1",
    ),
    "a phase": (
        lambda: nn.LRU(3, 4, max_phase=0.0, key=KEY),
        ValueError,
        "max_phase is 0.0; expected",
    ),
    "steps": (
        lambda: nn.S4D(3, 4, dt_min=0.1, dt_max=0.01, key=KEY),
        ValueError,
        "dt_min is 0.1 and dt_max 0.01; expected",
    ),
    "a grid": (
        lambda: nn.ConvGRU((3,), 4, 3, key=KEY),
        ValueError,
        r"input_shape is \(3,\); expected \(channels, \*grid\)",
    ),
    "a number for a shape": (
        lambda: nn.ConvGRU(3, 4, 3, key=KEY),
        ValueError,
        r"input_shape is 3; expected \(channels, \*grid\)",
    ),
    "a kernel": (
        lambda: nn.ConvLSTM((3, 8), 4, (3, 3), key=KEY),
        ValueError,
        r"kernel_size is \(3, 3\); expected a number, or one for each of the 1 ",
    ),
    "an input": (
        lambda: nn.MGU(3, 4, key=KEY)(jnp.zeros(4), jnp.zeros(5)),
        ValueError,
        r"x has the shape \(5,\); expected \(3,\), one example",
    ),
    "a batch": (
        lambda: nn.LRU(3, 4, key=KEY)(jnp.zeros((8, 4)), jnp.zeros((8, 3))),
        ValueError,
        r"x has the shape \(8, 3\); expected \(3,\), .*vmap",
    ),
    "the order of Equinox": (
        lambda: nn.VanillaRNN(3, 4, key=KEY)(jnp.zeros(3), jnp.zeros(4)),
        ValueError,
        r"x has the shape \(4,\).* called as layer\(state, x\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    refused(*MISTAKES[mistake])
