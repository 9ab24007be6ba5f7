"""On many devices: the same gradients, and traces that lie where their weights do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

import etrace

from ..helpers import examples, fresh_caches
from ..rules import RULES, Rule
from .placed import BATCH, IN, Layout, Leaky, axes, data, gru, loss, quiet, share

# All rules, in the thorough profile.
SOME = ("DRTRL", "OTTT", "RTRL", "UORO")
CHOSEN = [name for name in RULES if name in SOME or examples(ci=0, thorough=1)]
MODELS = {"leaky": Leaky, "GRU": gru}


def close(found, expected, tolerance=1e-9):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if jnp.issubdtype(a.dtype, jnp.inexact):
            scale = max(1e-30, float(jnp.max(abs(b))))
            assert (
                float(jnp.max(abs(np.asarray(a) - np.asarray(b)))) < tolerance * scale
            )


def modulator(rule: Rule):
    return jnp.ones(data()[0].shape[:2]) if rule.modulated else None


@pytest.mark.parametrize("layout", examples(ci=[(2, 4)], thorough=[(8, 1), (2, 4)]))
@pytest.mark.parametrize("name", CHOSEN)
def test_the_gradient_is_that_of_one_device(name, layout):
    fresh_caches()
    rule, place, (xs, ys) = RULES[name], Layout(*layout), data()
    algorithm = quiet(rule.make, Leaky())
    driver = etrace.value_and_grad(loss, window=4)
    value, grads, state = driver(algorithm, None, xs, ys, None, modulator(rule))

    placed = algorithm.with_model(place.model(algorithm.model))
    found, more, new = driver(
        placed,
        placed.init(place.data(xs)[0]),
        *place.data((xs, ys)),
        None,
        modulator(rule),
    )
    close((found, more, new), (value, grads, state))
    assert {
        e.sharding.device_set == set(jax.devices()) for e in jax.tree.leaves(new[2])
    }


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("begin", ["init", "fresh"])
def test_a_trace_lies_with_its_weight_and_its_examples(begin, window):
    """ε of w is [batch, 1, 1, 1, outputs, inputs], of b [batch, 1, outputs, ...]."""
    place, (xs, ys) = Layout(2, 4), data()
    algorithm = etrace.DRTRL(place.model(Leaky()), batched=True)
    xs, ys = place.data((xs, ys))
    weight, bias = ("data", None, None, None, "model", None), ("data", None, "model")
    expected = [weight, weight, bias + (None,) * 3]
    state = algorithm.init(xs[0]) if begin == "init" else None
    if state is not None:
        assert list(map(axes, jax.tree.leaves(state[2]))) == expected
        assert axes(state[0]) == ("data", "model")
    _, _, state = etrace.value_and_grad(loss, window=window)(algorithm, state, xs, ys)
    assert list(map(axes, jax.tree.leaves(state[2]))) == expected
    assert share(state[2]) == 1 / 8


def test_no_device_ever_holds_a_whole_trace():
    """Nor does `init` make one somewhere and send its parts."""
    place, (xs, _) = Layout(2, 4), data()
    algorithm = etrace.RTRL(place.model(Leaky()), batched=True)
    state = algorithm.init(place.data(xs)[0])
    assert share(state[2]) == 1 / 8


@jax.numpy_dtype_promotion("standard")  # optax relies on it
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_training(make):
    """The weights stay where they are, and become what they become on one device."""
    place, (xs, ys) = Layout(4, 2), data()
    algorithm = etrace.DRTRL(make(), batched=True)
    train = etrace.learn(loss, optax.adam(1e-2), window=2)
    expected, _, _, losses = train(algorithm, None, None, xs, ys)

    placed = algorithm.with_model(place.model(algorithm.model))
    trained, moments, state, found = train(placed, None, None, *place.data((xs, ys)))
    close((trained.model, found), (expected.model, losses))
    weights = eqx.filter(trained.model, eqx.is_array)
    before = eqx.filter(placed.model, eqx.is_array)
    assert jax.tree.map(axes, weights) == jax.tree.map(axes, before)
    assert jax.tree.map(axes, moments[0].mu) == jax.tree.map(axes, before)
    assert all(axes(e)[0] == "data" for e in jax.tree.leaves(state[2]))


def test_shard_map():
    """Each device trains on its own examples; gradients are averaged."""
    place, (xs, ys) = Layout(8, 1), data()
    algorithm = etrace.DRTRL(gru(), batched=True)
    expected, _, _, losses = etrace.learn(loss, optax.sgd(0.1), window=2)(
        algorithm, None, None, xs, ys
    )
    mean = optax.stateless(lambda grads, _: lax.pmean(grads, "data"))
    train = etrace.learn(loss, optax.chain(mean, optax.sgd(0.1)), window=2)
    arrays, static = eqx.partition(algorithm, eqx.is_array)

    def on_each(arrays, xs, ys):
        trained, _, state, losses = train(
            eqx.combine(arrays, static), None, None, xs, ys
        )
        return eqx.filter(trained, eqx.is_array), state, lax.pmean(losses, "data")

    on_all = jax.shard_map(
        on_each,
        mesh=place.mesh,
        in_specs=(P(), P(None, "data"), P(None, "data")),
        out_specs=(P(), P("data"), P()),
        check_vma=False,
    )
    trained, state, found = jax.jit(on_all)(arrays, xs, ys)
    close((trained, found), (arrays_of(expected), losses))
    assert all(axes(e)[0] == "data" for e in jax.tree.leaves(state[2]))


def arrays_of(tree):
    return eqx.filter(tree, eqx.is_array)


def test_the_report_says_what_lies_on_one_device():
    place, (xs, _) = Layout(2, 4), data()
    algorithm = etrace.DRTRL(Leaky(), batched=True)
    alone = algorithm.graph(xs[0])
    assert alone.nbytes_per_device == alone.nbytes and "devices" not in str(alone)
    placed = algorithm.with_model(place.model(algorithm.model))
    report = placed.graph(place.data(xs)[0])
    assert report.nbytes == alone.nbytes
    assert report.nbytes_per_device == report.nbytes / 8
    assert "on each of 8 devices" in str(report).splitlines()[0]


def test_the_second_state_costs_no_compilation():
    place, (xs, _) = Layout(2, 4), data()
    model, x = place.model(Leaky()), place.data(xs)[0]
    calls = 0

    class Counted(etrace.DRTRL):
        def _update_etrace_data(self, data, window):
            nonlocal calls
            calls += 1
            return super()._update_etrace_data(data, window)

    algorithm = Counted(model, batched=True)
    algorithm.init(x)
    before = calls
    algorithm.init(x + 1)
    assert before and calls == before


def test_explicit_axes_are_refused_wherever_they_come_in():
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(AxisType.Explicit,))
    at = jax.sharding.NamedSharding(mesh, P("data"))
    algorithm, x = etrace.DRTRL(Leaky(), batched=True), jnp.zeros((BATCH, IN))
    state = algorithm.init(x)
    update = lambda x: algorithm.update(*state, x)  # noqa: E731
    for call in (algorithm.graph, update):
        with pytest.raises(ValueError, match=r"inputs .* Explicit .* Auto"):
            call(jax.device_put(x, at))
    h = jax.device_put(state[0], at)
    with pytest.raises(ValueError, match=r"hidden .* Explicit .* Auto"):
        algorithm.update(h, *state[1:], x)
    model = eqx.tree_at(lambda m: m.u, algorithm.model, jax.device_put(Leaky().u, at))
    with pytest.raises(ValueError, match=r"model .* Explicit .* Auto"):
        algorithm.with_model(model).init(x)
