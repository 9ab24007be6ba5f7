"""Masked steps count nothing, whatever they hold: padding need not be finite."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace

STEPS, BATCH, SIZE = 7, 3, 2
KEYS = jax.random.split(jax.random.key(0), 4)
INPUTS = jax.random.normal(KEYS[0], (STEPS, BATCH, SIZE))
TARGETS = jax.random.normal(KEYS[1], (STEPS, BATCH, SIZE))
NET = etrace.nn.RNN([eqx.nn.GRUCell(SIZE, SIZE, key=KEYS[2])])
POISONS = [np.nan, np.inf, -np.inf]
# Gaps, padding at the end and at the beginning; weights that are neither 0 nor 1.
STEP_MASK = np.array([1.0, 0.0, 0.5, 2.0, 0.0, 1.0, 0.0])
EXAMPLE_MASK = np.stack([STEP_MASK, STEP_MASK[::-1], (np.arange(7) < 2) * 1.0], 1)


def loss(y, t):
    return jnp.sum((y - t) ** 2)


def distance(y, t):
    """Its derivative is not a number where `y` is `t`."""
    return jnp.linalg.norm(jnp.ravel(y - t))


def filled(x, mask, value, every=1):
    """`x`, every so many of its masked numbers another."""
    masked = np.broadcast_to(
        (mask == 0).reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape
    ).copy()
    masked.reshape(-1)[1::every] &= every == 1
    return jnp.where(masked, value, x)


def same(found, expected):
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return all(jnp.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in pairs)


RULES = {
    "DRTRL": etrace.DRTRL,
    "multi-step": functools.partial(etrace.DRTRL, vjp_method="multi-step"),
    "RTRL": etrace.RTRL,
    "ESDRTRL": functools.partial(etrace.ESDRTRL, decay=0.8),
    "EProp": functools.partial(etrace.EProp, kappa=0.5),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("window", [1, 3])
def test_padding_counts_nothing(rule, window):
    algorithm = RULES[rule](NET, batched=True)
    run = etrace.value_and_grad(loss, window=window)
    clean = [filled(x, EXAMPLE_MASK, 0.0) for x in (INPUTS, TARGETS)]
    expected = run(algorithm, None, *clean, EXAMPLE_MASK)
    assert jnp.abs(expected[0]) > 0.1
    for poison in POISONS:
        bad = [filled(x, EXAMPLE_MASK, poison) for x in (INPUTS, TARGETS)]
        assert same(run(algorithm, None, *bad, EXAMPLE_MASK), expected)


@pytest.mark.parametrize("mask", [STEP_MASK, STEP_MASK != 0])
def test_masks_of_steps(mask):
    """One for all examples; and what is finite at a masked step is what it is."""
    run = etrace.value_and_grad(loss, window=3)
    for batched, part in ((True, np.s_[:]), (False, np.s_[:, 0])):
        algorithm, data = (
            etrace.DRTRL(NET, batched=batched),
            (INPUTS[part], TARGETS[part]),
        )
        expected = run(algorithm, None, filled(data[0], mask, 0.0, 2), data[1], mask)
        bad = (filled(data[0], mask, np.nan, 2), filled(data[1], mask, np.inf))
        assert same(run(algorithm, None, *bad, mask), expected)
        # The mean is of what counts.
        total = etrace.value_and_grad(loss, window=3, reduction="sum", carry=False)
        both = total(algorithm, None, *bad, mask)
        scaled = jax.tree.map(lambda x: x / float(np.sum(mask)), both)
        assert same(expected[:2], scaled)


def test_states_move_on_through_masked_steps():
    algorithm, mask = etrace.DRTRL(NET), jnp.asarray(STEP_MASK)
    run = etrace.value_and_grad(loss)
    *_, (hidden, _, _) = run(algorithm, None, INPUTS[:, 0], TARGETS[:, 0], mask)
    (expected, _, _), _ = etrace.evolve(algorithm, None, INPUTS[:, 0])
    assert same(hidden, expected)


@pytest.mark.parametrize("window", [1, STEPS])
def test_a_loss_with_no_derivative(window):
    """Where the mask is zero, outputs equal the targets: its derivative is 0 / 0."""
    algorithm = etrace.DRTRL(NET)
    _, outputs = etrace.evolve(algorithm, None, INPUTS[:, 0])
    targets = jnp.where(STEP_MASK[:, None] == 0, outputs, TARGETS[:, 0])
    data = (algorithm, None, INPUTS[:, 0])
    run = etrace.value_and_grad(distance, window=window, carry=False)
    expected = run(*data, TARGETS[:, 0], STEP_MASK)
    assert same(run(*data, targets, STEP_MASK), expected)
    _, without = run(*data, targets)
    assert jnp.isnan(jax.tree.leaves(without)[0]).any()


def test_nothing_counts():
    bad = [jnp.full_like(x, jnp.nan) for x in (INPUTS, TARGETS)]
    for mask in (np.zeros(STEPS), np.zeros((STEPS, BATCH))):
        for reduction in ("mean", "sum"):
            run = etrace.value_and_grad(loss, window=3, reduction=reduction)
            value, grads, state = run(etrace.DRTRL(NET, batched=True), None, *bad, mask)
            assert value == 0 and not any(x.any() for x in jax.tree.leaves(grads))
            assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))


def test_numbers_that_count_are_not_hidden():
    """Nor are targets and inputs of steps with a weight."""
    run = etrace.value_and_grad(loss, window=3)
    algorithm = etrace.DRTRL(NET)
    for n in range(2):
        data = [INPUTS[:, 0], TARGETS[:, 0]]
        data[n] = data[n].at[3].set(jnp.nan)
        assert jnp.isnan(run(algorithm, None, *data, STEP_MASK)[0])


def test_learn_and_stream():
    mask, clean = (
        EXAMPLE_MASK,
        [filled(x, EXAMPLE_MASK, 0.0) for x in (INPUTS, TARGETS)],
    )
    bad = [np.asarray(filled(x, EXAMPLE_MASK, np.nan)) for x in (INPUTS, TARGETS)]
    train = etrace.learn(loss, optax.sgd(0.1), window=2)
    expected = train(etrace.DRTRL(NET, batched=True), None, None, *clean, mask)
    algorithm = etrace.DRTRL(NET, batched=True)
    assert same(train(algorithm, None, None, *bad, mask), expected)
    pieces = etrace.stream(train, algorithm, None, None, (*bad, mask), steps=4)
    *_, (algorithm, _, state, _) = pieces
    assert same((algorithm, state), (expected[0], expected[2]))


def test_line_searches():
    """The function they are given is that of the steps that count."""
    train = etrace.learn(loss, optax.lbfgs(), window=STEPS)
    data = [
        (filled(INPUTS[:, 0], STEP_MASK, x), filled(TARGETS[:, 0], STEP_MASK, x))
        for x in (0.0, np.nan)
    ]
    with jax.numpy_dtype_promotion("standard"):
        found = [train(etrace.DRTRL(NET), None, None, *d, STEP_MASK) for d in data]
    assert same(found[1][0], found[0][0]) and not same(found[1][0].model, NET)


@pytest.mark.parametrize("mask", [STEP_MASK, EXAMPLE_MASK])
def test_modulators(mask):
    """They are weighted as the losses are."""
    net = Instant(jnp.ones((SIZE, SIZE)))
    run = etrace.value_and_grad(loss, window=3, reduction="sum", carry=False)
    algorithm = etrace.ThreeFactor(net, batched=True)
    for shape in ((STEPS,), (STEPS, BATCH), (STEPS, BATCH, SIZE)):
        modulator = jax.random.normal(KEYS[3], shape)
        weights = jnp.asarray(mask.reshape(STEPS, -1, 1))
        weighted = weights * modulator.reshape(shape + (1,) * (3 - len(shape)))
        weighted = jnp.broadcast_to(weighted, (STEPS, BATCH, SIZE))
        _, expected = run(algorithm, None, INPUTS, TARGETS, None, weighted)
        if mask.ndim <= len(shape):
            modulator = filled(modulator, mask, np.nan)
        _, found = run(algorithm, None, INPUTS, TARGETS, mask, modulator)
        assert same(found, expected)


class Instant(eqx.Module):
    """Its output is its new state: modulators are all there is to learn from."""

    weight: jax.Array

    def init_state(self):
        return jnp.zeros(SIZE)

    def __call__(self, h, x):
        h = 0.9 * h + jnp.tanh(self.weight @ x)
        return h, h


class Linear(eqx.Module):
    weight: jax.Array

    def __call__(self, hidden):
        return self.weight @ hidden


@pytest.mark.parametrize("mask", [STEP_MASK[:6], EXAMPLE_MASK[:6]])
def test_synthesisers(mask):
    """What they learn is the loss of the steps that count."""

    def weighted(y, t):
        target, weight = t
        return jnp.sum(weight * jnp.sum((y - target) ** 2, axis=1))

    dni = etrace.DNI(
        Instant(jnp.ones((SIZE, SIZE))),
        synthesiser=Linear(jnp.zeros((SIZE, SIZE))),
        batched=True,
    )
    weights = jnp.broadcast_to(mask.reshape(6, -1), (6, BATCH))
    clean = [filled(x[:6], mask, 0.0) for x in (INPUTS, TARGETS)]
    clean[1] = (clean[1], weights)
    bad = [filled(x[:6], mask, np.nan) for x in (INPUTS, TARGETS)]
    options = dict(window=2, epochs=4)
    fit = etrace.fit_synthesiser
    expected = fit(dni, weighted, *clean, optax.sgd(0.1), **options)
    found = fit(dni, loss, *bad, optax.sgd(0.1), mask=mask, **options)
    assert same(found, expected) and jnp.abs(found[0].synthesiser.weight).max() > 0.1


def test_check_gradients():
    bad = [filled(x, EXAMPLE_MASK, np.nan)[:, :2] for x in (INPUTS, TARGETS)]
    algorithm = etrace.DRTRL(Instant(jnp.ones((SIZE, SIZE))), batched=True)
    check = etrace.check_gradients(algorithm, loss, *bad, EXAMPLE_MASK[:, :2], window=3)
    check.assert_close(rtol=1e-9)
    assert check.total.norm > 0.1 and check.parameters[0].rtrl < 1e-9
    assert check.parameters[0].slope < 1e-6
    assert all(lag.comparison.error < 1e-9 for lag in check.lags)


class Spelled(eqx.Module):
    """It is given letters, a number, and their outputs."""

    table: jax.Array

    def init_state(self):
        return jnp.zeros(SIZE)

    def __call__(self, h, letter, x):
        h = 0.9 * h + jnp.tanh(self.table[letter]) + x
        return {"h": h, "spikes": h > 0}, h


def test_integers_are_left_alone():
    algorithm = etrace.DRTRL(Spelled(jnp.ones((4, SIZE))))
    letters, numbers = jnp.arange(STEPS) % 4, INPUTS[:, 0, 0]
    run = etrace.value_and_grad(lambda y, t: loss(y["h"], t), carry=False)
    clean = (letters, filled(numbers, STEP_MASK, 0.0))
    bad = (letters, filled(numbers, STEP_MASK, np.nan))
    expected = run(algorithm, None, clean, TARGETS[:, 0], STEP_MASK)
    assert same(run(algorithm, None, bad, TARGETS[:, 0], STEP_MASK), expected)
    assert jnp.abs(expected[1].table).max() > 0.1
