"""Mistakes in a model, in the options of an algorithm, in the inputs of `init`: each is
refused before anything is computed, in words that name what came, what was expected
and what to do."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace

from .mistakes import BATCH, XS, Net, TwoInputs, X, as_a_user, ones, refused


class NoInitState(eqx.Module):
    weight: jax.Array

    def __call__(self, h, x):
        return h, h


class NoCall(eqx.Module):
    weight: jax.Array

    def init_state(self):
        return jnp.zeros(3)


class Returning(Net):
    """Starts from what `start()` returns, steps to what `step(state)` returns."""

    step: object = eqx.field(static=True)
    start: object = eqx.field(static=True)

    def __init__(self, step=lambda h: (h, h), start=lambda: jnp.zeros(3)):
        super().__init__()
        self.step, self.start = step, start

    def init_state(self):
        return self.start()

    def __call__(self, h, x):
        return self.step(h)


def step(step):
    return etrace.DRTRL(Returning(step)).init(X)


def start(start, **options):
    return etrace.DRTRL(Returning(start=start), **options).init(X)


def alg(**options):
    return etrace.DRTRL(Net(), **options)


MESH = functools.partial(jax.sharding.Mesh, np.array(jax.devices()), ("data",))
PER_DEVICE = jax.sharding.PartitionSpec("data")
EXPLICIT = jax.sharding.NamedSharding(
    MESH(axis_types=(jax.sharding.AxisType.Explicit,)), PER_DEVICE
)


def mapped(fun):
    """On each device."""
    return jax.jit(
        jax.shard_map(fun, mesh=MESH(), in_specs=PER_DEVICE, out_specs=PER_DEVICE)
    )


TREE = {"n": 0, "h": 0.0}
# What is done, what it raises, and what that says.
MISTAKES = {
    # The model.
    "a function": (
        lambda: etrace.DRTRL(lambda h, x: (h, h)),
        TypeError,
        r"model is a function; expected an instance of an equinox\.Module with init_s",
    ),
    "a class": (
        lambda: etrace.DRTRL(Net),
        TypeError,
        r"model is the class Net; expected an instance of an equinox\.Module with",
    ),
    "no init_state": (
        lambda: etrace.DRTRL(NoInitState(X)),
        TypeError,
        r"model, a NoInitState, has no method init_state.*Define init_state\(self\)",
    ),
    "not callable": (
        lambda: etrace.DRTRL(NoCall(X)),
        TypeError,
        r"model, a NoCall, is not callable.*Define __call__\(self, state, \*inputs\)",
    ),
    "integer parameters": (
        lambda: etrace.DRTRL(Net(dtype=jnp.int32)),
        TypeError,
        r"model, a Net, has no parameter.*expected floating.*only int32.*cast weights",
    ),
    "no parameters": (
        lambda: etrace.DRTRL(eqx.tree_at(lambda m: m.weight, Net(), None)),
        TypeError,
        r"model, a Net, has no parameter.*expected floating.*found no array at all",
    ),
    "a function as new model": (
        lambda: alg().with_model(lambda h, x: (h, h)),
        TypeError,
        r"model is a function; expected an instance of an equinox\.Module with init_s",
    ),
    # The options.
    "vjp_method": (
        lambda: alg(vjp_method="both"),
        ValueError,
        r'vjp_method is \'both\'; expected "single-step" or "multi-step"',
    ),
    "mixing_tails": (
        lambda: alg(mixing_tails="all"),
        ValueError,
        r'mixing_tails is \'all\'; expected "now" or "local"',
    ),
    "position_size as a float": (
        lambda: alg(position_size=16.0),
        TypeError,
        r"position_size is 16\.0; expected a positive int.*1 makes every number",
    ),
    "position_size of nothing": (
        lambda: alg(position_size=0),
        ValueError,
        r"position_size is 0; expected a positive int.*1 makes every number",
    ),
    "integer trace_dtype": (
        lambda: alg(trace_dtype=jnp.int8),
        TypeError,
        r"trace_dtype is int8; expected a floating-point dtype, such as jnp\.bfloat16",
    ),
    "unknown trace_dtype": (
        lambda: alg(trace_dtype="half-ish"),
        TypeError,
        r"trace_dtype is 'half-ish'; expected a floating-point dtype, such as jnp\.bf",
    ),
    "hidden_filter of another state": (
        lambda: start(lambda: TREE, hidden_filter={"m": True}),
        ValueError,
        r"hidden_filter does not fit the state \{'h': f64\[\], 'n': i64\[\]\}.*Expec",
    ),
    "hidden_filter selects integers": (
        lambda: start(lambda: TREE, hidden_filter=True),
        TypeError,
        r"hidden_filter selects .* int64\[\].*expected floating.*Leave it out",
    ),
    "hidden_filter selects nothing": (
        lambda: start(lambda: TREE, hidden_filter=lambda leaf: False),
        ValueError,
        r"hidden_filter selects nothing.*\{'h'.*expected at least one.*or select",
    ),
    # The step and the state it starts from.
    "init_state takes arguments": (
        lambda: start(lambda batch: jnp.zeros(batch)),
        TypeError,
        r"model\.init_state\(\) failed.*'batch'.*takes no argument and returns",
    ),
    "init_state returns no array": (
        lambda: start(lambda: {"mode": "train"}),
        TypeError,
        r"init_state\(\) returned 'train'.*state\['mode'\].*expected.*Make it a field",
    ),
    "no pair": (
        lambda: step(lambda h: h),
        TypeError,
        r"must return a pair \(outputs, state\); it returned an array float64\[3\]",
    ),
    "a triple": (
        lambda: step(lambda h: (h, h, h)),
        TypeError,
        r"must return a pair \(outputs, state\); it returned a tuple of 3",
    ),
    "outputs that are no arrays": (
        lambda: step(lambda h: ("y", h)),
        TypeError,
        r"model\(state, \*inputs\) returned 'y', a str; expected.*arrays\. Leave out",
    ),
    "another structure": (
        lambda: step(lambda h: (h, (h, h))),
        ValueError,
        r"changed the structure of the state.*gave f64\[3\].*returned \(f64\[3\], f64",
    ),
    "another shape": (
        lambda: step(lambda h: (h, h[:2])),
        ValueError,
        r"changed the state leaf.*was float64\[3\].*returned float64\[2\].*fix init",
    ),
    "another dtype": (
        lambda: step(lambda h: (h, h.astype(jnp.float32))),
        ValueError,
        r"changed the state leaf.*was float64\[3\].*returned float32\[3\].*cast inside",
    ),
    # Inputs that the model cannot take.
    "too many inputs": (
        lambda: alg().init(X, X),
        TypeError,
        r"model\(state, \*inputs\) failed.*inputs \(f64\[2\], f64\[2\]\).*check the nu",
    ),
    "too few inputs": (
        lambda: alg().init(),
        TypeError,
        r"model\(state, \*inputs\) failed.*inputs \(\).*check the number and the shape",
    ),
    "an input of another shape": (
        lambda: alg().init(ones(7)),
        TypeError,
        r"model\(state, \*inputs\) failed.*inputs \(f64\[7\],\).*check the number and",
    ),
    "a batch without batched": (
        lambda: alg().init(BATCH),
        TypeError,
        r"failed.*inputs \(f64\[4,2\],\).*batch axis is taken off only with batched=T",
    ),
    "batched without a batch": (
        lambda: alg(batched=True).init(X),
        ValueError,
        r"failed.*inputs \(f64\[\],\).*batch axis is taken off only with batched=True",
    ),
    "batched scalars": (
        lambda: alg(batched=True).init(1.0),
        ValueError,
        r"batched=True, but an input has shape \(\): expected a batch axis at the",
    ),
    "two batch sizes": (
        lambda: etrace.DRTRL(TwoInputs(), batched=True).init(BATCH, ones(3, 2)),
        ValueError,
        r"inputs have batch sizes \[3, 4\]; expected one batch size for all",
    ),
    "time-major data in init": (
        lambda: alg().init(XS),
        TypeError,
        r"failed.*inputs \(f64\[5,2\],\).*time axis only from MultiStepData",
    ),
    # Many devices.
    "a mesh with Explicit axes": (
        lambda: alg(batched=True).init(jax.device_put(ones(8, 2), EXPLICIT)),
        ValueError,
        r"inputs has arrays on a mesh with Explicit axes, .*data.*; expected Auto axes",
    ),
    "a shard_map that follows values": (
        lambda: mapped(alg(batched=True).init)(ones(8, 2)),
        ValueError,
        r"inputs has arrays that shard_map follows over .*data.*check_vma=False",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    refused(*MISTAKES[mistake])


def test_without_a_mistake_nothing_is_refused():
    with as_a_user():
        assert step(lambda h: (h, h))[0].shape == (3,)
        assert start(lambda: TREE)[0]["h"].shape == ()
        assert alg(trace_dtype="bfloat16").init(X)[0].shape == (3,)
        assert alg(batched=True).init(BATCH)[0].shape == (4, 3)
