"""Layers that look at a whole batch: its statistics, and what else goes by its name."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PyTree

import etrace

pytestmark = pytest.mark.filterwarnings(
    "ignore::etrace.UntracedParameterWarning", "ignore::etrace.LostCreditWarning"
)

IN, SIZE, BATCH, STEPS = 3, 4, 5, 6
INPUTS = jax.random.normal(jax.random.key(0), (STEPS, BATCH, IN))
TARGETS = jax.random.normal(jax.random.key(1), (STEPS, BATCH, SIZE))


class Normalised(eqx.Module):
    """Leaky neurons behind a batch normalisation; its running statistics are state."""

    w: Array
    u: Array | None
    norm: eqx.nn.BatchNorm
    start: eqx.nn.State
    leak: float = eqx.field(static=True)

    def __init__(self, mode: str = "batch", leak: float = 0.9, recurrent: bool = False):
        keys = jax.random.split(jax.random.key(2))
        self.w = jax.random.normal(keys[0], (SIZE, IN))
        self.u = jax.random.normal(keys[1], (SIZE, SIZE)) / 2 if recurrent else None
        make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
        self.norm, self.start = make(SIZE, "batch", mode=mode)
        self.leak = leak

    def init_state(self) -> tuple[Array, eqx.nn.State]:
        return jnp.zeros(SIZE), self.start

    def __call__(self, state: tuple, x: Array) -> tuple[Array, tuple]:
        h, statistics = state
        current = self.w @ x if self.u is None else self.w @ x + self.u @ h
        current, statistics = self.norm(current, statistics)
        h = self.leak * h + jnp.tanh(current)
        return h, (h, statistics)


def loss(y: Array, target: Array) -> Array:
    return jnp.sum((y - target) ** 2)


def by_bptt(model: eqx.Module) -> list[Array]:
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def total(params: PyTree) -> Array:
        model = eqx.combine(params, rest)
        step = jax.vmap(model, axis_name="batch")
        spread = lambda x: jnp.broadcast_to(x, (BATCH, *x.shape))  # noqa: E731
        start = jax.tree.map(spread, model.init_state())
        outputs = jax.lax.scan(lambda s, x: step(s, x)[::-1], start, INPUTS)[1]
        return jnp.sum((outputs - TARGETS) ** 2)

    return jax.tree.leaves(jax.grad(total)(params))


def gradient(algorithm: etrace.ETraceVjpAlgorithm, window: int) -> list[Array]:
    driver = etrace.value_and_grad(loss, window=window, reduction="sum", carry=False)
    return jax.tree.leaves(driver(algorithm, None, INPUTS, TARGETS)[1])


def errors(found: list[Array], exact: list[Array]) -> np.ndarray:
    pairs = zip(found, exact, strict=True)
    return np.array([float(jnp.max(jnp.abs(a - b))) for a, b in pairs])


def statuses(report: etrace.Report) -> dict[str, str]:
    return {r.parameter: r.status for r in report.rows}


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_windows_are_exact(mode: str):
    model = Normalised(mode, recurrent=True)
    algorithm = etrace.DRTRL(
        model, vjp_method="multi-step", batched=True, axis_name="batch"
    )
    assert errors(gradient(algorithm, STEPS), by_bptt(model)).max() < 1e-12


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_what_comes_behind_is_traced(mode: str):
    model = Normalised(mode)
    algorithm = etrace.DRTRL(model, batched=True, axis_name="batch")
    found = statuses(algorithm.graph(INPUTS[0]))
    assert found[".w"] == "now"
    assert found[".norm.weight"] == found[".norm.bias"] == "traced"
    wrong = errors(gradient(algorithm, 1), by_bptt(model))
    params = eqx.filter(model, eqx.is_inexact_array)
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    wrong = dict(zip(names, wrong, strict=True))
    assert wrong[".norm.weight"] < 1e-12 and wrong[".norm.bias"] < 1e-12
    assert wrong[".w"] > 1e-2


def test_before_it_the_gradient_of_the_present_is_exact():
    model = Normalised(leak=0.0)
    algorithm = etrace.DRTRL(model, batched=True, axis_name="batch")
    assert errors(gradient(algorithm, 1), by_bptt(model)).max() < 1e-12


def test_rules_for_single_examples_refuse():
    model, key = Normalised(), jax.random.key(3)
    rules = etrace.RTRL, etrace.SnAp
    random = etrace.UORO, etrace.KFRTRL
    named: dict[str, Any] = {"batched": True, "axis_name": "batch"}
    algorithms = [rule(model, **named) for rule in rules]
    for algorithm in algorithms + [rule(model, key=key, **named) for rule in random]:
        with pytest.raises(ValueError, match="other examples.*'batch'"):
            algorithm.init(INPUTS[0])
    fixed = eqx.nn.inference_mode(Normalised("ema"))
    found = gradient(etrace.RTRL(fixed, **named), 1)
    assert errors(found, by_bptt(fixed)).max() < 1e-9


def test_within_an_outer_map_they_refuse_too():
    """Influences between examples would be counted as one example's own."""
    algorithm = etrace.RTRL(Normalised())

    def one(inputs: Array, targets: Array) -> Any:
        return etrace.value_and_grad(loss, window=1)(algorithm, None, inputs, targets)

    with pytest.raises(ValueError, match="other examples.*'batch'"):
        jax.vmap(one, in_axes=1, axis_name="batch")(INPUTS, TARGETS)


def test_names_are_checked():
    model = Normalised()
    with pytest.raises(ValueError, match="axis_name is 'batch', but batched is False"):
        etrace.DRTRL(model, axis_name="batch")
    with pytest.raises(TypeError, match="axis_name is 1"):
        etrace.DRTRL(model, batched=True, axis_name=1)  # ty: ignore
    for name in (None, "examples"):
        algorithm = etrace.DRTRL(model, batched=True, axis_name=name)
        with pytest.raises(ValueError, match="named axis.*axis_name"):
            algorithm.init(INPUTS[0])


def test_gradients_are_checked_against_the_batch():
    algorithm = etrace.DRTRL(
        Normalised(), vjp_method="multi-step", batched=True, axis_name="batch"
    )
    etrace.check_gradients(
        algorithm, loss, INPUTS, TARGETS, window=STEPS
    ).assert_close()


def in_a_loop(x: Array) -> Array:
    more = lambda x, _: (x - 0.1 * jax.lax.pmean(x, "batch"), None)  # noqa: E731
    return jax.lax.scan(more, x, None, length=40)[0]


def rotated(x: Array) -> Array:
    pairs = [(b, (b + 1) % BATCH) for b in range(BATCH)]
    return jax.lax.ppermute(x, "batch", pairs)


OPERATIONS: dict[str, Callable[[Array], Array]] = {
    "largest": lambda x: x / (1 + jax.lax.pmax(jax.lax.stop_gradient(x), "batch") ** 2),
    "gathered": lambda x: jnp.std(jax.lax.all_gather(x, "batch"), axis=0) * x,
    "numbered": lambda x: x * (1.0 + jax.lax.axis_index("batch").astype(x.dtype)),
    "rotated": rotated,
    "in a loop": in_a_loop,
}


class Leaky(eqx.Module):
    w: Array
    u: Array
    name: str = eqx.field(static=True)

    def init_state(self) -> Array:
        return jnp.zeros(SIZE)

    def __call__(self, h: Array, x: Array) -> tuple[Array, Array]:
        scale = jax.lax.psum(self.u[0], "batch")  # of weights alone
        h = 0.5 * h + OPERATIONS[self.name](self.w @ x + scale * (self.u @ jnp.tanh(h)))
        return jax.lax.pmean(h, "batch") + h, h


@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_goes_by_the_name(name: str):
    keys = jax.random.split(jax.random.key(4))
    w, u = (
        jax.random.normal(keys[0], (SIZE, IN)),
        jax.random.normal(keys[1], (SIZE,) * 2),
    )
    model = Leaky(w, u / 9, name)
    algorithm = etrace.DRTRL(
        model, vjp_method="multi-step", batched=True, axis_name="batch"
    )
    exact = by_bptt(model)
    assert errors(gradient(algorithm, STEPS), exact).max() < 1e-9
    # Without recurrence, what is said to be traced is exact.
    alone = Leaky(w, jnp.zeros_like(u), name)
    single = etrace.DRTRL(alone, batched=True, axis_name="batch")
    wrong = errors(gradient(single, 1), by_bptt(alone))[0]
    said = statuses(single.graph(INPUTS[0]))[".w"]
    assert said == ("traced" if name in ("largest", "numbered") else "now")
    assert (wrong < 1e-9) == (said == "traced")
