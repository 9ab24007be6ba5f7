"""The arithmetic on traces: every form of it gives the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etrace._rules import _per_parameter as per_parameter

# batch, components, b, p, o, c: a dense layer, a convolution, a bias.
SHAPES = [
    (6, 1, 1, 1, 5, 4),
    (4, 2, 1, 3, 5, 2),
    (5, 3, 7, 1, 1, 1),
    (1, 2, 2, 2, 3, 4),
]


def normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def operands(shape: tuple[int, ...], k: int):
    batch, s, b, p, o, c = shape
    return (
        normal(*shape, seed=0),
        normal(batch, s, s, b, p, o, seed=1),
        normal(k, batch, s, b, p, o, seed=2),
        normal(k, batch, b, p, c, seed=3),
    )


def advanced(trace, d, f, x):
    """By definition."""
    return jnp.einsum("Bijbpo,Bjbpoc->Bibpoc", d, trace) + jnp.einsum(
        "kBibpo,kBbpc->Bibpoc", f, x
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3, 60])
def test_advance(shape: tuple[int, ...], k: int):
    trace, d, f, x = operands(shape, k)
    expected = advanced(trace, d, f, x)
    zero = advanced(0 * trace, d, f, x)
    forms = [per_parameter.advance, per_parameter._advance, per_parameter._by_blocks]
    for form in forms:
        assert jnp.allclose(form(trace, d, f, x), expected, rtol=1e-12, atol=1e-12)
        assert jnp.allclose(form(None, d, f, x), zero, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_contract(shape: tuple[int, ...]):
    trace, a = normal(*shape, seed=0), normal(*shape[:-1], seed=1)
    expected = jnp.einsum("Bsbpo,Bsbpoc->boc", a, trace)
    forms = [
        per_parameter.contract,
        per_parameter._contract,
        per_parameter._by_examples,
    ]
    for form in forms:
        assert jnp.allclose(form(a, trace), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3])
def test_a_packed_trace_is_a_bfloat16_one(shape: tuple[int, ...], k: int):
    """The bits are those that rounding by XLA gives."""
    trace, *rest = (x.astype(jnp.float32) for x in operands(shape, k))
    short = trace.astype(jnp.bfloat16)
    bits = per_parameter.packed(short)
    assert bits.dtype == jnp.uint16
    assert (per_parameter.unpacked(bits) == short).all()
    expected = per_parameter.advance(short, *rest)
    got = per_parameter.advance(bits, *rest)
    assert expected.dtype == jnp.bfloat16 and got.dtype == jnp.uint16
    assert (per_parameter.unpacked(got) == expected).all()
    a = rest[1][0]
    assert (per_parameter.contract(a, bits) == per_parameter.contract(a, short)).all()


def test_sums_of_short_numbers_are_exact_enough():
    """A thousand bfloat16 ones add up to a thousand, not to 256."""
    ones = jnp.ones((1000, 1, 1, 1, 1, 4), jnp.bfloat16)
    x = jnp.ones((1000, 1, 1, 1, 3), jnp.bfloat16)
    for f, x in ((ones, x), (ones[..., :1], x[..., :1])):
        d = jnp.ones((1, 1, 1, 1, 1, f.shape[-1]), jnp.bfloat16)
        assert (per_parameter.advance(None, d, f, x) == 1000).all()
    many = jnp.ones((1000, 1, 1, 1, 2, 3), jnp.bfloat16)
    assert (per_parameter.contract(many[..., 0], many) == 1000).all()


def test_rounding_to_bits():
    """Ties to even, infinities, NaNs, and numbers too small to be normal."""
    special = [0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-40, 3.4e38, -3.4e38]
    halves = 1 + 2.0**-8 * np.arange(-4, 5)  # halfway between two neighbours
    random = np.random.default_rng(0).normal(size=1000)
    values = jnp.asarray([*special, *halves, *random], jnp.float32)
    expected = values.astype(jnp.bfloat16)
    got = per_parameter.unpacked(per_parameter._stored(values, jnp.uint16))
    assert ((got == expected) | (jnp.isnan(got) & jnp.isnan(expected))).all()
