"""Mistakes in calling `update`: each is refused before anything is computed, in words
that name what came, what was expected and what to do, and the state stays as it is."""

import jax.numpy as jnp
import pytest

import etrace
from etrace import MultiStepData

from .mistakes import (
    BATCH,
    XS,
    Net,
    Recurrent,
    World,
    X,
    as_a_user,
    nothing_computed,
    ones,
    refused,
)


def of(model, x=X, **options):
    """The state of another algorithm."""
    return etrace.DRTRL(model, **options).init(x)


# What is done, what it raises, and what that says.
PASS = "Pass the state that init"
MISTAKES = {
    # Inputs other than those of init.
    "more inputs than in init": (
        lambda w: w.update(X, X),
        ValueError,
        r"inputs are \(f64\[2\], f64\[2\]\), expected \(f64\[2\],\).*same number of",
    ),
    "fewer inputs than in init": (
        lambda w: w.update(),
        ValueError,
        r"inputs are \(\), expected \(f64\[2\],\).*the same number of inputs",
    ),
    "another input structure": (
        lambda w: w.update({"x": X}),
        ValueError,
        r"inputs are \(\{'x': f64\[2\]\},\), expected \(f64\[2\],\).*same structure",
    ),
    "another input shape": (
        lambda w: w.update(ones(3)),
        ValueError,
        r"inputs\[0\] has shape \(3,\), expected \(2,\) as in init",
    ),
    "another input dtype": (
        lambda w: w.update(ones(2, dtype=jnp.float32)),
        TypeError,
        r"inputs\[0\] is float32\[2\], expected dtype float64 .*Cast it",
    ),
    "an integer input": (
        lambda w: w.update(ones(2, dtype=jnp.int32)),
        TypeError,
        r"inputs\[0\] is int32\[2\], expected dtype float64 .*Cast it",
    ),
    "no array": (
        lambda w: w.update("x"),
        TypeError,
        r"inputs hold 'x' of type str.*expected a pytree of arrays.*a field",
    ),
    "a surplus batch axis": (
        lambda w: w.update(BATCH),
        ValueError,
        r"has shape \(4, 2\), expected \(2,\).*needs batched=True \(it is False\)",
    ),
    "a missing batch axis": (
        lambda w: w.update_batch(X),
        ValueError,
        r"has shape \(2,\), expected \(batch, 2\).*batch axis",
    ),
    "another batch size": (
        lambda w: w.update_batch(ones(3, 2)),
        ValueError,
        r"hidden, other and inputs have batch sizes \[3, 4\]; expected one.*init",
    ),
    "time-major data without a tag": (
        lambda w: w.update(XS),
        ValueError,
        r"has shape \(5, 2\), expected \(2,\).*needs MultiStepData \(it is not tagged",
    ),
    "time-major batches without a tag": (
        lambda w: w.update_batch(ones(5, 4, 2)),
        ValueError,
        r"has shape \(5, 4, 2\), expected \(batch, 2\).*MultiStepData \(it is not",
    ),
    "a tag without a batch axis": (
        lambda w: w.update_batch(MultiStepData(XS)),
        ValueError,
        r"has shape \(5, 2\), expected \(k, batch, 2\).*\(it is tagged so\)",
    ),
    # States of something else.
    "hidden of another size": (
        lambda w: w.with_part(0, of(Net(4))[0]),
        ValueError,
        rf"hidden has shape \(4,\), expected \(3,\).*{PASS}",
    ),
    "hidden of another structure": (
        lambda w: w.with_part(0, of(Recurrent())[0]),
        ValueError,
        rf"hidden is \(f64\[3\], f64\[3\]\), expected f64\[3\].*{PASS}",
    ),
    "hidden of another dtype": (
        lambda w: w.with_part(0, ones(3, dtype=jnp.float32)),
        TypeError,
        rf"hidden is float32\[3\], expected dtype float64.*{PASS}",
    ),
    "other of another model": (
        lambda w: w.with_part(1, jnp.zeros((), jnp.int32)),
        ValueError,
        rf"other is i32\[\], expected None.*{PASS}",
    ),
    "trace of another size": (
        lambda w: w.with_part(2, of(Net(4))[2]),
        ValueError,
        r"trace belongs to another model.*weight float64\[4, 2\] instead of .*\[3, 2\]",
    ),
    "trace of another class": (
        lambda w: w.with_part(2, of(Recurrent())[2]),
        ValueError,
        r"trace belongs to another model.*Recurrent\(.* instead of Net\(.*init",
    ),
    "state of another model": (
        lambda w: w.alg.update(*of(Net(4)), X),
        ValueError,
        r"trace belongs to another model.*\[4, 2\] instead of .*init\(...\) made for",
    ),
    "a new model of another size": (
        lambda w: w.with_model(Net(4)),
        ValueError,
        r"trace belongs to another model.*\[3, 2\] instead of float64\[4, 2\].*init",
    ),
    "a new model with another constant": (
        lambda w: w.with_model(Net(leak=0.5)),
        ValueError,
        r"trace belongs to another model.*holds 0\.9 where this one holds 0\.5.*init",
    ),
    "state of a batch": (
        lambda w: w.alg.update(*w.batched_state, X),
        ValueError,
        rf"hidden has shape \(4, 3\), expected \(3,\) with batched=False.*{PASS}",
    ),
    "state of one example": (
        lambda w: w.batched.update(*w.state, BATCH),
        ValueError,
        rf"hidden has shape \(3,\), expected \(batch, 3\) with batched=True.*{PASS}",
    ),
    "trace of a batch": (
        lambda w: w.with_part(2, w.batched_state[2]),
        ValueError,
        rf"trace holds .*f64\[4,1.*expected .*f64\[1,1.*batched=False.*{PASS}",
    ),
    "trace of one example": (
        lambda w: w.batched.update(*w.batched_state[:2], w.state[2], BATCH),
        ValueError,
        rf"trace holds .*f64\[1,1.*expected .*f64\[4,1.*batched=True.*{PASS}",
    ),
    "trace of another dtype": (
        lambda w: w.with_part(2, of(Net(), trace_dtype=jnp.bfloat16)[2]),
        ValueError,
        rf"trace holds .*bf16.*expected .*f64.*trace_dtype=None.*{PASS}",
    ),
    "hidden and trace swapped": (
        lambda w: w.alg.update(*w.state[::-1], X),
        TypeError,
        r"trace is an array float64\[3\]; expected the third.*update\(hidden, other, t",
    ),
    "a pair for the state": (
        lambda w: w.alg.update(w.state[:2], w.state[2], X),
        TypeError,
        r"trace is an array float64\[2\]; expected the third.*update\(hidden, other, t",
    ),
    "a state that is not unpacked": (
        lambda w: w.alg.update(w.state, X),
        TypeError,
        r"update\(\) missing 1 required positional argument: 'trace'",
    ),
    "no state": (
        lambda w: w.alg.update(None, None, None, X),
        TypeError,
        r"trace is None; expected the third part of the state that init",
    ),
    "the arrays of a trace": (
        lambda w: w.with_part(2, w.state[2].data),
        TypeError,
        r"trace is a tuple of 1; expected the third part of the state that init",
    ),
}


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, world):
    make, kind, message = MISTAKES[mistake]
    refused(lambda: make(world), kind, message, world.arrays())


def test_without_a_mistake_nothing_is_refused(world):
    with as_a_user():
        assert world.update(X)[0].shape == (3,)
        assert world.update(MultiStepData(XS))[0].shape == (5, 3)
        assert world.update_batch(BATCH)[0].shape == (4, 3)
        assert world.with_model(Net())[0].shape == (3,)


def test_a_check_computes_nothing(world):
    with as_a_user(), nothing_computed():
        world.alg.check(*world.state, X)
        with pytest.raises(ValueError, match=r"expected \(2,\)"):
            world.alg.check(*world.state, ones(3))


def test_a_trace_that_forgets_what_multi_step_reads():
    """A single-step trace leaves out what a window that begins with it would read."""
    state = of(Recurrent())
    alg = etrace.DRTRL(Recurrent(), vjp_method="multi-step")
    message = "trace was made .*another vjp_method.*'multi-step'.*init"
    refused(lambda: alg.update(*state, X), ValueError, message, state)
