"""Models with nothing to trace: no state, or only a count of steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import etrace
import etrace.testing as et

from ..rules import RULES
from .program import IN, INPUTS, STEPS, chosen, errors, normal

OUT = 2
TARGETS = jnp.zeros((STEPS, OUT))


def loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(outputs - targets))


class Counting(eqx.Module):
    """Its only state is an integer, if it has any."""

    cells: tuple[jax.Array, ...]
    counts: bool = eqx.field(static=True)

    def init_state(self):
        return jnp.zeros((), int) if self.counts else ()

    def __call__(self, state, x):
        y = jnp.tanh(self.cells[0] @ x)
        if not self.counts:
            return y, state
        return y * (1.0 + state.astype(float)), state + 1


def model(counts: bool) -> Counting:
    return Counting((normal(OUT, IN),), counts)


def exact(counts: bool) -> Counting:
    return et.bptt(model(counts), loss, INPUTS, TARGETS)[1]


COMMON = ("DRTRL", "HybridDRTRL", "UORO", "SnAp", "ThreeFactor", "DNI")


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("name", chosen(RULES, COMMON))
def test_every_rule_gives_the_gradient_of_the_instant(name: str, counts: bool):
    rule = RULES[name]
    algorithm = rule.make(model(counts), batched=True)
    inputs, targets = (jnp.stack([x, x], axis=1) for x in (INPUTS, TARGETS))
    run = etrace.value_and_grad(loss, window=2, reduction="sum", carry=False)
    more = {"modulator": jnp.ones((STEPS, 2))} if rule.modulated else {}
    found = run(algorithm, None, inputs, targets, **more)[1]
    twice = jax.tree.map(lambda g: 2 * g, exact(counts))
    assert max(errors(found, twice).values()) < 1e-9
    report = algorithm.graph(inputs[0])
    assert {row.status for row in report.rows} == {"output"} and not report.losses
    state = algorithm.update(*algorithm.init(inputs[0]), inputs[0])[1:]
    assert algorithm.update(*state, inputs[1])[0].shape == (2, OUT)


@pytest.mark.parametrize("counts", [True, False])
def test_every_driver_takes_it(counts: bool):
    algorithm = etrace.DRTRL(model(counts))
    _, outputs = etrace.evolve(algorithm, None, INPUTS)
    assert outputs.shape == (STEPS, OUT)
    learn = etrace.learn(loss, optax.sgd(0.1), reduction="sum")
    trained, _, _, losses = learn(algorithm, None, None, INPUTS, TARGETS)
    assert losses.shape == (STEPS,)
    change = trained.model.cells[0] - algorithm.model.cells[0]
    first = et.bptt(model(counts), loss, INPUTS[:1], TARGETS[:1])[1]
    one = learn(algorithm, None, None, INPUTS[:1], TARGETS[:1])[0]
    moved = one.model.cells[0] - algorithm.model.cells[0]
    assert jnp.any(change) and jnp.allclose(moved, -0.1 * first.cells[0], atol=1e-12)
    check = etrace.check_gradients(algorithm, loss, INPUTS, TARGETS)
    check.assert_close()


def test_a_filter_that_leaves_out_every_number_is_refused():
    class Leaking(eqx.Module):
        w: jax.Array

        def init_state(self):
            return jnp.zeros(OUT)

        def __call__(self, state, x):
            return state, 0.9 * state + self.w @ x

    algorithm = etrace.DRTRL(Leaking(normal(OUT, IN)), hidden_filter=lambda _: False)
    with pytest.raises(ValueError, match="selects nothing"):
        algorithm.graph(INPUTS[0])
