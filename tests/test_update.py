"""`update` as a pure function: what differentiating, mapping and scanning it give."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etrace
from etrace import MultiStepData
from etrace.testing import bptt, squared_error


class Leaky(eqx.Module):
    """A leaky integrator with trainable decays: here D-RTRL is exact."""

    decay: jax.Array
    weight: jax.Array
    readout: jax.Array

    def __init__(self, dtype=jnp.float64, seed=0):
        self.decay = normal(3, seed=seed).astype(dtype)
        self.weight = normal(3, 2, seed=seed + 1).astype(dtype)
        self.readout = normal(2, 3, seed=seed + 2).astype(dtype)

    def init_state(self):
        return jnp.zeros(3, self.weight.dtype)

    def __call__(self, h, x):
        h = jax.nn.sigmoid(self.decay) * h + jnp.tanh(self.weight @ x)
        return jnp.tanh(self.readout @ h), h


class GRU(eqx.Module):
    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, dtype=jnp.float64):
        keys = jax.random.split(jax.random.key(0))
        self.cell = eqx.nn.GRUCell(2, 3, key=keys[0], dtype=dtype)
        self.readout = eqx.nn.Linear(3, 2, key=keys[1], dtype=dtype)

    def init_state(self):
        return jnp.zeros(3, self.readout.weight.dtype)

    def __call__(self, h, x):
        h = self.cell(x, h)
        return self.readout(h), h


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def halves(model):
    return eqx.partition(model, eqx.is_inexact_array)


def advanced(alg, xs):
    """The state after these steps, from a fresh one."""
    state = alg.init(xs[0])
    for x in xs:
        _, *state = alg.update(*state, x)
    return state


def unrolled(model, xs, state=None):
    """The model itself: (outputs of the last step, state)."""
    outputs, state = None, model.init_state() if state is None else state
    for x in xs:
        outputs, state = model(state, x)
    return outputs, state


def close(left, right, tolerance=1e-12):
    """Equal trees of arrays up to rounding: structures, shapes and numbers."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Reverse mode.


def by_update(alg, state, x):
    _, rest = halves(alg.model)
    return lambda params: alg.with_model(eqx.combine(params, rest)).update(*state, x)


def by_true_update_fun(alg, state, x):
    return lambda params: alg._true_update_fun(params, (x,), *state)


WAYS = {"update": by_update, "_true_update_fun": by_true_update_fun}


@pytest.fixture(params=WAYS)
def problem(request):
    """A function of the parameters, that of the whole past, and the parameters."""
    model, xs = Leaky(), normal(4, 2)
    alg = etrace.DRTRL(model)
    params, rest = halves(model)
    update = WAYS[request.param](alg, advanced(alg, xs[:-1]), xs[-1])
    whole = lambda p: unrolled(eqx.combine(p, rest), xs)  # noqa: E731
    return lambda p: update(p)[:2], whole, params


def test_grad(problem):
    """Of the last step's outputs and state, with credit to everything before."""
    update, whole, params = problem
    loss = lambda fun: lambda p: sum(map(jnp.sum, fun(p)))  # noqa: E731
    close(jax.grad(loss(update))(params), jax.grad(loss(whole))(params))


def test_vjp(problem):
    update, whole, params = problem
    (values, pull), (expected, pull_whole) = (
        jax.vjp(update, params),
        jax.vjp(whole, params),
    )
    close(values, expected)
    for seed in range(2):
        cotangents = normal(2, seed=seed), normal(3, seed=seed + 5)
        close(pull(cotangents), pull_whole(cotangents))


def test_jacrev(problem):
    update, whole, params = problem
    jacobian = jax.jacrev(update)(params)
    close(jacobian, jax.jacrev(whole)(params))
    assert jacobian[0].weight.shape == (2, 3, 2)


def test_grad_with_respect_to_the_algorithm():
    model, xs = Leaky(), normal(4, 2)
    alg = etrace.DRTRL(model)
    state = advanced(alg, xs[:-1])
    grads = eqx.filter_grad(lambda a: jnp.sum(a.update(*state, xs[-1])[0]))(alg)
    whole = eqx.filter_grad(lambda m: jnp.sum(unrolled(m, xs)[0]))(model)
    close(grads.model, whole)


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_encoder_outside_the_model_gets_its_exact_gradient(method):
    """Through one step with the state held, or through the window."""
    model, xs = GRU(), normal(5, 4)
    encoder = normal(2, 4, seed=3)
    alg = etrace.DRTRL(model, vjp_method=method)
    state = advanced(alg, normal(3, 2, seed=7))
    held = state[0]

    def online(encoder):
        y, *_ = alg.update(*state, MultiStepData(jnp.tanh(xs @ encoder.T)))
        return jnp.sum(y**2)

    def reference(encoder):
        total, h = 0.0, held
        for x in jnp.tanh(xs @ encoder.T):
            y, h = model(h, x)
            h = lax.stop_gradient(h) if method == "single-step" else h
            total += jnp.sum(y**2)
        return total

    close(jax.jit(jax.grad(online))(encoder), jax.jit(jax.grad(reference))(encoder))


def test_input_of_one_step_gets_the_gradient_with_the_state_held():
    model, x = GRU(), normal(2)
    alg = etrace.DRTRL(model)
    hidden, other, trace = advanced(alg, normal(3, 2))
    pull = lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2))(x)  # noqa: E731
    online = pull(lambda x: alg.update(hidden, other, trace, x)[0])
    close(online, pull(lambda x: model(hidden, x)[0]))


def test_constant_input_of_a_window_gets_the_sum_over_its_steps():
    class Gated(GRU):
        def __call__(self, h, x, gate):
            return super().__call__(h, gate * x)

    model, xs, gate = Gated(), normal(3, 2), normal(2, seed=1)
    alg = etrace.DRTRL(model)
    state = alg.init(xs[0], gate)

    @jax.jit
    def gradient(gates):
        many = gates if gates.ndim == 1 else MultiStepData(gates)
        loss = lambda g: jnp.sum(alg.update(*state, MultiStepData(xs), g)[0] ** 2)  # noqa: E731
        return jax.grad(loss)(many)

    one, every = gradient(gate), gradient(jnp.stack([gate] * 3)).data
    assert one.shape == (2,) and every.shape == (3, 2)
    close(one, every.sum(0))


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_incoming_state_and_trace_get_zero(method):
    alg = etrace.DRTRL(Leaky(), vjp_method=method)
    hidden, other, trace = advanced(alg, normal(3, 2))

    def loss(hidden, data):
        now = eqx.tree_at(lambda t: t.data, trace, data)
        y, h, _, _ = alg.update(hidden, other, now, MultiStepData(normal(2, 2)))
        return jnp.sum(y) + jnp.sum(h)

    grads = jax.grad(loss, argnums=(0, 1))(hidden, trace.data)
    assert jax.tree.leaves(grads)
    close(grads, jax.tree.map(jnp.zeros_like, (hidden, trace.data)))


# Transformations.


def test_jit():
    alg = etrace.DRTRL(GRU())
    state = advanced(alg, normal(2, 2))
    jitted = jax.jit(lambda *state: alg.update(*state, jnp.ones(2)))(*state)
    close(jitted, alg.update(*state, jnp.ones(2)))


def test_vmap_is_batched():
    """Values, states, traces, the gradient of the sum, and every example's own."""
    model, xs = GRU(), normal(3, 4, 2)
    params, rest = halves(model)
    one, many = etrace.DRTRL(model), etrace.DRTRL(model, batched=True)
    mapped, batched = jax.vmap(one.init)(xs[0]), many.init(xs[0])
    update = jax.jit(jax.vmap(one.update))
    for x in xs:
        y, *mapped = update(*mapped, x)
        z, *batched = many.update(*batched, x)
        close((y, mapped[:2], mapped[2].data), (z, batched[:2], batched[2].data))

    def total(params, alg, state, x, vmap=False):
        alg = alg.with_model(eqx.combine(params, rest))
        y, *_ = (jax.vmap(alg.update) if vmap else alg.update)(*state, x)
        return jnp.sum(y**2)

    gradient = eqx.filter_jit(jax.grad(total))
    expected = gradient(params, many, batched, xs[0])
    close(gradient(params, one, mapped, xs[0], True), expected)
    each = jax.jit(jax.vmap(lambda *sx: jax.grad(total)(params, one, sx[:3], sx[3])))
    every = each(*mapped, xs[0])
    close(jax.tree.map(lambda g: g.sum(0), every), expected)


def test_scan():
    """Gradients added up inside a scan count nothing twice: BPTT."""
    model, xs, targets = Leaky(), normal(6, 2), normal(6, 2, seed=1)
    params, rest = halves(model)
    alg = etrace.DRTRL(model)

    def step(carry, xt):
        grads, state = carry

        def loss(params):
            y, *new = alg.with_model(eqx.combine(params, rest)).update(*state, xt[0])
            return squared_error(y, xt[1]), new

        more, new = jax.grad(loss, has_aux=True)(params)
        return (jax.tree.map(jnp.add, grads, more), tuple(new)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, _), _ = lax.scan(step, (zeros, alg.init(xs[0])), (xs, targets))
    close(grads, bptt(model, squared_error, xs, targets)[1])


def test_grad_of_a_scan():
    """The same from outside, since the incoming state's cotangent is zero."""
    model, xs, targets = Leaky(), normal(6, 2), normal(6, 2, seed=1)
    params, rest = halves(model)
    start = etrace.DRTRL(model).init(xs[0])

    def loss(params):
        alg = etrace.DRTRL(eqx.combine(params, rest))

        def step(state, xt):
            y, *state = alg.update(*state, xt[0])
            return tuple(state), squared_error(y, xt[1])

        return jnp.sum(lax.scan(step, start, (xs, targets))[1])

    close(jax.grad(loss)(params), bptt(model, squared_error, xs, targets)[1])


def test_pmap():
    """Examples on two devices, gradients summed over them."""
    model, xs = Leaky(), normal(2, 2, 2)
    params, rest = halves(model)
    alg = etrace.DRTRL(model)
    start = jax.vmap(alg.init)(xs[0])

    def step(state, x):
        def loss(params):
            y, *new = alg.with_model(eqx.combine(params, rest)).update(*state, x)
            return jnp.sum(y**2), tuple(new)

        grads, new = jax.grad(loss, has_aux=True)(params)
        return lax.psum(grads, "examples"), new

    def run(transform):
        transform = transform(step, axis_name="examples")
        state = start
        for x in xs:
            grads, state = transform(state, x)
        return jax.tree.map(lambda g: np.asarray(g), (grads, state[0]))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*pmap.*", DeprecationWarning)
        on_devices = run(jax.pmap)
    close(on_devices, run(lambda *args, **name: jax.jit(jax.vmap(*args, **name))))


def test_arguments_are_left_alone():
    alg = etrace.DRTRL(GRU())
    state, x = advanced(alg, normal(2, 2)), normal(2)
    arguments = eqx.filter((alg, state, x), eqx.is_array)
    before = jax.tree.map(np.array, arguments)
    grads = eqx.filter_grad(lambda a: jnp.sum(a.update(*state, x)[0]))(alg)
    new = alg.update(*state, x)
    assert jax.tree.leaves(grads) and not np.allclose(new[1], state[0])
    close(jax.tree.map(np.array, arguments), before, tolerance=0)


def test_with_model():
    """Other numbers, the same algorithm; the old one stays."""
    old, new, xs = Leaky(), Leaky(seed=5), normal(4, 2)
    alg = etrace.DRTRL(old, name="mine", trace_dtype=jnp.float32)
    other = alg.with_model(new)
    assert (other.name, other.trace_dtype) == ("mine", jnp.dtype("float32"))
    assert alg.model is old and isinstance(other, etrace.DRTRL)
    y, *_ = other.update(*alg.init(xs[0]), xs[0])
    close(y, new(new.init_state(), xs[0])[0])
