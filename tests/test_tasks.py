"""The tasks that the learning rules are compared on, and that one of them learns."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace
import etrace.testing as et
from notebooks.networks import LeakyNet, SpikingNet
from notebooks.tasks import copy, cross_entropy, error_rate, evidence_accumulation

SHORT = dict(cues=1, cue=10, gap=5, delay=15, recall=10)


def test_evidence_accumulation():
    batch, cues = 40, 5
    sequences = evidence_accumulation(jax.random.key(0), batch, cues)
    inputs, targets, mask = map(np.asarray, sequences)
    steps = cues * (20 + 10) + 30 + 20
    assert inputs.shape == (steps, batch, 40) and inputs.dtype == float
    assert targets.shape == (steps, batch) and mask.shape == (steps,)
    assert set(np.unique(inputs)) == {0, 1}
    assert not mask[:-20].any() and (mask[-20:] == 1).all()

    spikes = np.asarray(inputs).reshape(steps, batch, 4, 10).sum(axis=3)
    shown = spikes[: 30 * cues].reshape(cues, 30, batch, 4)
    assert not shown[:, 20:, :, :2].any()  # the gaps
    assert not spikes[30 * cues :, :, :2].any()  # the delay and the request
    left, right = shown[:, :20, :, 0].sum(axis=1), shown[:, :20, :, 1].sum(axis=1)
    assert ((left > 0) != (right > 0)).all()  # each cue comes from one side
    assert (targets == ((right > 0).sum(axis=0) > cues // 2)).all()
    assert set(np.unique(targets)) == {0, 1}
    assert not spikes[:-20, :, 2].any() and spikes[-20:, :, 2].any(axis=0).all()
    assert spikes[:, :, 3].any(axis=0).all()  # noise


def test_rates_of_spikes():
    inputs = evidence_accumulation(jax.random.key(0), 200).inputs
    assert inputs[-20:, :, 20:30].mean() == pytest.approx(0.2, rel=0.05)
    assert inputs[:, :, 30:].mean() == pytest.approx(0.02, rel=0.05)


def test_cues_do_not_tie():
    with pytest.raises(ValueError, match="expected an odd number"):
        evidence_accumulation(jax.random.key(0), 1, cues=4)


def test_copy():
    sequences = copy(jax.random.key(0), 20, delay=4, symbols=5, length=3)
    inputs, targets, mask = sequences
    assert inputs.shape == (10, 20, 6) and inputs.dtype == float
    assert mask.tolist() == [0.0] * 7 + [1.0] * 3
    assert (inputs[:3].argmax(axis=2) == targets[7:]).all()
    assert set(np.unique(targets[7:])) == set(range(5))
    assert (inputs[:3].sum(axis=2) == 1).all() and not inputs[3:, :, :5].any()
    assert (inputs[:, :, 5] == mask[:, None]).all()


def test_error_rate_counts_what_is_asked():
    sequences = copy(jax.random.key(0), 20, symbols=2)
    right = jax.nn.one_hot(sequences.targets, 2)
    asked = sequences.mask[:, None, None] == 1
    assert error_rate(right, sequences) == 0
    assert error_rate(1 - right, sequences) == 1
    assert error_rate(jnp.where(asked, right, 1 - right), sequences) == 0
    one = right.at[-1, :5].set(1 - right[-1, :5])  # 5 of 3 x 20 answers
    assert error_rate(one, sequences) == pytest.approx(5 / 60)


@pytest.mark.parametrize("make_net", [LeakyNet, SpikingNet])
def test_networks_are_traced(make_net):
    net = make_net(4, 6, 2, key=jax.random.key(0))
    rows = etrace.DRTRL(net).graph(jnp.zeros(4)).rows
    assert {row.status for row in rows} <= {"traced", "output"}


@jax.numpy_dtype_promotion("standard")  # optax relies on it
def test_e_prop_learns():
    """Within a few updates; with the instantaneous gradient the loss stays."""
    keys = jax.random.split(jax.random.key(0), 3)
    net = SpikingNet(40, 20, 2, key=keys[0])
    algorithm = etrace.EProp(net, kappa=net.decays[2], batched=True)
    optimiser = optax.adam(1e-2)

    def draw(key):
        return evidence_accumulation(key, 32, **SHORT)

    sequences = draw(keys[1])
    value_and_grad = etrace.value_and_grad(cross_entropy, window=40, carry=False)
    before, gradient = value_and_grad(algorithm, None, *sequences)
    instantaneous = etrace.ESDRTRL(net, decay=0.0, batched=True)
    _, now = value_and_grad(instantaneous, None, *sequences)
    assert et.gradient_distance(gradient, now) > 0.1

    train = etrace.learn(cross_entropy, optimiser, window=40)
    state = optimiser.init(eqx.filter(net, eqx.is_inexact_array))
    for key in jax.random.split(keys[2], 25):
        algorithm, state, _, _ = train(algorithm, state, None, *draw(key))
    after, _ = value_and_grad(algorithm, None, *sequences)
    assert after < 0.7 * before
