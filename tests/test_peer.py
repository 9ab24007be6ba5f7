"""What braintrace 0.2.6 refuses, or gets wrong without a word, and is right here.

Its tails, fused gates, checkpoints and grouped convolutions are constructs of the table
in the documentation; `test_constructs.py` compares their gradients.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.testing as et

from .constructs import CONSTRUCTS, IN, OUT, STEPS, normal

EXACT = {
    "roll behind the weight": "Positions and states",
    "fused gates, split": "Positions and states",
    "synaptic filter": "Positions and states",
    "grouped convolution": "Operations",
    "`jax.checkpoint`": "Control flow",
    "a product with a weight in 40 substeps": "Control flow",
}
# There the gradient is silently wrong, here it is the exact instantaneous one.
REPORTED = [
    "LayerNorm behind the weight",
    "softmax behind the weight",
    "constant matrix behind the weight",
]


def test_the_cases_are_in_the_table():
    for name, section in EXACT.items():
        assert not CONSTRUCTS[section][name].now
    for name in REPORTED:
        assert CONSTRUCTS["Positions and states"][name].now


class Gated(eqx.Module):
    """An unmodified GRU with a linear read-out."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def init_state(self):
        return jnp.zeros(self.cell.hidden_size)

    def __call__(self, h, x):
        h = self.cell(x, h)
        return self.readout(h), h


@pytest.mark.parametrize("rule", [etrace.DRTRL, etrace.ESDRTRL])
def test_reset_gate_and_read_out_learn_in_single_steps(rule: type):
    """There both get a gradient of zero."""
    cell, readout = jax.random.split(jax.random.key(0))
    model = Gated(eqx.nn.GRUCell(IN, 5, key=cell), eqx.nn.Linear(5, OUT, key=readout))
    args = normal(STEPS, IN, seed=1), normal(STEPS, OUT, seed=2)
    driver = etrace.value_and_grad(
        et.squared_error, window=1, reduction="sum", carry=False
    )
    _, grads = driver(rule(model), None, *args)
    _, expected = et.bptt(model, et.squared_error, *args, reduction="sum")
    # Nothing of the read-out's gradient lies in the past.
    assert et.gradient_distance(grads.readout, expected.readout) < 1e-9
    for weights in (grads.cell.weight_ih, grads.cell.weight_hh):
        reset, *_ = jnp.split(weights, 3)
        assert jnp.linalg.norm(reset) > 1e-3
