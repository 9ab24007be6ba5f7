"""Any learning rule by brute force."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from ._first_step import with_initial
from ._groups import (
    StateGroup,
    Task,
    at_time,
    check_groups,
    hidden_leaves,
    leaf_numbers,
    multi_step,
    traced_columns,
)
from ._observe import Observation, observe
from ._oracles import (
    ArrayLike,
    LossFn,
    Reduction,
    Window,
    as_arguments,
    as_state,
    sequence_length,
    step_weights,
    window_lengths,
)
from ._rule import AbstractRule, support
from ._vectors import gradient_from_vector, rows, to_vector


def _random(tree: PyTree, generator: np.random.Generator) -> PyTree:
    """Normal numbers in place of inexact arrays; others as they are."""

    def draw(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf):
            return leaf
        return jnp.asarray(generator.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, tree)


def _credited(problem: Task, observed: Observation) -> Observation:
    """Without the derivatives of exits by what never enters the state of their group.

    A parameter enters as a whole, and so does a site: what matters is the model, not
    the data at hand.
    """
    hidden, exits = observed.facts.hidden.groups, observed.facts.exits.groups
    of_group = np.equal.outer(np.array(exits, int), hidden).astype(float)
    of_group = jnp.asarray(of_group, observed.i.dtype)
    reached = support([of_group @ jnp.abs(observed.i)])
    parts = [to_vector(jnp.ones_like(p)) for p in jax.tree.leaves(problem.parameters)]
    ends = np.cumsum([part.size for part in parts])[:-1]
    columns = [
        jnp.broadcast_to(jnp.max(x, axis=1, keepdims=True), x.shape)
        for x in jnp.split(reached, ends, axis=1)
    ]
    sites = []
    for s in observed.sites:
        enters = jnp.max(support([of_group @ jnp.abs(s.f_h)]), axis=1, keepdims=True)
        sites.append(dataclasses.replace(s, f_u=enters[None] * s.f_u))
    j = jnp.concatenate(columns, axis=1)[None] * observed.j
    return dataclasses.replace(observed, j=j, sites=tuple(sites))


@eqx.filter_jit
def _recurse(
    problem: Task,
    rule: AbstractRule,
    trace: PyTree | None,
    seen: Sequence[Observation],
    modulator: Array | None,
    multi: bool,
) -> tuple[PyTree, Array, PyTree]:
    """The way of the trace, zero if None is given, through a sequence, which is the
    first of `seen`.

    (M before each step, or None, the gradient by single steps, the trace at the end).
    """
    observed = _credited(problem, seen[0])
    trace = rule.zero(at_time(observed, 0)) if trace is None else trace
    trace = rule.start(trace, seen)

    def step(trace: PyTree, at_t: tuple) -> tuple[PyTree, tuple]:
        o, m = at_t
        if multi:
            _, new = rule.advance(trace, o)
            return new, (rule.influence(trace, o), jnp.zeros_like(o.now))
        gradient, new = rule.gradient(trace, o, m)
        return new, (None, gradient)

    last, (influences, gradients) = jax.lax.scan(step, trace, (observed, modulator))
    return influences, jnp.sum(gradients, axis=0), last


def _modulators(
    modulator: Any, state: PyTree, groups: Sequence[StateGroup]
) -> Array | None:
    """One number per element of h: `[time, H]`."""
    if modulator is None:
        return None
    if not isinstance(modulator, tuple):
        modulator = (modulator,) * len(groups)
    hidden, columns = hidden_leaves(state), []
    for group, values in zip(groups, modulator, strict=True):
        leaves = [hidden[k] for k in group.leaves]
        values = jnp.asarray(values, to_vector(leaves).dtype).reshape(len(values), -1)
        values = jnp.broadcast_to(values, (len(values), leaves[0].size))
        columns.append(jnp.tile(values, (1, rows(leaves))))
    return jnp.concatenate(columns, axis=1)


def rule_reference(
    model: Any,
    loss_fn: LossFn,
    inputs: Any,
    targets: PyTree,
    *,
    rule: AbstractRule,
    groups: Sequence[StateGroup],
    vjp_method: Literal["single-step", "multi-step"] = "single-step",
    window: Window = 1,
    state: PyTree | None = None,
    trace: PyTree | None = None,
    modulator: Any = None,
    mask: Shaped[ArrayLike, " time"] | None = None,
    reduction: Reduction = "sum",
    untraced: PyTree | Callable[[Any], Any] = False,
    return_final: bool = False,
) -> tuple[Any, ...]:
    """The gradient of a learning rule from dense Jacobians, for small models with marks
    and groups made by hand.

    The model needs all four marks: [`etrace.testing.mixing_input`][] (with `of`),
    [`etrace.testing.local_output`][], [`etrace.testing.new_state`][] and
    [`etrace.testing.site`][]. A [`etrace.testing.RandomNet`][] has them.

    For `"single-step"` the gradient is the sum over the steps of what
    `etrace.testing.rules` says. For `"multi-step"` it is the sum over the windows of

        ∂L/∂θ, the window's first state held   +   ∂L/∂h_start · M_start.

    A parameter that does not enter the state of an exit's group, such as a gain behind
    the last state, keeps "now". An initial state made of parameters is a site of the
    first step.

    **Arguments:**

    - `rule`: one of `etrace.testing.rules`.
    - `trace`: the trace to start from, zero by default.
    - `modulator`: for [`etrace.testing.rules.ThreeFactor`][]: `[time]`, or a tuple with
        `[time]` or `[time, P]` for every group.

    The others are as in [`etrace.testing.dense_reference`][].

    **Returns:**

    The loss and its gradient, structured like `eqx.filter(model,
    eqx.is_inexact_array)`; with `return_final` also `(state, trace)`, which a further
    call can start from.

    A ValueError if the rule has no multi-step method, or does not fit the model.
    """
    if vjp_method not in ("single-step", "multi-step"):
        raise ValueError(
            f'vjp_method must be "single-step" or "multi-step", got {vjp_method!r}.'
        )
    problem, given = Task(model, loss_fn, tuple(groups)), state is not None
    state, xs = as_state(model, state), as_arguments(inputs)
    length, multi = sequence_length(inputs), vjp_method == "multi-step"
    check_groups(state, groups)
    weights = step_weights(mask, length, reduction)
    data = targets, weights, traced_columns(model, untraced), rule.needs
    observed, before, last = observe(problem, state, xs, *data)

    generator, seen = np.random.default_rng(0), [observed]
    for _ in range(rule.draws):
        drawn, start, inputs = _random((problem, state, xs), generator)
        seen.append(observe(drawn, start, inputs, *data)[0])
    initial = None if given else jnp.concatenate(problem.initial_influence())
    if initial is not None:
        part = jax.tree.map(lambda x: x[:1], (xs, targets, weights))
        paths = jnp.concatenate(multi_step(problem, state, *part)[2])
        columns = leaf_numbers(state, groups)
        seen = with_initial(seen, initial, data[2], paths, columns)
        observed = seen[0]
    modulator = _modulators(modulator, state, groups)
    rule = rule.bound(model)
    influences, gradient, trace = _recurse(problem, rule, trace, seen, modulator, multi)

    value = jnp.sum(observed.value)
    if multi:
        value, start, fixed = 0, 0, eqx.filter(state, eqx.is_array, inverse=True)
        for k in window_lengths(window, length):
            part = slice(start, start + k)
            data = jax.tree.map(lambda x: x[part], (xs, targets, weights))  # noqa: B023
            held = eqx.combine(at_time(before, start), fixed)
            loss, now, boundary = multi_step(problem, held, *data)
            past = jnp.concatenate(boundary) @ influences[start]
            if start == 0 and initial is not None:
                past = past + jnp.concatenate(boundary) @ initial
            value, gradient, start = value + loss, gradient + now + past, start + k
    grads = gradient_from_vector(gradient, problem.parameters)
    return (value, grads, (last, trace)) if return_final else (value, grads)
