"""Ways to find the gradient of one sequence, each a function of nothing to call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import etrace

from . import models
from .measure import Compiled, compiled


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network and a sequence."""

    kind: models.Kind
    inputs: int
    hidden: int
    batch: int
    steps: int

    def network(self) -> eqx.Module:
        return models.make(self.kind, self.inputs, self.hidden)

    def sequence(self):
        return models.sequence(self.inputs, self.batch, self.steps)

    def __str__(self) -> str:
        sizes = f"{self.inputs}→{self.hidden}, batch {self.batch}, {self.steps} steps"
        return f"{self.kind.upper()} {sizes}"


@dataclasses.dataclass(frozen=True)
class Method:
    """`gradient()` runs it; `program()` compiles it anew and says what that costs."""

    gradient: Callable[[], Any]  # -> (value, grads like the network)
    program: Callable[[], Compiled] | None = None
    trace_bytes: int = 0


def bptt(problem: Problem, *, checkpoint: bool = False) -> Method:
    """Backpropagation through time: a plain scan, as one would write it."""
    network, (inputs, targets) = problem.network(), problem.sequence()
    params, rest = eqx.partition(network, eqx.is_inexact_array)

    def loss(params, inputs, targets):
        network: Any = eqx.combine(params, rest)

        def step(state, now):
            x, target = now
            y, state = jax.vmap(network)(state, x)
            return state, models.squared_error(y, target)

        one = network.init_state()
        repeat = lambda x: jnp.broadcast_to(x, (problem.batch, *x.shape))  # noqa: E731
        step = jax.checkpoint(step) if checkpoint else step
        _, losses = jax.lax.scan(step, jax.tree.map(repeat, one), (inputs, targets))
        return jnp.mean(losses)

    run = jax.jit(jax.value_and_grad(loss))
    arguments = (params, inputs, targets)

    def program():
        again = jax.jit(lambda *x: jax.value_and_grad(loss)(*x))  # not compiled yet
        return compiled(again, *arguments)

    return Method(lambda: run(*arguments), program)


def online(
    problem: Problem,
    window: int,
    *,
    rule: Callable[..., etrace.ETraceVjpAlgorithm] = etrace.DRTRL,
    carry: bool = True,
    vjp_method: Any = "single-step",
    dtype: Any = None,
) -> Method:
    """A learning rule, going on from the last state if `carry`, else fresh."""
    inputs, targets = problem.sequence()
    options = dict(vjp_method=vjp_method, batched=True, trace_dtype=dtype)
    algorithm = rule(problem.network(), **options)
    driver = etrace.value_and_grad(models.squared_error, window=window, carry=carry)
    states = [None]

    def gradient():
        value, grads, *state = driver(algorithm, states[0], inputs, targets)
        states[0] = state[0] if state else None
        return value, grads

    state = algorithm.init(inputs[0])
    arrays, static = eqx.partition((algorithm, state), eqx.is_array)

    def run(model, state, inputs, targets):
        algorithm, state = eqx.combine((model, state), static)
        start = state if carry else None
        result = driver(algorithm, start, inputs, targets)
        return eqx.filter(result, eqx.is_array)

    def program():
        donated = jax.jit(run, donate_argnums=1)
        start = arrays[1] if carry else jax.tree.map(lambda x: None, arrays[1])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (arrays[0], start)
        )
        return compiled(donated, *shapes, inputs, targets)

    size = sum(x.nbytes for x in jax.tree.leaves(state[2].data))
    return Method(gradient, program, size)


def vmapped(problem: Problem) -> Method:
    """One step at a time, with `jax.vmap(algorithm.update)` for the batch."""
    inputs, targets = problem.sequence()
    algorithm = etrace.DRTRL(problem.network())
    params, rest = eqx.partition(algorithm.model, eqx.is_inexact_array)
    one = algorithm.init(inputs[0, 0])

    @jax.jit
    def run(params, inputs, targets):
        def step(carry, now):
            grads, state = carry

            def loss(params):
                rule = algorithm.with_model(eqx.combine(params, rest))
                y, *after = jax.vmap(rule.update)(*state, now[0])
                return models.squared_error(y, now[1]), after

            (value, after), more = jax.value_and_grad(loss, has_aux=True)(params)
            return (jax.tree.map(jnp.add, grads, more), after), value

        repeat = lambda x: jnp.broadcast_to(x, (problem.batch, *x.shape))  # noqa: E731
        start = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(repeat, list(one)))
        (grads, _), values = jax.lax.scan(step, start, (inputs, targets))
        return jnp.mean(values), jax.tree.map(lambda g: g / len(values), grads)

    return Method(lambda: run(params, inputs, targets))
