"""Data tags: how many steps a call has, and which inputs belong to which of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace
from etrace import MultiStepData, SingleStepData


class TwoInputs(eqx.Module):
    """Two inputs of shape (10,), added before a leaky integrator."""

    left: jax.Array
    right: jax.Array

    def __init__(self):
        generator = np.random.default_rng(0)
        self.left = jnp.asarray(0.3 * generator.normal(size=(4, 10)))
        self.right = jnp.asarray(0.3 * generator.normal(size=(4, 10)))

    def init_state(self):
        return jnp.zeros(4)

    def __call__(self, state, a, b):
        state = 0.9 * state + jnp.tanh(self.left @ a + self.right @ b)
        return 2.0 * state, state


class Nested(eqx.Module):
    """One input: {"image": {"x", "y"}, "scale"}, all of them arrays."""

    weight: jax.Array

    def __init__(self):
        self.weight = jnp.asarray(0.5 * np.random.default_rng(1).normal(size=(3, 2)))

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, state, data):
        image = data["image"]
        drive = self.weight @ jnp.stack([image["x"], image["y"]])
        state = 0.8 * state + jnp.tanh(data["scale"] * drive)
        return {"state": state, "sum": jnp.sum(state)}, state


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def close(left, right):
    """Equal trees of arrays: structures, shapes and numbers."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def by_single_steps(alg, state, steps):
    """The calls of one step, one after the other; outputs stacked along time."""
    outputs = []
    for inputs in steps:
        y, *state = alg.update(*state, *inputs)
        outputs.append(y)
    return jax.tree.map(lambda *ys: jnp.stack(ys), *outputs), tuple(state)


def final(state):
    """Hidden state, other state and the arrays of the trace."""
    hidden, other, trace = state
    return hidden, other, trace.data


def refused(message, *inputs):
    """`init` and `update` refuse these inputs alike."""
    alg = etrace.DRTRL(TwoInputs())
    with pytest.raises(ValueError, match=message):
        alg.init(*inputs)
    state = alg.init(jnp.ones(10), jnp.ones(10))
    with pytest.raises(ValueError, match=message):
        alg.update(*state, *inputs)


# What a call is.


def test_two_plain_inputs_are_one_step():
    model = TwoInputs()
    alg = etrace.DRTRL(model)
    a, b = normal(10), normal(10, seed=1)
    y, hidden, other, trace = alg.update(*alg.init(a, b), a, b)
    expected = model(model.init_state(), a, b)
    assert y.shape == (4,)
    close((y, hidden), expected)


@pytest.mark.parametrize("tags", ["both", "first", "second"])
def test_single_step_tags_change_nothing(tags):
    alg = etrace.DRTRL(TwoInputs())
    a, b = normal(10), normal(10, seed=1)
    state = alg.init(a, b)
    plain = alg.update(*state, a, b)
    left = SingleStepData(a) if tags in ("both", "first") else a
    right = SingleStepData(b) if tags in ("both", "second") else b
    tagged = alg.update(*alg.init(left, right), left, right)
    assert tagged[0].shape == (4,)
    close(tagged[0], plain[0])
    close(final(tagged[1:]), final(plain[1:]))


@pytest.mark.parametrize("tagged", [False, True])
def test_five_steps_of_ones_and_a_constant_input(tagged):
    alg = etrace.DRTRL(TwoInputs())
    many, constant = MultiStepData(jnp.ones((5, 10))), normal(10)
    single = SingleStepData(constant) if tagged else constant
    state = alg.init(many, single)
    y, *new = alg.update(*state, many, single)
    assert y.shape == (5, 4)
    steps = [(jnp.ones(10), constant)] * 5
    expected, after = by_single_steps(alg, state, steps)
    close(y, expected)
    close(final(new), final(after))
    assert not np.allclose(y[0], y[4])  # five steps, not one step five times


def test_two_multi_step_inputs_advance_together():
    alg = etrace.DRTRL(TwoInputs())
    a, b = normal(3, 10), normal(3, 10, seed=1)
    state = alg.init(a[0], b[0])
    y, *new = alg.update(*state, MultiStepData(a), MultiStepData(b))
    expected, after = by_single_steps(alg, state, zip(a, b))
    close(y, expected)
    close(final(new), final(after))


def test_one_step_with_a_time_axis():
    """k = 1 keeps the time axis, and is otherwise one step."""
    alg = etrace.DRTRL(TwoInputs())
    a, b = normal(10), normal(10, seed=1)
    state = alg.init(a, b)
    plain, *after = alg.update(*state, a, b)
    y, *new = alg.update(*state, MultiStepData(a[None]), b)
    assert y.shape == (1, 4)
    close(y[0], plain)
    close(final(new), final(after))


def test_the_length_is_that_of_the_data_at_each_call():
    alg = etrace.DRTRL(TwoInputs())
    a, b = normal(7, 10), normal(10)
    state = start = alg.init(a[0], b)
    shapes = []
    for part in (a[:2], a[2:6], a[6:]):
        y, *state = alg.update(*state, MultiStepData(part), b)
        shapes.append(y.shape)
    assert shapes == [(2, 4), (4, 4), (1, 4)]
    _, *whole = alg.update(*start, MultiStepData(a), b)
    close(final(state), final(whole))


# Tags inside pytrees.


def nested(x, y, scale):
    return {"image": {"x": x, "y": y}, "scale": scale}


X, Y, SCALES = normal(4), normal(4, seed=1), normal(4, seed=2)
MANY, ONE = MultiStepData, SingleStepData
# The data, and which of x, y and s (the scale) change from step to step.
NESTED = {
    "a leaf": (nested(MANY(X), Y[0], SCALES[0]), "x"),
    "beside a tagged single": (nested(MANY(X), ONE(Y[0]), SCALES[0]), "x"),
    "two leaves": (nested(MANY(X), MANY(Y), ONE(SCALES[0])), "xy"),
    "a subtree": ({"image": MANY({"x": X, "y": Y}), "scale": SCALES[0]}, "xy"),
    "another leaf": (nested(X[0], ONE(Y[0]), MANY(SCALES)), "s"),
    "the whole": (MANY(nested(X, Y, SCALES)), "xys"),
}


@pytest.mark.parametrize("case", NESTED)
def test_tags_anywhere_inside_an_input(case):
    data, varying = NESTED[case]
    alg = etrace.DRTRL(Nested())
    state = alg.init(data)
    steps = [
        (
            nested(
                X[t if "x" in varying else 0],
                Y[t if "y" in varying else 0],
                SCALES[t if "s" in varying else 0],
            ),
        )
        for t in range(4)
    ]
    y, *new = alg.update(*state, data)
    assert y["state"].shape == (4, 3) and y["sum"].shape == (4,)
    expected, after = by_single_steps(alg, state, steps)
    close(y, expected)
    close(final(new), final(after))


def test_single_step_tag_around_a_subtree():
    alg = etrace.DRTRL(Nested())
    plain = nested(X[0], Y[0], SCALES[0])
    tagged = {**plain, "image": SingleStepData(plain["image"])}
    state = alg.init(tagged)
    close(alg.update(*state, tagged)[0], alg.update(*state, plain)[0])
    close(alg.update(*state, SingleStepData(plain))[0], alg.update(*state, plain)[0])


def test_python_numbers_are_data():
    alg = etrace.DRTRL(Nested())
    numbers, arrays = nested(0.5, -1.0, 2.0), nested(*jnp.asarray([0.5, -1.0, 2.0]))
    state = alg.init(arrays)
    close(alg.update(*state, numbers)[0], alg.update(*state, arrays)[0])


def test_tags_are_pytrees():
    """They pass through transformations and keep the k steps' gradients apart."""
    alg = etrace.DRTRL(TwoInputs())
    a, b = MultiStepData(normal(3, 10)), SingleStepData(normal(10, seed=1))
    state = alg.init(a, b)

    @jax.jit
    def loss(a, b):
        return jnp.sum(alg.update(*state, a, b)[0] ** 2)

    grads = jax.grad(loss, argnums=(0, 1))(a, b)
    assert isinstance(grads[0], MultiStepData) and grads[0].data.shape == (3, 10)
    assert isinstance(grads[1], SingleStepData) and grads[1].data.shape == (10,)
    assert float(jnp.abs(grads[0].data).min(axis=1).max()) > 0


def test_batched_data_has_time_before_batch():
    model = TwoInputs()
    alg = etrace.DRTRL(model, batched=True)
    a, b = normal(3, 2, 10), normal(2, 10, seed=1)
    state = alg.init(MultiStepData(a), b)
    y, *_ = alg.update(*state, MultiStepData(a), b)
    assert y.shape == (3, 2, 4)
    single = etrace.DRTRL(model)
    for n in range(2):
        start = single.init(a[0, n], b[n])
        expected, *_ = single.update(*start, MultiStepData(a[:, n]), b[n])
        close(y[:, n], expected)


# Refusals: they name the argument, what was given and what was expected.


def test_disagreeing_lengths():
    refused(
        r"input 1 is MultiStepData of 4 steps, but input 0 has 5.*same leading length",
        MultiStepData(jnp.ones((5, 10))),
        MultiStepData(jnp.ones((4, 10))),
    )


def test_disagreeing_lengths_inside_an_input():
    alg = etrace.DRTRL(Nested())
    data = nested(MultiStepData(X), MultiStepData(Y[:3]), SCALES[0])
    with pytest.raises(
        ValueError, match=r"input 0\['image'\]\['y'\].* 3 .*\['x'\] has 4"
    ):
        alg.init(data)


def test_disagreeing_lengths_inside_one_tag():
    alg = etrace.DRTRL(Nested())
    data = nested(X, Y[:3], SCALES)
    with pytest.raises(ValueError, match=r"input 0.*3 steps.* 4.*same leading length"):
        alg.init(MultiStepData(data))


def test_a_scalar_has_no_time_axis():
    refused(
        r"input 0 is MultiStepData .*shape \(\).*no time axis.*Expected shape \(k, ",
        MultiStepData(jnp.asarray(1.0)),
        jnp.ones(10),
    )
    refused(r"input 1 is MultiStepData .*shape \(\)", jnp.ones(10), MultiStepData(1.0))


@pytest.mark.parametrize("outer", [SingleStepData, MultiStepData])
@pytest.mark.parametrize("inner", [SingleStepData, MultiStepData])
def test_tags_do_not_nest(outer, inner):
    message = rf"input 1 has a data tag inside a {outer.__name__}.*do not nest"
    refused(message, jnp.ones(10), outer(inner(jnp.ones((5, 10)))))


def test_tags_do_not_nest_inside_a_pytree():
    alg = etrace.DRTRL(Nested())
    data = nested(X, SingleStepData(Y), SCALES)
    with pytest.raises(
        ValueError, match="input 0 has a data tag inside a MultiStepData"
    ):
        alg.init(MultiStepData(data))


def test_zero_steps():
    refused(
        r"input 0 is MultiStepData of 0 steps; expected at least one",
        MultiStepData(jnp.ones((0, 10))),
        jnp.ones(10),
    )


def test_what_is_not_an_array():
    alg = etrace.DRTRL(TwoInputs())
    with pytest.raises(TypeError, match=r"'training' of type str.*not an array"):
        alg.init(jnp.ones(10), "training")
