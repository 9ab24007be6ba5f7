"""A program from the wild, and what must hold of its gradients."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etrace

N, IN, STEPS = 4, 3, 6
Weights = dict[str, Any]


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return 0.5 * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


INPUTS = 2 * normal(STEPS, IN, seed=1)
W, U = normal(N, IN, seed=2), normal(N, N, seed=3)  # into the layer, and within it


class Net(eqx.Module):
    """A step made of weights and a function of them."""

    weights: Weights
    step: Callable = eqx.field(static=True)
    start: Callable = eqx.field(static=True)

    def init_state(self) -> Any:
        return self.start()

    def __call__(self, state: Any, x: Any) -> tuple[Any, Any]:
        return self.step(self.weights, state, x)


@dataclasses.dataclass(frozen=True)
class Program:
    """`step(weights, state, x) -> (outputs, state)`.

    - `start`: makes the first state.
    - `exact`: whether single steps of `DRTRL` are backpropagation through time, by the
        mathematics. If not, its report must say that something is left out.
    - `inputs`: one leading axis of time.
    - `tolerance`: of the norm of a gradient.
    """

    step: Callable
    weights: Weights
    start: Callable[[], Any] = lambda: jnp.zeros(N)
    exact: bool = True
    inputs: Any = dataclasses.field(default_factory=lambda: INPUTS)
    tolerance: float = 1e-9

    def model(self) -> Net:
        return Net(self.weights, self.step, self.start)


def loss(outputs: Any, target: Any) -> jax.Array:
    """Of outputs of any structure and dtype, of one example or of a batch."""
    leaves = [jnp.asarray(y) for y in jax.tree.leaves(outputs)]
    terms = [jnp.sum(jnp.square(jnp.abs(y - 0.3))).astype(float) for y in leaves]
    return sum(terms, start=0.0 * jnp.sum(target))


def differentiated(model: Net, inputs: Any) -> tuple[Weights, Any]:
    """By JAX through a scan: by the weights, and by the first state."""

    def total(differentiable: tuple[Net, Any], rest: Any) -> jax.Array:
        model, state = differentiable
        step = lambda state, x: model(state, x)[::-1]  # noqa: E731
        outputs = jax.lax.scan(step, eqx.combine(state, rest), inputs)[1]
        return jnp.sum(jax.vmap(lambda y: loss(y, jnp.zeros(())))(outputs))

    start = jax.tree.map(jnp.asarray, model.init_state())
    state, rest = eqx.partition(start, eqx.is_inexact_array)
    by_model, by_start = eqx.filter_grad(total)((model, state), rest)
    return by_model.weights, by_start


def online(algorithm: etrace.ETraceVjpAlgorithm, inputs: Any, window: int) -> Weights:
    run = etrace.value_and_grad(loss, window=window, reduction="sum", carry=False)
    steps = len(jax.tree.leaves(inputs)[0])
    return run(algorithm, None, inputs, jnp.zeros(steps))[1].weights


@dataclasses.dataclass(frozen=True)
class Found:
    """The gradients of a program by several methods, and what the report of `DRTRL`
    says is left out.

    - `by_start`: of the loss by the first state.
    """

    exact: Weights
    by_start: Any
    rtrl: Weights
    multi_step: Weights
    drtrl: Weights
    left_out: tuple[str, ...]


def find(program: Program) -> Found:
    steps = len(jax.tree.leaves(program.inputs)[0])

    @eqx.filter_jit
    def compiled(model: Net, inputs: Any) -> tuple[Any, ...]:
        return (
            *differentiated(model, inputs),
            online(etrace.RTRL(model), inputs, 2),
            online(etrace.DRTRL(model, None, "multi-step"), inputs, steps),
            online(etrace.DRTRL(model), inputs, 1),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        return Found(*compiled(program.model(), program.inputs), left_out(program))


def errors(found: Weights, exact: Weights) -> dict[str, float]:
    """|g - e| / |e| of every weight."""

    def error(a: jax.Array, b: jax.Array) -> float:
        a, b = a.astype(complex), b.astype(complex)
        return float(jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) + 1e-6))

    return {
        jax.tree_util.keystr(path): error(a, b)
        for (path, a), b in zip(
            jax.tree_util.tree_flatten_with_path(found)[0],
            jax.tree.leaves(exact),
            strict=True,
        )
    }


def left_out(program: Program) -> tuple[str, ...]:
    """What the report of `DRTRL` says is not followed."""
    x = jax.tree.map(lambda x: x[0], program.inputs)
    report = etrace.DRTRL(program.model()).graph(x)
    now = [r.parameter for r in report.rows if r.status in ("now", "partly")]
    return (*now, *(name for omission in report.losses for name in omission.what))


def chosen(names: Iterable[str], common: Collection[str]) -> list[str]:
    """Those of the names that are common; all of them in the profile "thorough". Each
    takes seconds to compile, and the others have never failed yet."""
    thorough = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
    return [name for name in names if thorough or name in common]


def check(program: Program) -> None:
    """RTRL and a window over everything are backpropagation through time. So are single
    steps of DRTRL, or the report says what they leave out."""
    found = find(program)
    gradients = jax.tree.leaves((found.exact, found.by_start))
    assert all(map(jnp.all, map(jnp.isfinite, gradients)))
    # Losses depend on the past, or every comparison would pass.
    assert any(map(jnp.any, jax.tree.leaves(found.by_start)))
    for gradient in (found.rtrl, found.multi_step):
        wrong = errors(gradient, found.exact)
        assert max(wrong.values()) <= program.tolerance, wrong
    wrong = errors(found.drtrl, found.exact)
    of_state = [what for what in found.left_out if not what.startswith(".weights")]
    for name, error in wrong.items():
        told = bool(of_state) or f".weights{name}" in found.left_out
        if program.exact or not told:
            assert error <= program.tolerance, (wrong, found.left_out)
