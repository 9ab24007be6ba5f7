"""Checkpoints of something else than `like`."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace
from etrace._checkpoint import restore, save

from . import worker
from .states import X, full
from .worker import Net


class Other(Net):
    pass


def single(x: Any) -> Any:
    return x.astype(jnp.float32) if eqx.is_inexact_array(x) else x


def of_model(**changes: Any) -> dict[str, Any]:
    return full(etrace.DRTRL(Net(**changes)))


def of_rule(rule: Callable, /, **options: Any) -> dict[str, Any]:
    return full(rule(Net(), **options))


def batch(size: int) -> dict[str, Any]:
    return full(etrace.DRTRL(Net(), batched=True), jnp.zeros((size, 3)))


def without(name: str) -> dict[str, Any]:
    return {k: v for k, v in full().items() if k != name}


def optimiser(transformation: Any) -> dict[str, Any]:
    parameters = eqx.filter(Net(), eqx.is_inexact_array)
    return full(optimiser=transformation.init(parameters))


def other_activation() -> dict[str, Any]:
    return full(etrace.DRTRL(eqx.tree_at(lambda n: n.activation, Net(), jnp.sin)))


def another(output: Any, target: Any) -> jax.Array:
    return worker.loss(output, target)


# What is saved is full(); each of these is not like it, and the message says why.
FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "model": (
        lambda: full(etrace.DRTRL(Other())),
        "like['algorithm'].model: saved was tests.checkpoint.worker.Net, like has "
        "tests.checkpoint.test_refused.Other",
    ),
    "size": (
        lambda: of_model(size=5),
        "like['algorithm'].model.cell.hidden_size: saved was 4, like has 5",
    ),
    "function in the model": (
        other_activation,
        "like['algorithm'].model.activation: saved was jax.numpy.tanh, like has "
        "jax.numpy.sin",
    ),
    "number in the model": (
        lambda: of_model(gain=2.0),
        "like['state'][2].graph.model.gain: saved was 1.0, like has 2.0",
    ),
    "dtype": (
        lambda: jax.tree.map(single, full()),
        "like['algorithm'].model.cell.weight_ih: saved was float64[12, 3], like has "
        "float32[12, 3]",
    ),
    "rule": (
        lambda: of_rule(etrace.OSTL),
        "like['algorithm']: saved was etrace.DRTRL, like has etrace.OSTL",
    ),
    "method": (
        lambda: of_rule(etrace.DRTRL, vjp_method="multi-step"),
        "like['algorithm'].vjp_method: saved was 'single-step', like has 'multi-step'",
    ),
    "name": (
        lambda: of_rule(etrace.DRTRL, name="mine"),
        "like['algorithm'].name: saved was 'DRTRL', like has 'mine'",
    ),
    "batch or none": (
        lambda: batch(2),
        "like['algorithm'].batched: saved was False, like has True",
    ),
    "dtype of traces": (
        lambda: of_rule(etrace.DRTRL, trace_dtype="bfloat16"),
        "like['algorithm'].trace_dtype: saved was None, like has dtype(bfloat16)",
    ),
    "filter of the state": (
        lambda: of_rule(etrace.DRTRL, hidden_filter=eqx.is_array),
        "like['algorithm'].hidden_filter: saved was equinox.is_inexact_array, like has "
        "equinox.is_array",
    ),
    "mixing tails": (
        lambda: of_rule(etrace.DRTRL, mixing_tails="local"),
        "like['algorithm'].mixing_tails: saved was 'now', like has 'local'",
    ),
    "size of positions": (
        lambda: of_rule(etrace.DRTRL, position_size=4),
        "like['algorithm'].position_size: saved was 16, like has 4",
    ),
    "rule, by its traces": (
        lambda: full(state=etrace.ESDRTRL(Net(), decay=0.5).init(X)),
        "like['state'][2].data[0]: saved was float64[1, 1, 1, 12, 3], like has "
        "etrace.Factors",
    ),
    "option, by its traces": (
        lambda: full(state=etrace.DRTRL(Net(), mixing_tails="local").init(X)),
        "like['state'][2].graph.options.mixing_tails: saved was 'now', like has",
    ),
    "optimiser": (
        lambda: optimiser(optax.sgd(0.1)),
        "like['optimiser'][0]: saved was optax.transform.ScaleByAdamState",
    ),
    "options of the optimiser": (
        lambda: optimiser(optax.adam(0.1, mu_dtype=jnp.float32)),
        "like['optimiser'][0].mu.cell.weight_ih: saved was float64[12, 3], like has "
        "float32[12, 3]",
    ),
    "part less": (
        lambda: without("done"),
        "like['done']: saved was int, like has nothing",
    ),
    "part more": (
        lambda: full(epoch=0),
        "like['epoch']: saved was nothing, like has int",
    ),
    "list for a tuple": (
        lambda: full(state=list(full()["state"])),
        "like['state']: saved was tuple, like has list",
    ),
    "shape of an array": (
        lambda: full(log=np.zeros((3, 3))),
        "like['log']: saved was float64[2, 3], like has float64[3, 3]",
    ),
    "array of NumPy of another dtype": (
        lambda: full(log=np.zeros((2, 3), int)),
        "like['log']: saved was float64[2, 3], like has int64[2, 3]",
    ),
    "precision": (
        lambda: full(average=jnp.zeros(2, jnp.float16)),
        "like['average']: saved was bfloat16[2], like has float16[2]",
    ),
    "kind of key": (
        lambda: full(key=jax.random.key(0, impl="rbg")),
        "like['key']: saved was key<fry>[], like has key<rbg>[]",
    ),
    "untyped key": (
        lambda: full(key=jax.random.PRNGKey(0)),
        "like['key']: saved was key<fry>[], like has uint32[2]",
    ),
    "float for an int": (
        lambda: full(done=0.0),
        "like['done']: saved was int, like has float",
    ),
    "array for an int": (
        lambda: full(done=jnp.zeros((), int)),
        "like['done']: saved was int, like has int64[]",
    ),
    "None for an array": (
        lambda: full(average=None),
        "like['average']: saved was bfloat16[2], like has None",
    ),
    "text": (
        lambda: full(mode="slow"),
        "like['mode']: saved was 'fast', like has 'slow'",
    ),
    "function": (
        lambda: full(loss=another),
        "like['loss']: saved was tests.checkpoint.worker.loss, like has "
        "tests.checkpoint.test_refused.another",
    ),
    "order": (
        lambda: tuple(full().values()),
        "like: saved was dict, like has tuple",
    ),
    "nothing": (lambda: None, "like: saved was dict, like has None"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_of_something_else_is_refused(name, path):
    make, message = FOREIGN[name]
    save(path, full())
    restore(path, full())
    with pytest.raises(ValueError, match="like is something else") as error:
        restore(path, make())
    assert message in str(error.value)
    assert "Make like with the model, rule, options and shapes" in str(error.value)


PAIRS = {
    "an option of a rule": (
        *(lambda d=d: of_rule(etrace.ESDRTRL, decay=d) for d in (0.5, 0.75)),
        "like['algorithm'].decays: saved was (0.5, 0.5), like has (0.75, 0.75)",
    ),
    "a wrapped rule": (
        *(
            lambda k=k: of_rule(
                etrace.ThreeFactor, rule=functools.partial(etrace.EProp, kappa=k)
            )
            for k in (0.5, 0.75)
        ),
        "like['algorithm'].inner.kappa: saved was 0.5, like has 0.75",
    ),
    "the size of a batch": (
        *(lambda b=b: batch(b) for b in (2, 3)),
        "like['state'][0]: saved was float64[2, 4], like has float64[3, 4]",
    ),
    "the wiring of a model": (
        *(lambda o=o: full(etrace.DRTRL(Wired(o))) for o in ([0, 1, 2], [2, 1, 0])),
        "like['state'][2].graph.constants[0]: saved was int64[3] sha256:",
    ),
    "a wiring that is not known": (
        lambda: full(etrace.DRTRL(Wired([0, 1, 2]))),
        lambda: eqx.filter_eval_shape(lambda: full(etrace.DRTRL(Wired([0, 1, 2])))),
        "like['state'][2].graph.constants: saved was list, like has [None]",
    ),
}


class Wired(eqx.Module):
    """A model with a constant, on which its graph may depend."""

    net: Net
    order: jax.Array

    def __init__(self, order: list[int]):
        self.net = Net()
        self.order = jnp.array(order)

    def init_state(self):
        return self.net.init_state()

    def __call__(self, state, x):
        return self.net(state, x[self.order])


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_in_one_value_is_refused(name, path):
    saved, like, message = PAIRS[name]
    save(path, saved())
    restore(path, saved())
    with pytest.raises(ValueError, match="like is something else") as error:
        restore(path, like())
    assert message in str(error.value)
