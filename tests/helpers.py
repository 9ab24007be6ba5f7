"""What several test files share."""

import dataclasses
import functools
import gc
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import etrace
import etrace.testing as et


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def spike(v: jax.Array, slope: float = 1.0) -> jax.Array:
    """1 where v > 0, with the derivative 1 / (1 + slope |v|)^2: a function with a
    derivative of its own, as users write them."""
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(slope: float, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple:
    (v,), (dv,) = primals, tangents
    return spike(v, slope), dv / (1 + slope * jnp.abs(v)) ** 2


def clear_caches() -> None:
    """Drop every compiled program."""
    eqx.clear_caches()
    jax.clear_caches()
    gc.collect()


#: Of 65,530 that a process may have, in Linux; with so many it has 2 GB.
_MOST_MAPS = 10_000


def fresh_caches() -> None:
    """Drop the compiled programs if there are many.

    Each one holds memory and its maps, and a process with too many maps ends in `LLVM
    compilation error: Cannot allocate memory`. A property test that compiles something
    for each example calls this first; every module does at its end.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MOST_MAPS:
        clear_caches()


def examples(ci: Any, thorough: Any) -> Any:
    """How many examples a property test draws, or which, by profile."""
    profile = os.environ.get("HYPOTHESIS_PROFILE", "ci")
    return thorough if profile == "thorough" else ci


def quick_to_compile() -> dict[str, str]:
    """What the environment of another process needs to compile as quickly as the tests
    do; it has the devices that it wants."""
    flags = os.environ["XLA_FLAGS"].split()
    kept = [flag for flag in flags if "device_count" not in flag]
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(kept)}


def siblings(problem: et.Problem, number: int = 2) -> list[et.Problem]:
    """The problem, and more of its structure: other weights, states and data.

    What was compiled for the first serves them all.
    """
    model = problem.model
    options = {
        "length": len(jax.tree.leaves(problem.inputs)[0]),
        "batch": problem.batch,
        "mask": problem.mask,
        "window": problem.window,
        "random_state": problem.state is not None,
    }
    # Drawn problems have seeds below 1000.
    seeds = range(1000, 1000 + number)
    more = [et.make_problem(model.spec, seed=seed, **options) for seed in seeds]
    return [problem, *more]


def starting_from(problem: et.Problem, state: tuple) -> tuple:
    """The state of `init`, or that of the problem: a constant, with no parameter in
    it."""
    if problem.state is None:
        return state
    start = eqx.partition(problem.state, eqx.is_inexact_array)
    trace = state[2]
    first = None if trace.first is None else jnp.zeros_like(trace.first)
    trace = dataclasses.replace(trace, first=first)
    return (*jax.tree.map(jnp.copy, start), trace)


@eqx.filter_jit
@eqx.filter_value_and_grad(has_aux=True)
def _windowed(algorithm, loss_fn, state, inputs, targets, mask):
    tagged = map(etrace.MultiStepData, inputs)
    outputs, *state = algorithm.update(*state, *tagged)
    losses = jax.vmap(jax.vmap(loss_fn) if algorithm.batched else loss_fn)
    losses = losses(outputs, targets).reshape(len(mask), -1)
    return jnp.sum(mask * jnp.sum(losses, axis=1)), state


def gradient_by_windows(rule: type, problem: et.Problem, method: str, **options: Any):
    """A function of a window split that returns (value, grads) of `problem`.

    Compiles once per window length, not once per split.
    """
    batched = problem.batch is not None
    algorithm = rule(problem.model, None, method, batched=batched, **options)
    inputs = problem.inputs
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with warnings.catch_warnings():
        if not options:
            warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        state = algorithm.init(*(x[0] for x in inputs))
    state = starting_from(problem, state)
    length = len(inputs[0])
    mask = jnp.ones(length) if problem.mask is None else problem.mask

    def gradient(split: Sequence[int]) -> tuple[Any, Any]:
        value, grads, now, start = 0.0, None, [*state], 0
        for k in split:
            data = (inputs, problem.targets, mask)
            part = jax.tree.map(lambda x: x[start : start + k], data)  # noqa: B023
            (loss, now), more = _windowed(algorithm, problem.loss_fn, now, *part)
            value += loss
            grads = more if grads is None else jax.tree.map(jnp.add, grads, more)
            start += k
        assert start == length and grads is not None
        return value, grads.model

    return gradient
