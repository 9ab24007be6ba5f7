"""What the tests of mistakes share: a model to make them with, and how to tell that
they are refused well."""

import contextlib
import re
from collections.abc import Callable
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import etrace
from etrace.testing import squared_error


def ones(*shape, dtype=jnp.float64):
    return jnp.ones(shape, dtype)


class Net(eqx.Module):
    weight: jax.Array
    leak: float = 0.9

    def __init__(self, size=3, dtype=jnp.float64, leak=0.9):
        self.weight = ones(size, 2, dtype=dtype)
        self.leak = leak

    def init_state(self):
        return jnp.zeros(self.weight.shape[0])

    def __call__(self, h, x):
        assert isinstance(h, jax.core.Tracer), "ran on numbers"
        h = self.leak * h + jnp.tanh(self.weight @ x)
        return 2 * h, h


class TwoInputs(Net):
    def __call__(self, h, x, y):
        return super().__call__(h, x + y)


class Recurrent(Net):
    """Like LSTM's h, nothing but a product reads the second half of the state."""

    def init_state(self):
        return jnp.zeros(3), jnp.zeros(3)

    def __call__(self, state, x):
        c, h = state
        c = 0.9 * c + jnp.tanh(self.weight @ x + jnp.sum(h))
        return 2 * c, (c, jnp.tanh(c))


X, XS, BATCH, TARGETS = ones(2), ones(5, 2), ones(4, 2), ones(5, 3)


class World:
    """What mistakes are made with: two algorithms, and a state of each."""

    def __init__(self):
        self.alg, self.batched = etrace.DRTRL(Net()), etrace.DRTRL(Net(), batched=True)
        self.state, self.batched_state = self.alg.init(X), self.batched.init(BATCH)

    def arrays(self):
        return jax.tree.leaves((self.state, self.batched_state))

    def update(self, *inputs):
        return self.alg.update(*self.state, *inputs)

    def update_batch(self, *inputs):
        return self.batched.update(*self.batched_state, *inputs)

    def with_part(self, index, part):
        """An update with another hidden (0), other (1) or trace (2)."""
        state = list(self.state)
        state[index] = part
        return self.alg.update(*state, X)

    def with_model(self, model):
        return self.alg.with_model(model).update(*self.state, X)

    def drive(self, alg=None, inputs=XS, targets=TARGETS, mask=None, **options):
        alg = self.alg if alg is None else alg
        state = self.batched_state if alg is self.batched else self.state
        state = options.pop("state", state)
        driver = etrace.value_and_grad(options.pop("loss", squared_error), **options)
        return driver(alg, state, inputs, targets, mask)

    def drive_batch(self, inputs=None, targets=None, mask=None):
        inputs = ones(5, 4, 2) if inputs is None else inputs
        targets = ones(5, 4, 3) if targets is None else targets
        return self.drive(self.batched, inputs, targets, mask)


@contextlib.contextmanager
def as_a_user():
    """Without the tests' type checker, which would be faster than the library."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def nothing_computed():
    """Everything that is computed is computed in this function."""
    failure = mock.Mock(side_effect=AssertionError("something was computed"))
    return mock.patch.object(etrace.ETraceVjpAlgorithm, "_true_update_fun", failure)


def refused(make: Callable, kind: type, message: str, state=()) -> None:
    """`make()` raises `kind` with this message (a regular expression) before anything
    is computed, and leaves the arrays of `state` as they are."""
    arrays = jax.tree.leaves(state)
    before = [np.array(x) for x in arrays]
    with as_a_user(), nothing_computed(), pytest.raises(kind) as error:
        make()
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)
    for x, y in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(x, y)
