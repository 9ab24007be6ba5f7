"""Pools between a convolution and spiking neurons."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.nn as nn

from .program import Program, check, chosen, normal

IMAGES = normal(4, 1, 4, 4, seed=1)
KERNEL = {"k": normal(2, 1, 3, 3, seed=2)}


def by_hand(a):
    return a.reshape(2, 2, 2, 2, 2).max((2, 4))


POOLS = {
    "by hand": by_hand,
    "max": eqx.nn.MaxPool2d(2, 2),
    "mean": eqx.nn.AvgPool2d(2, 2),
    "overlapping max": eqx.nn.MaxPool2d(3, 1),
    "adaptive": eqx.nn.AdaptiveAvgPool2d(2),
}


@pytest.mark.parametrize("name", chosen(POOLS, ("max", "mean")))
def test_pools_are_traced(name: str):
    lif = nn.LIF((2, 2, 2), tau=4.0, threshold=0.3)

    def step(w, state, x):
        drive = jax.lax.conv(x[None], w["k"], (1, 1), "SAME")[0]
        z, state = lif(state, POOLS[name](drive))
        return state.v + z, state

    program = Program(step, KERNEL, lif.init_state, inputs=IMAGES)
    check(program)
    report = etrace.DRTRL(program.model()).graph(jnp.zeros((1, 4, 4)))
    assert [row.status for row in report.rows] == ["traced"]
