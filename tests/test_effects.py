"""Models that do more than compute: they print, and check their values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.testing as et


class Printing(eqx.Module):
    weight: jax.Array
    method: str = eqx.field(static=True)

    def init_state(self):
        return jnp.zeros(2)

    def __call__(self, h, x):
        jax.debug.print("{h} {w}", h=jnp.sum(h), w=self.weight[0])
        h = 0.5 * h + self.weight * x
        return h, h


class Checking(Printing):
    def __call__(self, h, x):
        x = eqx.error_if(x, jnp.any(jnp.isnan(x)), "x is not a number")
        h = 0.5 * h + self.weight * x
        return h, h


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_prints_once_a_step(method: str, capfd):
    model = Printing(jnp.array([1.0, 2.0]), method)
    ones = jnp.ones((4, 2))

    def printed(run) -> list[str]:
        run()
        jax.effects_barrier()
        return capfd.readouterr().out.split()

    expected = "0.0 1.0 3.0 1.0 4.5 1.0 5.25 1.0".split()
    if method == "multi-step":
        # Backpropagation prints what JAX lets it print: older ones, nothing.
        expected = printed(lambda: et.bptt(model, et.squared_error, ones, ones))
    driver = etrace.value_and_grad(et.squared_error, window=4, carry=False)
    algorithm = etrace.DRTRL(model, vjp_method=method)
    assert printed(lambda: driver(algorithm, None, ones, ones)) == expected


@pytest.mark.parametrize("batched", [False, True])
def test_a_check_raises_only_when_it_fails(batched: bool):
    model = Checking(jnp.array([1.0, 2.0]), "checking")
    inputs = np.ones((4, 3, 2) if batched else (4, 2))
    driver = etrace.value_and_grad(
        lambda y, t: 0.5 * jnp.sum((y - t) ** 2), reduction="sum", window=2, carry=False
    )
    algorithm = etrace.DRTRL(model, batched=batched)
    value, grads = driver(algorithm, None, inputs, 0 * inputs)
    plain = Checking.__mro__[1](jnp.array([1.0, 2.0]), "checking")
    one = inputs[:, 0] if batched else inputs
    expected, exact = et.bptt(plain, et.squared_error, one, 0 * one)
    copies = 3 if batched else 1
    assert jnp.allclose(value, copies * expected)
    assert jnp.allclose(grads.weight, copies * exact.weight)
    inputs[-1] = np.nan
    with pytest.raises(Exception, match="x is not a number"):
        jax.block_until_ready(driver(algorithm, None, inputs, 0 * inputs))
