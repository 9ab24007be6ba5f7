"""Algorithms, states and traces are values: copied or pickled, they are what they were,
also to what was compiled."""

import copy
import functools
import io
import os
import pathlib
import pickle
import subprocess
import sys
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
from etrace._analysis.cache import forget

N, INPUTS = 3, jax.random.normal(jax.random.key(0), (4, 2))


class Net(eqx.Module):
    """With constants, functions of JAX, a key in the state, and a weight that is not
    traced."""

    weight: jax.Array
    scale: jax.Array
    connected: np.ndarray
    activation: Any

    def __init__(self):
        self.activation = jnp.tanh
        self.weight, self.scale = jnp.ones((N, N + 2)), jnp.ones(N)
        self.connected = np.triu(np.ones((N, N + 2), bool))

    def init_state(self):
        return jnp.zeros(N), jax.random.key(1)

    def __call__(self, state, x):
        h, key = state
        weight = jnp.where(self.connected, self.weight, 0)
        h = 0.9 * h + self.activation(weight @ jnp.concatenate([h, x]))
        h = h + 0.1 * jnp.cumsum(self.scale * x[0])
        key, own = jax.random.split(key)
        return h + jax.random.normal(own, h.shape), (h, key)


class Tuned(eqx.Module):
    gain: jax.Array

    def __call__(self, hidden):
        return jax.tree.map(lambda h: self.gain * h, hidden)


def rnn():
    cell = etrace.nn.VanillaRNN(2, N, activation=jax.nn.relu, key=jax.random.key(0))
    return etrace.nn.RNN([cell, eqx.nn.GRUCell(N, N, key=jax.random.key(1))])


ALGORITHMS = {
    "constants": lambda: etrace.DRTRL(Net()),
    "batched": lambda: etrace.DRTRL(rnn(), batched=True, trace_dtype="float32"),
    "factored": lambda: etrace.ESDRTRL(rnn(), decay=0.9, vjp_method="multi-step"),
    "a wrapped rule": lambda: etrace.ThreeFactor(rnn(), rule=etrace.OSTL),
    "a synthesiser": lambda: etrace.DNI(rnn(), synthesiser=Tuned(jnp.ones(()))),
    "a random rule": lambda: etrace.UORO(rnn(), key=jax.random.key(2)),
    "of a whole step": lambda: etrace.SnAp(rnn(), n=2),
}


def joblib_copy(x):
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(x, file)
    file.seek(0)
    return joblib.load(file)


def cloud_copy(x):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(x))


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "the oldest protocol": lambda x: pickle.loads(pickle.dumps(x, 2)),
    "cloudpickle": cloud_copy,
    "joblib": joblib_copy,
}


def made(name):
    """An algorithm, its state after a step, and the inputs of another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        algorithm = ALGORITHMS[name]()
        x = INPUTS[:, :2] if algorithm.batched else INPUTS[0]
        _, *state = algorithm.update(*algorithm.init(x), x)
    return algorithm, tuple(state), x


@pytest.mark.parametrize("name", ALGORITHMS)
def test_copies_are_equal(name):
    algorithm, state, x = made(name)
    traced = []

    @eqx.filter_jit
    def update(algorithm, state, x):
        traced.append(x)
        return algorithm.update(*state, x)

    expected = update(algorithm, state, x)
    for how, copied in COPIES.items():
        # Apart, and hidden, other and trace each by itself.
        pair = copied(algorithm), tuple(map(copied, state))
        together = copied((algorithm, state))
        for found in (pair, together):
            assert eqx.tree_equal(found, (algorithm, state)), how
            assert found[1][2].graph is state[2].graph
            assert eqx.tree_equal(update(*found, x), expected), how
    assert len(traced) == 1


def test_deep_copies_have_memory_of_their_own():
    """A driver writes over the state that it is given."""
    algorithm, state, _ = made("factored")
    kept = copy.deepcopy((algorithm, state))
    run = etrace.value_and_grad(lambda y, t: jnp.sum(y - t))
    run(algorithm, state, INPUTS, jnp.zeros((4, N)))
    assert any(x.is_deleted() for x in jax.tree.leaves(state))
    run(*kept, INPUTS, jnp.zeros((4, N)))
    algorithm, _, _ = made("constants")
    kept = copy.deepcopy(algorithm)
    kept.model.connected[:] = False
    assert algorithm.model.connected.any()


@pytest.mark.parametrize("name", ["constants", "of a whole step"])
def test_a_process_that_never_saw_the_model(name):
    """Its graph is found without a warning: that came when the state was made. States
    that are made later are of the same graph."""
    algorithm, state, x = made(name)
    data = pickle.dumps(state)
    assert len(data) < 10_000
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, again = pickle.loads(data), pickle.loads(data)
    graph = loaded[2].graph
    assert graph is not state[2].graph and again[2].graph is graph
    assert graph.call == state[2].graph.call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        fresh = algorithm.init(x)
    assert fresh[2].graph is graph
    outputs = [algorithm.update(*s, x)[0] for s in (state, loaded)]
    assert jnp.array_equal(*outputs)


def test_other_constants_are_of_another_graph():
    """Traces may depend on their values."""
    algorithm, state, x = made("constants")
    other = eqx.tree_at(
        lambda a: a.model.connected, algorithm, np.ones((N, N + 2), bool)
    )
    with pytest.warns(etrace.UntracedParameterWarning):
        others = other.init(x)
    copies = COPIES["pickle"]((state, others))
    assert copies[0][2].graph is state[2].graph
    assert copies[1][2].graph is others[2].graph is not state[2].graph


def test_equal_numbers_of_other_types_are_of_another_graph():
    """Of integers, a step computes other things."""
    nets = [Counted(jnp.ones((N, 2)), one) for one in (1, 1.0, True)]
    states = [etrace.DRTRL(net).init(INPUTS[0]) for net in nets]
    copies = COPIES["pickle"](states)
    assert len({state[2].graph for state in states}) == 3
    for old, new in zip(states, copies, strict=True):
        assert new[2].graph is old[2].graph


class Counted(eqx.Module):
    weight: jax.Array
    number: Any

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        h = 0.9 * h + self.weight @ x * jnp.asarray(self.number / 2, h.dtype)
        return h, h


CHILD = """
import pickle, sys, warnings
warnings.simplefilter("error")
path, first = sys.argv[1:]
with open(path, "rb") as file:
    parts = [pickle.load(file) for _ in range(2)]
(algorithm, state) = parts if first == "algorithm" else parts[::-1]
import jax.numpy as jnp
x = jnp.ones(2)
assert algorithm.init(x)[2].graph is state[2].graph
_, *state = algorithm.update(*state, x)
with open(path, "wb") as file:
    pickle.dump((algorithm, tuple(state)), file)
"""


@pytest.mark.parametrize("first", ["algorithm", "state"])
def test_another_process(first: str, tmp_path: pathlib.Path):
    algorithm, state, _ = made("factored")
    parts = (algorithm, state) if first == "algorithm" else (state, algorithm)
    path = tmp_path / "state"
    path.write_bytes(b"".join(map(pickle.dumps, parts)))
    root = str(pathlib.Path(etrace.__file__).parents[1])
    env = os.environ | {"JAX_ENABLE_X64": "1", "PYTHONPATH": root}
    command = [sys.executable, "-c", CHILD, str(path), first]
    subprocess.run(command, check=True, env=env, timeout=300)
    loaded = pickle.loads(path.read_bytes())
    _, *expected = algorithm.update(*state, jnp.ones(2))
    assert eqx.tree_equal(loaded[0], algorithm)
    close = functools.partial(eqx.tree_equal, rtol=1e-12, atol=1e-12)
    assert close(loaded[1], tuple(expected))


class Step(eqx.Module):
    weight: jax.Array
    function: Any = eqx.field(static=True)

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        h = 0.9 * h + self.function(self.weight @ x)
        return h, h


def test_what_cannot_be_pickled():
    """pickle says so in its own words; other picklers may know what to do."""
    cloudpickle = pytest.importorskip("cloudpickle")
    algorithm = etrace.DRTRL(Step(jnp.ones((N, 2)), lambda x: 2 * x))
    state = algorithm.init(INPUTS[0])
    for x in (algorithm, state):
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            pickle.dumps(x)
    copied = pickle.loads(cloudpickle.dumps((algorithm, state)))
    outputs, *_ = copied[0].update(*copied[1], INPUTS[0])
    assert jnp.array_equal(outputs, algorithm.update(*state, INPUTS[0])[0])
    assert eqx.tree_equal(copy.deepcopy((algorithm, state)), (algorithm, state))
