"""Windows and the drivers: how a sequence is cut up changes no number that it should
not change."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etrace
from etrace import MultiStepData
from etrace.testing import (
    LayerSpec,
    NetSpec,
    bptt,
    gradient_distance,
    make_problem,
    over_batch,
    squared_error,
    truncated,
)

from .helpers import examples

# What they are good for: three numbers from one product; two components, one of them
# without memory; outputs read before the reset.
KINDS = examples(ci=("gru", "lif"), thorough=("gru", "lstm", "lif"))


def problem_of(kind="gru", *, length=6, batch=None, **options):
    spec = NetSpec((LayerSpec(kind, size=3),), **options)
    return make_problem(spec, length=length, batch=batch)


def exact_problem(**options):
    """One for which D-RTRL is BPTT."""
    return problem_of("mingru", **options)


def close(left, right, tolerance=1e-10):
    """Equal trees of arrays up to rounding: structures, shapes and numbers."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert jnp.shape(a) == jnp.shape(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def differs(left, right):
    assert gradient_distance(left, right) > 1e-3


def arrays(state):
    """Hidden state, other state and the arrays of the trace."""
    hidden, other, trace = state
    return hidden, other, trace.data


def algorithm(problem, **options):
    return etrace.DRTRL(problem.model, batched=problem.batch is not None, **options)


def drive(problem, *, window=2, mask=None, reduction="sum", state=None, **options):
    """(value, grads, state) of a problem by `value_and_grad`."""
    driver = etrace.value_and_grad(problem.loss_fn, window=window, reduction=reduction)
    alg = algorithm(problem, **options)
    return driver(alg, state, problem.inputs, problem.targets, mask)


# One call of k steps.


def one_by_one(alg, params, rest, state, xs, targets):
    """k calls of one step: outputs, state and the sum of the gradients."""

    @eqx.filter_jit
    def step(params, state, x, target):
        def loss(params):
            now = alg.with_model(eqx.combine(params, rest))
            y, *new = now.update(*state, x)
            return squared_error(y, target), (y, new)

        return jax.grad(loss, has_aux=True)(params)

    outputs, total = [], jax.tree.map(jnp.zeros_like, params)
    for x, target in zip(xs, targets):
        grads, (y, state) = step(params, state, x, target)
        total = jax.tree.map(jnp.add, total, grads)
        outputs.append(y)
    return jnp.stack(outputs), state, total


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_of_k_steps_is_k_calls_of_one(kind):
    """Outputs, state, trace and gradient; from a trace that is not zero."""
    problem = problem_of(kind)
    alg, xs, targets = algorithm(problem), problem.inputs, problem.targets
    params, rest = eqx.partition(problem.model, eqx.is_inexact_array)
    _, *state = alg.update(*alg.init(xs[0]), MultiStepData(xs[:3]))

    @jax.jit
    def window(params):
        now = alg.with_model(eqx.combine(params, rest))
        y, *new = now.update(*state, MultiStepData(xs[3:]))
        return squared_error(y, targets[3:]), (y, new)

    grads, (y, new) = jax.grad(window, has_aux=True)(params)
    many = one_by_one(alg, params, rest, state, xs[3:], targets[3:])
    close((y, arrays(new), grads), (many[0], arrays(many[1]), many[2]))
    # The past before the call and the one inside it both matter.
    fresh = one_by_one(alg, params, rest, alg.init(xs[0]), xs[3:], targets[3:])
    differs(grads, fresh[2])
    differs(fresh[2], truncated(problem.model, squared_error, xs[3:], targets[3:])[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_window_does_not_change_single_step_gradients(kind):
    problem = problem_of(kind)
    results = [drive(problem, window=k) for k in (1, 4, 6)]
    for value, grads, state in results[1:]:
        close((value, grads), results[0][:2])
        close(arrays(state), arrays(results[0][2]))
    differs(results[0][1], problem.truncated(window=1)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_one_multi_step_window_is_bptt(kind):
    problem = problem_of(kind)
    value, grads, _ = drive(problem, window=6, vjp_method="multi-step")
    close((value, grads), problem.bptt())


def test_multi_step_windows_keep_the_past():
    """Where D-RTRL is exact every window is; elsewhere the window matters."""
    problem = exact_problem()
    close(drive(problem, window=3, vjp_method="multi-step")[1], problem.bptt()[1])
    problem = problem_of("gru")
    grads = drive(problem, window=3, vjp_method="multi-step")[1]
    differs(grads, problem.bptt()[1])
    differs(grads, problem.truncated(window=3)[1])
    differs(grads, drive(problem, window=3)[1])


def test_a_window_longer_than_the_sequence():
    problem = problem_of()
    close(drive(problem, window=100)[:2], drive(problem, window=6)[:2])


# Batches.


@pytest.mark.parametrize(
    "kind, method", [("lstm", "single-step"), ("gru", "multi-step")]
)
def test_a_batch_is_the_sum_of_its_examples(kind, method):
    """And its mean, if the loss is."""
    problem = problem_of(kind, batch=3)
    value, grads, _ = drive(problem, window=3, vjp_method=method)
    driver = etrace.value_and_grad(squared_error, window=3, reduction="sum")
    alg = etrace.DRTRL(problem.model, vjp_method=method)
    each = [
        driver(alg, None, problem.inputs[:, n], problem.targets[:, n])[:2]
        for n in range(3)
    ]
    total = jax.tree.map(lambda *xs: sum(xs), *each)
    close((value, grads), total)
    mean = etrace.value_and_grad(
        lambda y, t: squared_error(y, t) / 3, window=3, reduction="sum"
    )
    alg = algorithm(problem, vjp_method=method)
    result = mean(alg, None, problem.inputs, problem.targets)[:2]
    close(result, jax.tree.map(lambda x: x / 3, total))


class Matrix(eqx.Module):
    """A state [3, 2], multiplied with a weight from this side or that."""

    weight: jax.Array
    form: str = eqx.field(static=True)

    def init_state(self):
        return jnp.zeros((3, 2))

    def __call__(self, state, x):
        state = jnp.tanh(jnp.einsum(self.form, self.weight, state) + x)
        return state, state


# Before a loop of eight steps or more, over four examples or more, weights are
# transposed, unless the axis that is summed over comes first, as in the last two.
FORMS = {
    "oc,cm->om": (3, 3),
    "md,cm->cd": (2, 2),
    "md,cd->cm": (2, 2),
    "boc,cb->ob": (2, 3, 3),
    "co,cm->om": (3, 3),
    "bco,cb->ob": (2, 3, 3),
}


@pytest.mark.parametrize(
    "method", examples(ci=["single-step"], thorough=["single-step", "multi-step"])
)
@pytest.mark.parametrize("form", FORMS)
def test_products_of_a_batch_in_a_loop(form, method):
    """Those of its examples, one by one."""
    key_w, key_x, key_y = jax.random.split(jax.random.key(0), 3)
    model = Matrix(jax.random.normal(key_w, FORMS[form]), form)
    xs, ys = (jax.random.normal(key, (9, 5, 3, 2)) for key in (key_x, key_y))
    driver = etrace.value_and_grad(squared_error, window=8, reduction="sum")
    batched = etrace.DRTRL(model, vjp_method=method, batched=True)
    together = driver(batched, None, xs, ys)
    alone = etrace.DRTRL(model, vjp_method=method)
    each = [driver(alone, None, xs[:, n], ys[:, n]) for n in range(5)]
    close(together[:2], jax.tree.map(lambda *x: sum(x), *(e[:2] for e in each)))


# Masks and reductions.

MASKS = {
    "none": None,
    "weights": jnp.asarray([0.5, 0.0, 2.0, 1.0, 0.0, 0.3]),
    "bools": jnp.asarray([True, False, False, True, True, False]),
    "integers": jnp.asarray([0, 0, 0, 1, 0, 1]),
}


@pytest.mark.parametrize(
    "name, reduction",
    [*((name, "mean") for name in MASKS), ("none", "sum"), ("weights", "sum")],
)
def test_masks_weigh_the_steps(name, reduction):
    problem, mask = exact_problem(), MASKS[name]
    value, grads, _ = drive(problem, window=3, mask=mask, reduction=reduction)
    close((value, grads), problem.bptt(mask=mask, reduction=reduction))


def test_a_mask_for_every_example():
    """`loss_fn` is given one example at a time then."""
    problem = exact_problem(batch=3)
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 3, (6, 3)))
    shapes = []

    def loss_fn(y, target):
        shapes.append((y.shape, target.shape))
        return squared_error(y, target)

    driver = etrace.value_and_grad(loss_fn, window=4, reduction="sum")
    alg = algorithm(problem)
    result = driver(alg, None, problem.inputs, problem.targets, mask)
    assert set(shapes) == {(y := problem.targets.shape[2:], y)}
    expected = over_batch(bptt)(
        problem.model, squared_error, problem.inputs, problem.targets, mask=mask
    )
    close(result[:2], expected)
    mean = drive(problem, window=3, mask=mask, reduction="mean")
    close(mean[:2], jax.tree.map(lambda x: x / int(mask.sum()), expected))


def test_a_mask_of_zeros_teaches_nothing():
    problem = problem_of()
    value, grads, _ = drive(problem, mask=jnp.zeros(6), reduction="mean")
    close((value, grads), jax.tree.map(jnp.zeros_like, (value, grads)))


def test_masked_steps_still_move_the_state():
    problem = problem_of()
    masked = drive(problem, mask=jnp.zeros(6))[2]
    close(arrays(masked), arrays(drive(problem)[2]))


# What the drivers take and return.


def test_aux_is_stacked_along_time():
    problem = problem_of()

    def loss_fn(y, target):
        return squared_error(y, target), {"y": y, "first": y[0]}

    driver = etrace.value_and_grad(loss_fn, window=4, reduction="sum", has_aux=True)
    alg = algorithm(problem)
    (value, aux), grads, _ = driver(alg, None, problem.inputs, problem.targets)
    _, outputs = etrace.evolve(alg, None, problem.inputs, window=6)
    close(aux, {"y": outputs, "first": outputs[:, 0]})
    close((value, grads), drive(problem, window=3)[:2])


def test_aux_of_a_batch_with_a_mask():
    problem = exact_problem(batch=2)
    driver = etrace.value_and_grad(
        lambda y, t: (squared_error(y, t), y), window=4, has_aux=True
    )
    args = algorithm(problem), None, problem.inputs, problem.targets
    _, outputs = etrace.evolve(args[0], None, problem.inputs, window=6)
    close(driver(*args, jnp.ones(6))[0][1], outputs)
    close(driver(*args, jnp.ones((6, 2)))[0][1], outputs)


def test_without_carry_there_is_no_state():
    problem = problem_of()
    driver = etrace.value_and_grad(squared_error, window=3, carry=False)
    result = driver(algorithm(problem), None, problem.inputs, problem.targets)
    assert len(result) == 2
    close(result, drive(problem, window=3, reduction="mean")[:2])


def test_a_state_of_none_is_a_fresh_one():
    problem = problem_of()
    fresh = algorithm(problem).init(problem.inputs[0])
    given, none = drive(problem, state=fresh), drive(problem)
    close((given[:2], arrays(given[2])), (none[:2], arrays(none[2])))


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_two_halves_are_the_whole(method):
    """The state that one call returns continues exactly; windows as in the whole."""
    problem = problem_of("lstm", length=8)
    driver = etrace.value_and_grad(squared_error, window=2, reduction="sum")
    alg, xs, targets = (
        algorithm(problem, vjp_method=method),
        problem.inputs,
        problem.targets,
    )
    whole = driver(alg, None, xs, targets)
    first = driver(alg, None, xs[:4], targets[:4])
    second = driver(alg, first[2], xs[4:], targets[4:])
    close(jax.tree.map(jnp.add, first[:2], second[:2]), whole[:2])
    close(arrays(second[2]), arrays(whole[2]))
    alone = driver(alg, None, xs[4:], targets[4:])
    differs(second[1], alone[1])


def test_several_inputs_are_a_tuple():
    problem = problem_of("mingru", second_input=True, counter=True)
    assert isinstance(problem.inputs, tuple)
    value, grads, (_, other, _) = drive(problem, window=3)
    close((value, grads), problem.bptt())
    assert int(other["count"]) == 6


def test_outputs_and_targets_may_be_pytrees():
    problem = exact_problem(readout="direct")
    close(drive(problem, window=3)[:2], problem.bptt())


@pytest.mark.parametrize("window", [1, 4, 6])
def test_evolve_runs_the_model(window):
    problem = problem_of("lif", counter=True)
    model, state, outputs = problem.model, problem.model.init_state(), []
    for x in problem.inputs:
        y, state = model(state, x)
        outputs.append(y)
    (hidden, other, trace), ys = etrace.evolve(
        algorithm(problem), None, problem.inputs, window=window
    )
    close(ys, jnp.stack(outputs))
    close(eqx.combine(hidden, other), state)
    close(trace.data, drive(problem, window=2)[2][2].data)


def test_evolve_in_a_batch():
    problem = problem_of(batch=2)
    _, ys = etrace.evolve(algorithm(problem), None, problem.inputs, window=3)
    for n in range(2):
        one = etrace.DRTRL(problem.model)
        _, expected = etrace.evolve(one, None, problem.inputs[:, n], window=6)
        close(ys[:, n], expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_learn_is_a_loop_of_gradients_and_updates(reduction):
    problem = exact_problem()
    xs, targets, mask = problem.inputs, problem.targets, MASKS["weights"]
    optimiser = optax.sgd(0.1, momentum=0.9)
    driver = etrace.value_and_grad(squared_error, window=4, reduction=reduction)
    alg, state = algorithm(problem), None
    start = optimiser_state = optimiser.init(eqx.filter(alg.model, eqx.is_array))
    expected = []
    for a, b in ((0, 4), (4, 6)):
        value, grads, state = driver(alg, state, xs[a:b], targets[a:b], mask[a:b])
        updates, optimiser_state = optimiser.update(grads, optimiser_state)
        alg = alg.with_model(eqx.apply_updates(alg.model, updates))
        expected.append(value)
    learn = etrace.learn(squared_error, optimiser, window=4, reduction=reduction)
    for given in (start, None):
        trained, new, after, losses = learn(
            algorithm(problem), given, None, xs, targets, mask
        )
        close(losses, jnp.stack(expected))
        close(
            eqx.filter(trained.model, eqx.is_array), eqx.filter(alg.model, eqx.is_array)
        )
        close((new, arrays(after)), (optimiser_state, arrays(state)))


def test_learn_with_aux():
    problem = problem_of()
    learn = etrace.learn(
        lambda y, t: (squared_error(y, t), y), optax.sgd(0.0), window=4, has_aux=True
    )
    *_, (losses, aux) = learn(
        algorithm(problem), None, None, problem.inputs, problem.targets
    )
    assert losses.shape == (2,)
    _, outputs = etrace.evolve(algorithm(problem), None, problem.inputs, window=6)
    close(aux, outputs)


def test_drivers_inside_jit():
    problem = problem_of()
    optimiser = optax.sgd(0.1)
    grad = etrace.value_and_grad(squared_error, window=3)
    learn = etrace.learn(squared_error, optimiser, window=3)

    def run(alg, xs, targets):
        state, outputs = etrace.evolve(alg, None, xs, window=3)
        value, grads, state = grad(alg, state, xs, targets)
        alg, _, state, losses = learn(alg, None, state, xs, targets)
        return outputs, value, grads, eqx.filter(alg.model, eqx.is_array), losses

    args = algorithm(problem), problem.inputs, problem.targets
    close(eqx.filter_jit(run)(*args), run(*args))


@pytest.mark.parametrize(
    "cell, precision, tolerance",
    [
        ("gru", "float32", 1e-5),
        ("lif", "float64", 1e-10),
        *examples(
            ci=[], thorough=[("gru", "float64", 1e-10), ("lif", "float32", 1e-5)]
        ),
    ],
)
def test_any_window_gives_the_same_gradient(cell, precision, tolerance):
    """Also a ragged one, and one from which no trace is kept."""
    problem = problem_of(cell, length=100)
    cast = lambda x: jnp.asarray(x, precision)  # noqa: E731
    convert = lambda x: cast(x) if eqx.is_inexact_array(x) else x  # noqa: E731
    model, inputs, targets = jax.tree.map(
        convert, (problem.model, problem.inputs, problem.targets)
    )
    gradients = []
    for window in (1, 7, 25, 100):
        for carry in (True, False):
            driver = etrace.value_and_grad(
                squared_error, window=window, reduction="sum", carry=carry
            )
            gradients.append(driver(etrace.DRTRL(model), None, inputs, targets)[1])
    _, now = truncated(model, squared_error, inputs, targets, window=1)
    assert gradient_distance(gradients[0], now) > 1e-2
    for other in gradients[1:]:
        assert gradient_distance(other, gradients[0]) < tolerance


def test_a_long_window_is_worked_off_in_blocks(monkeypatch):
    """By rules with small traces; of a prime number of steps, one by one."""
    problem = problem_of("lif", length=44)
    rule = etrace.ESDRTRL(problem.model, decay=(0.7, 0.8))
    lengths = 1, 20, 44, 512, 514, 1009
    assert [rule._block(k, 1) for k in lengths] == [1, 20, 44, 512, 257, 1]
    assert [rule._block(k, 32) for k in lengths] == [1, 10, 11, 16, 2, 1]
    assert rule._block(20, 1000) == 1
    monkeypatch.setattr("etrace._rules._esdrtrl._ROWS", 20)
    assert [rule._block(k, 1) for k in (1, 43, 44)] == [1, 1, 11]

    def with_aux(outputs, targets):
        return problem.loss_fn(outputs, targets), outputs

    results = [
        etrace.value_and_grad(with_aux, window=window, has_aux=True)(
            rule, None, problem.inputs, problem.targets
        )
        for window in (1, 43, 44)
    ]
    for result in results[1:]:
        close(arrays(result[2]), arrays(results[0][2]))
        close(result[:2], results[0][:2])


def test_a_window_of_many_steps_is_one_block():
    """Where its gradient is that of backpropagation through it."""
    problem = problem_of("gru", length=22)
    rule = etrace.ESDRTRL(problem.model, vjp_method="multi-step")
    run = etrace.value_and_grad(problem.loss_fn, window=22, reduction="sum")
    _, grads, _ = run(rule, None, problem.inputs, problem.targets)
    close(grads, problem.bptt()[1])
