"""`check_gradients`: what it says of rules, models and references, right and wrong."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
import etrace.testing as et
from etrace._analysis.cache import forget
from etrace._program import operations as _operations

from .helpers import spike
from .toy_rule import LeakyTrace

N, IN, OUT, STEPS = 4, 3, 2, 9


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return 0.5 * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Net(eqx.Module):
    """h' = a h + drive(w x) + u tanh(h)."""

    a: jax.Array
    w: jax.Array
    u: jax.Array
    readout: jax.Array
    drive: Callable = eqx.field(static=True)

    def __init__(self, drive: Callable = jnp.tanh, *, recurrent: bool = False):
        self.a, self.w = 0.8 + 0.1 * normal(N, seed=1), normal(N, IN, seed=2)
        self.u = normal(N, N, seed=3) * float(recurrent)
        self.readout, self.drive = normal(OUT, N, seed=4), drive

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, h, x):
        h = self.a * h + self.drive(self.w @ x) + self.u @ jnp.tanh(h)
        return self.readout @ h, h


INPUTS, TARGETS = 2 * normal(STEPS, IN, seed=5), normal(STEPS, OUT, seed=6)
DATA = (et.squared_error, INPUTS, TARGETS)


def close(a: Any, b: Any) -> bool:
    return bool(et.gradient_distance(a, b) < 1e-9)


# ---------------------------------------------------------------------------- the rule


@pytest.fixture(scope="module")
def exact() -> etrace.GradientCheck:
    return etrace.check_gradients(etrace.DRTRL(Local()), *DATA)


class Local(Net):
    """Without a recurrent weight D-RTRL is exact."""

    def __call__(self, h, x):
        h = self.a * h + self.drive(self.w @ x)
        return self.readout @ h, h


def test_an_exact_rule(exact: etrace.GradientCheck):
    assert [p.name for p in exact.parameters] == [".a", ".w", ".u", ".readout"]
    assert [p.status for p in exact.parameters] == [
        "traced",
        "traced",
        "unused",
        "output",
    ]
    for p in exact.parameters:
        assert p.comparison.error < 1e-9 and p.comparison.cosine > 1 - 1e-9
        assert p.comparison.signs == 1 and abs(p.comparison.ratio - 1) < 1e-9
        assert p.rtrl is not None and p.rtrl < 1e-9
        assert p.slope < 1e-6
    assert exact.total.error < 1e-9 and exact.locality < 1e-12
    assert not exact.own_derivatives
    assert all(lag.comparison.error < 1e-9 for lag in exact.lags)
    reference = et.bptt(Local(), *DATA, reduction="mean")[1]
    assert close(exact.exact, reference) and close(exact.gradient, reference)
    exact.assert_close()


def test_a_rule_that_forgets_is_seen_where_it_forgets():
    check = etrace.check_gradients(LeakyTrace(Local()), *DATA)
    assert check.lags[0].comparison.error < 1e-9
    errors = [lag.comparison.error for lag in check.lags]
    assert errors == sorted(errors) and errors[-1] > 0.1
    with pytest.raises(AssertionError, match=r"\.w: error .* > rtol"):
        check.assert_close()
    with pytest.raises(AssertionError, match=r"\.w: cosine") as failure:
        check.assert_close(cosine=0.9999)
    assert ".readout:" not in str(failure.value)
    check.assert_close(cosine=0.5)


def test_a_recurrent_network_is_exact_for_one_step():
    check = etrace.check_gradients(etrace.DRTRL(Net(recurrent=True)), *DATA)
    first, second, *rest = check.lags
    assert first.comparison.error < 1e-9 and second.comparison.error > 1e-3
    exact = etrace.check_gradients(etrace.RTRL(Net(recurrent=True)), *DATA)
    assert all(lag.comparison.error < 1e-7 for lag in exact.lags)
    assert [lag.share for lag in exact.lags] == [lag.share for lag in check.lags]


def test_credit_by_lag_is_that_of_weights_of_each_step():
    """dL_T/dθ_t, of a network with parameters of its own at each step."""
    net = Net(recurrent=True)
    check = etrace.check_gradients(etrace.DRTRL(net), *DATA)
    arrays, static = eqx.partition(net, eqx.is_inexact_array)

    def last_loss(every: list) -> jax.Array:
        h = net.init_state()
        for own, x in zip(every, INPUTS, strict=True):
            y, h = eqx.combine(own, static)(h, x)
        return et.squared_error(y, TARGETS[-1])

    credit = jax.grad(last_loss)([arrays] * STEPS)[::-1]
    assert [(lag.first, lag.last) for lag in check.lags] == [
        (0, 0),
        (1, 1),
        (2, 3),
        (4, 7),
        (8, 8),
    ]
    norms = []
    for lag in check.lags:
        own = credit[lag.first : lag.last + 1]
        total = jax.tree.map(lambda *xs: sum(xs), *own)
        squares = [jnp.sum(x**2) for x in jax.tree.leaves(total)]
        norms.append(float(jnp.sqrt(sum(squares))))
        assert lag.comparison.norm == pytest.approx(norms[-1], rel=1e-9)
    shares = np.asarray(norms) / np.linalg.norm(norms)
    assert [lag.share for lag in check.lags] == pytest.approx(shares)


def test_windows():
    algorithm = etrace.DRTRL(Net(recurrent=True), vjp_method="multi-step")
    check = etrace.check_gradients(algorithm, *DATA, window=4)
    # The last window has one step, and nothing is left out within one.
    assert [(lag.first, lag.last) for lag in check.lags] == [(0, 0), (1, 4), (5, 8)]
    assert check.lags[0].comparison.error < 1e-9
    whole = etrace.check_gradients(algorithm, *DATA, window=STEPS)
    whole.assert_close(rtol=1e-9)
    assert [(lag.first, lag.last) for lag in whole.lags] == [(0, 8)]


# -------------------------------------------------------------- batches, masks, numbers


def batch_loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((outputs - targets) ** 2)


@pytest.mark.parametrize("masked", ["no", "steps", "examples"])
def test_batches_and_masks(masked: str):
    inputs, targets = normal(6, 2, IN, seed=7), normal(6, 2, OUT, seed=8)
    mask = {
        "no": None,
        "steps": jnp.array([1.0, 0.0, 2.0, 0.0, 1.0, 0.0]),
        "examples": jnp.ones((6, 2)).at[3:, 0].set(0).at[5].set(0),
    }[masked]
    check = etrace.check_gradients(
        etrace.DRTRL(Local(), batched=True), batch_loss, inputs, targets, mask
    )
    check.assert_close(rtol=1e-9)
    assert all(p.slope < 1e-5 for p in check.parameters)
    # What comes behind the last step with a loss is not looked at.
    assert check.lags[-1].last == (5 if masked == "no" else 4)


def test_complex_parameters():
    class Rotating(eqx.Module):
        a: jax.Array
        w: jax.Array

        def init_state(self):
            return jnp.zeros(N, complex)

        def __call__(self, h, x):
            h = self.a * h + self.w @ x.astype(complex)
            return h.real, h

    a = 0.9 * jnp.exp(1j * jnp.arange(1.0, N + 1).astype(complex))
    net = Rotating(a, jax.lax.complex(normal(N, IN), normal(N, IN, seed=1)))
    check = etrace.check_gradients(
        etrace.DRTRL(net), et.squared_error, INPUTS, normal(STEPS, N)
    )
    check.assert_close(rtol=1e-9)
    assert all(p.slope < 1e-6 for p in check.parameters)


def test_single_precision():
    class Single(Local):
        def init_state(self):
            return jnp.zeros(N, "float32")

    single = lambda x: x.astype("float32")  # noqa: E731
    net, inputs, targets = jax.tree.map(single, (Single(), INPUTS, TARGETS))
    check = etrace.check_gradients(etrace.DRTRL(net), et.squared_error, inputs, targets)
    check.assert_close()
    assert check.total.error < 1e-5
    assert all(p.slope < 1e-2 for p in check.parameters)


def test_rtrl_is_not_asked_where_it_costs_too_much(monkeypatch: pytest.MonkeyPatch):
    from etrace._verify import _check

    monkeypatch.setattr(_check, "_AFFORDABLE", 10)
    check = etrace.check_gradients(etrace.DRTRL(Local()), *DATA)
    assert all(p.rtrl is None for p in check.parameters)
    check.assert_close()
    assert " - " in str(check)


# ------------------------------------------------------------ wrong models and analyses


def test_surrogate_gradients_are_no_slopes():
    check = etrace.check_gradients(
        etrace.DRTRL(Local(functools.partial(spike, slope=10.0))), *DATA
    )
    assert check.own_derivatives and "surrogate" in str(check)
    slopes = {p.name: p.slope for p in check.parameters}
    assert slopes[".w"] > 0.5 and slopes[".a"] < 1e-6
    check.assert_close()


def test_an_analysis_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch):
    """Of the weights, and of the state: a mixing operation taken for elementwise."""

    class Mixing(Local):
        def __call__(self, h, x):
            h = self.a * h + 0.3 * jnp.sin(jnp.cumsum(h)) + self.w @ x
            return self.readout @ h, h

    right = _operations.is_by_element
    wrong = lambda e: e.name == "cumsum" or right(e)  # noqa: E731
    monkeypatch.setattr(_operations, "is_by_element", wrong)
    forget()
    try:
        for net in (Local(jnp.cumsum), Mixing()):
            check = etrace.check_gradients(etrace.DRTRL(net), *DATA)
            assert check.locality > 1e-2
            with pytest.raises(
                AssertionError, match="the analysis of the model is off"
            ):
                check.assert_close(rtol=10.0)
    finally:
        forget()


def test_a_reference_that_is_wrong_is_seen(exact: etrace.GradientCheck):
    wrong = dataclasses.replace(exact.parameters[1], rtrl=0.1)
    parameters = (exact.parameters[0], wrong, *exact.parameters[2:])
    with pytest.raises(AssertionError, match=r"\.w: BPTT and RTRL differ by 1.0e-01"):
        dataclasses.replace(exact, parameters=parameters).assert_close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((et.squared_error, INPUTS, TARGETS[:4]), "targets hold an array of shape"),
        ((lambda y, t: y - t, INPUTS, TARGETS), "expected a scalar"),
        ((et.squared_error, INPUTS[:, :2], TARGETS), r"with the inputs \(f64\[2\],\)"),
    ],
)
def test_what_the_drivers_refuse(data: tuple, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        etrace.check_gradients(etrace.DRTRL(Local()), *data)


# ----------------------------------------------------------------------------- pictures


def test_the_tables(exact: etrace.GradientCheck):
    lines = str(exact).splitlines()
    assert lines[0] == "DRTRL: its gradient and that of BPTT"
    for p in exact.parameters:
        (line,) = [x for x in lines if x.strip().startswith(p.name)]
        assert p.status in line and "1.000" in line
    for lag in ("0", "1", "2 to 3", "4 to 7", "8"):
        assert any(x.startswith(f"  {lag}  ") for x in lines)


def test_the_pictures(exact: etrace.GradientCheck):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    alignment, credit = exact.plot()
    labels = [t.get_text() for t in alignment.get_yticklabels()]
    assert labels == [p.name for p in exact.parameters][::-1]
    heights = [bar.get_height() for bar in credit.patches]
    assert heights == [lag.share for lag in exact.lags]
    plt.close("all")
    _, axes = plt.subplots(1, 2)
    assert list(exact.plot(axes)) == list(itertools.chain(axes))
    with pytest.raises(ValueError, match="axes are 1; expected 2"):
        exact.plot(axes[0])
    plt.close("all")
