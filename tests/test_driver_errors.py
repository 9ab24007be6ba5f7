"""Mistakes in calling the drivers: each is refused before anything is computed, in
words that name what came, what was expected and what to do, and the state stays as it
is."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import etrace
from etrace import MultiStepData
from etrace.testing import squared_error

from .mistakes import TARGETS, XS, Net, TwoInputs, World, X, as_a_user, ones, refused


def of(model, x=X, **options):
    """The state of another algorithm."""
    return etrace.DRTRL(model, **options).init(x)


def used_up():
    """A state that a driver went on from."""
    state = etrace.DRTRL(Net()).init(X)
    for array in jax.tree.leaves(state):
        array.delete()
    return state


# What is done, what it raises, and what that says.
PASS = "Pass the state that init"
MISTAKES = {
    # The options.
    "a window of zero": (
        lambda w: w.drive(window=0),
        ValueError,
        r"window is 0; expected a positive int",
    ),
    "a negative window": (
        lambda w: w.drive(window=-1),
        ValueError,
        r"window is -1; expected a positive int",
    ),
    "half a window": (
        lambda w: w.drive(window=2.5),
        ValueError,
        r"window is 2\.5; expected a positive int",
    ),
    "no window in evolve": (
        lambda w: etrace.evolve(w.alg, w.state, XS, window=0),
        ValueError,
        r"window is 0; expected a positive int",
    ),
    "no optimiser": (
        lambda w: etrace.learn(squared_error, "sgd"),
        TypeError,
        r"optimiser is .*expected an optax transformation.*optax\.adam",
    ),
    "no window in learn": (
        lambda w: etrace.learn(squared_error, optax.sgd(0.1), window=True),
        ValueError,
        r"window is True; expected a positive int",
    ),
    "reduction": (
        lambda w: w.drive(reduction="max"),
        ValueError,
        r"reduction is 'max'; expected \"mean\" or \"sum\"",
    ),
    # The loss.
    "a loss of every output": (
        lambda w: w.drive(loss=lambda y, t: (y - t) ** 2),
        ValueError,
        r"loss_fn returned float64\[3\]; expected a scalar.*Reduce it",
    ),
    "a pair without has_aux": (
        lambda w: w.drive(loss=lambda y, t: (jnp.sum(y), y)),
        TypeError,
        r"loss_fn returned a tuple of 2; expected one scalar.*Use has_aux=True",
    ),
    "has_aux without a pair": (
        lambda w: w.drive(has_aux=True),
        TypeError,
        r"loss_fn returned an array float64\[\]; with has_aux=True it must return a pa",
    ),
    "an integer loss": (
        lambda w: w.drive(loss=lambda y, t: jnp.argmax(y)),
        TypeError,
        r"loss_fn returned int64\[\]; expected a real floating.*return a differentiabl",
    ),
    "a complex loss": (
        lambda w: w.drive(loss=lambda y, t: lax.complex(y[0], y[1])),
        TypeError,
        r"loss_fn returned complex128\[\]; expected a real floating-point scalar",
    ),
    "no loss": (
        lambda w: w.drive(loss=lambda y, t: None),
        TypeError,
        r"loss_fn returned None; expected one scalar array",
    ),
    "a name for a loss": (
        lambda w: w.drive(loss="mse"),
        TypeError,
        r"loss_fn is a str; expected a hashable function loss_fn\(outputs_t, targets_t",
    ),
    "a loss of one argument": (
        lambda w: w.drive(loss=lambda y: jnp.sum(y)),
        TypeError,
        r"loss_fn\(outputs_t, targets_t\) failed for the outputs f64\[3\].*Check that",
    ),
    # The data.
    "targets of another size": (
        lambda w: w.drive(targets=ones(5, 4)),
        TypeError,
        r"loss_fn.* failed.*outputs f64\[3\] and the targets f64\[4\].*Check that",
    ),
    "targets of another length": (
        lambda w: w.drive(targets=ones(4, 3)),
        ValueError,
        r"targets hold an array of shape \(4, 3\), expected \(5, \.\.\.\).*Time is the",
    ),
    "one target": (
        lambda w: w.drive(targets=1.0),
        ValueError,
        r"targets hold an array of shape \(\), expected \(5, \.\.\.\).*Time is the lea",
    ),
    "a mask of another length": (
        lambda w: w.drive(mask=ones(4)),
        ValueError,
        r"mask has shape \(4,\), expected \(5,\): one weight per step",
    ),
    "a mask for every example of one": (
        lambda w: w.drive(mask=ones(5, 1)),
        ValueError,
        r"mask has shape \(5, 1\), expected \(5,\): one weight per step",
    ),
    "a mask of another batch": (
        lambda w: w.drive_batch(mask=ones(5, 3)),
        ValueError,
        r"mask has shape \(5, 3\), expected \(5,\) or \(5, 4\): .* per step and exampl",
    ),
    "targets without a batch axis": (
        lambda w: w.drive_batch(targets=TARGETS, mask=ones(5, 4)),
        ValueError,
        r"targets .* \(5, 3\), expected \(5, 4, \.\.\.\).*Give targets a batch axis",
    ),
    "no steps": (
        lambda w: w.drive(inputs=ones(0, 2), targets=ones(0, 3)),
        ValueError,
        r"inputs have shape \(0, 2\): an empty sequence\. Expected at least one step",
    ),
    "no inputs": (
        lambda w: w.drive(inputs=()),
        ValueError,
        r"inputs hold arrays of shapes \[\]; expected time-major arrays, \(time,",
    ),
    "inputs without a time axis": (
        lambda w: w.drive(inputs=1.0),
        ValueError,
        r"inputs hold arrays of shapes \[\(\)\]; expected time-major arrays",
    ),
    "inputs of two lengths": (
        lambda w: w.drive(etrace.DRTRL(TwoInputs()), (XS, ones(4, 2)), state=None),
        ValueError,
        r"inputs hold an array of shape \(4, 2\), expected \(5, \.\.\.\).*5 steps",
    ),
    "a list for two inputs": (
        lambda w: w.drive(etrace.DRTRL(TwoInputs()), [XS, XS], state=None),
        TypeError,
        r"failed.*with the inputs \(\[f64\[2\], f64\[2\]\],\).*check the number",
    ),
    "tagged inputs": (
        lambda w: w.drive(inputs=MultiStepData(XS)),
        ValueError,
        r"inputs hold a data tag; expected plain time-major arrays\. Take off",
    ),
    "a sequence with a surplus batch axis": (
        lambda w: w.drive(inputs=ones(5, 4, 2)),
        ValueError,
        r"inputs\[0\] has shape \(5, 4, 2\), expected \(k, 2\).*needs batched=True",
    ),
    "a sequence without a batch axis": (
        lambda w: w.drive_batch(XS),
        ValueError,
        r"inputs\[0\] has shape \(5, 2\), expected \(k, batch, 2\).*batched=True",
    ),
    # What they are given to start from.
    "a model for an algorithm": (
        lambda w: w.drive(Net()),
        TypeError,
        r"algorithm is a Net; expected a learning rule.*such as etrace\.DRTRL\(model\)",
    ),
    "half a state": (
        lambda w: w.drive(state=w.state[:2]),
        TypeError,
        r"state is a tuple of 2; expected the triple \(hidden, other, trace\).*or None",
    ),
    "a state that was used up": (
        lambda w: w.drive(state=used_up()),
        ValueError,
        r"hidden has arrays that were deleted.*Go on with the state that was returned",
    ),
    "hidden for the state": (
        lambda w: w.drive(state=w.state[0]),
        TypeError,
        r"state is an array .*; expected the triple \(hidden, other, trace\).*or None",
    ),
    "a state out of order": (
        lambda w: w.drive(state=w.state[::-1]),
        TypeError,
        r"trace is an array float64\[3\]; expected the third part of the state",
    ),
    "a state of another model": (
        lambda w: w.drive(state=of(Net(4))),
        ValueError,
        r"trace belongs to another model.*\[4, 2\] instead of .*init\(...\) made for",
    ),
    "a state of a batch": (
        lambda w: w.drive(state=w.batched_state),
        ValueError,
        rf"hidden has shape \(4, 3\), expected \(3,\) with batched=False.*{PASS}",
    ),
    "a state of another batch": (
        lambda w: w.drive_batch(ones(5, 2, 2), ones(5, 2, 3)),
        ValueError,
        r"batch sizes \[2, 4\]; expected one for all\. Call init\(...\) again",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    world = World()
    make, kind, message = MISTAKES[mistake]
    refused(lambda: make(world), kind, message, world.arrays())


def test_without_a_mistake_nothing_is_refused():
    world = World()
    with as_a_user():
        assert world.drive(window=2)[1].weight.shape == (3, 2)
        assert world.drive_batch(mask=ones(5, 4))[1].weight.shape == (3, 2)
