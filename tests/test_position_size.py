"""How many numbers of a leaf may be one position, and what is said of those that need
more."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.testing as et

from .rules import RULES

HEADS, SIZE, INPUTS = 2, 3, 2


class Heads(eqx.Module):
    """Heads whose units talk to each other, and to no other head."""

    w: jax.Array
    u: jax.Array
    held: bool = eqx.field(static=True)

    def __init__(self, held: bool = False):
        keys = jax.random.split(jax.random.key(0))
        self.w = jax.random.normal(keys[0], (HEADS * SIZE, INPUTS))
        self.u = jax.random.normal(keys[1], (HEADS, SIZE, SIZE))
        self.held = held

    @property
    def cells(self):  # what a rule of the contract tests is told to look at
        return (self.u,)

    def init_state(self):
        return jnp.zeros((HEADS, SIZE))

    def __call__(self, h, x):
        read = jax.lax.stop_gradient(h) if self.held else h
        u = jnp.einsum("hji,hj->hi", self.u, read)
        h = 0.7 * h + 0.3 * jnp.tanh((self.w @ x).reshape(h.shape) + u)
        return h, h


XS = jax.random.normal(jax.random.key(1), (5, INPUTS))
TARGETS = jnp.ones((5, HEADS, SIZE))
RUN = etrace.value_and_grad(et.squared_error, window=2, reduction="sum", carry=False)


def gradient(algorithm):
    return RUN(algorithm, None, XS, TARGETS)[1]


def close(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(jnp.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in pairs)


def test_it_decides_between_exact_and_cut():
    exact = gradient(etrace.RTRL(Heads()))
    # The gradient with the state held where it enters the product: that of D = 0.7.
    cut = gradient(etrace.RTRL(Heads(held=True)))
    assert not close(exact, cut)
    assert close(gradient(etrace.DRTRL(Heads(), position_size=SIZE)), exact)
    assert close(gradient(etrace.DRTRL(Heads())), exact)
    for size in (1, SIZE - 1):
        assert close(gradient(etrace.DRTRL(Heads(), position_size=size)), cut)


def test_a_cut_for_want_of_numbers_is_reported():
    report = etrace.DRTRL(Heads(), position_size=2).graph(XS[0])
    said = "3 numbers here, more than position_size=2: the coupling inside"
    (loss,) = report.losses
    assert said in loss.reason and "position_size=3 follows it" in loss.remedy
    notes = {row.parameter: row.reason for row in report.rows}
    assert said in notes[".u"] and "position_size=3 follows it" in notes[".u"]
    assert notes[".w"] == ""
    assert "1 (of 3)" in str(report)
    assert not etrace.DRTRL(Heads(), position_size=3).graph(XS[0]).losses
    assert not etrace.RTRL(Heads(), position_size=2).graph(XS[0]).losses


def test_rflo_has_one_number_a_neuron_whatever_it_is_given():
    for options in ({}, {"position_size": 1}, {"position_size": 8}):
        alg = etrace.RFLO(Heads(), leak=0.7, feedback="symmetric", **options)
        assert close(gradient(alg), gradient(etrace.RTRL(Heads(held=True))))
        assert not any("position_size" in x.reason for x in alg.graph(XS[0]).losses)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_takes_it(name: str):
    alg = RULES[name].make(Heads(), position_size=2)
    options = alg._graph_options()
    assert alg.position_size == 2
    assert options.position_size == (1 if name == "RFLO" else 2)


def test_a_trace_is_of_one_size():
    state = etrace.DRTRL(Heads(), position_size=2).init(XS[0])
    with pytest.raises(ValueError, match="another position_size than this one, 16"):
        etrace.DRTRL(Heads()).update(*state, XS[0])
