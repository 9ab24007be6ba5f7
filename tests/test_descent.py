"""From gradients to the steps of an optimiser: downhill, also in complex parameters,
and with what optax calls extra arguments."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import etrace
import etrace.testing as et


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        yield


class Complex(eqx.Module):
    """A leaky integrator that turns, its input and its read-out weighted."""

    turn: jax.Array
    drive: jax.Array
    read: jax.Array

    def init_state(self):
        return jnp.zeros((), complex)

    def __call__(self, h, x):
        h = 0.9 * self.turn * h + self.drive * x
        return jnp.real(self.read * h), h


class Twin(eqx.Module):
    """The same, of real parameters."""

    re: Complex
    im: Complex

    def init_state(self):
        return jnp.zeros((), complex)

    def __call__(self, h, x):
        return jax.tree.map(jax.lax.complex, self.re, self.im)(h, x)


def nets():
    net = Complex(*map(jnp.array, (0.5 + 0.6j, 1.0 - 0.5j, 1.0 + 1.0j)))
    return net, Twin(*(jax.tree.map(f, net) for f in (jnp.real, jnp.imag)))


XS = jnp.sin(jnp.arange(20.0))
TARGETS = 0.5 * jnp.cos(jnp.arange(20.0))


def losses_of(net, optimiser, calls, *, window=20, targets=TARGETS):
    train = etrace.learn(lambda y, t: (y - t) ** 2, optimiser, window=window)
    algorithm, state, losses = etrace.DRTRL(net), None, []
    for _ in range(calls):
        algorithm, state, _, found = train(algorithm, state, None, XS, targets)
        losses.append(np.asarray(found))
    return algorithm.model, np.concatenate(losses), state


@pytest.mark.parametrize("optimiser", [optax.sgd(0.05), optax.adam(0.05)])
def test_complex_parameters_descend(optimiser):
    _, losses, _ = losses_of(nets()[0], optimiser, 300, targets=0 * TARGETS)
    assert losses[0] > 1 and losses[-1] < 1e-3 and losses.max() < 2 * losses[0]


@pytest.mark.parametrize("window", [1, 7, 20])
def test_complex_parameters_move_as_two_real_ones(window):
    net, twin = nets()
    net, losses, _ = losses_of(net, optax.sgd(0.02), 10, window=window)
    twin, expected, _ = losses_of(twin, optax.sgd(0.02), 10, window=window)
    assert np.allclose(losses, expected, rtol=1e-12, atol=0)
    pairs = zip(*map(jax.tree.leaves, (net, twin.re, twin.im)), strict=True)
    assert all(jnp.allclose(c, jax.lax.complex(a, b)) for c, a, b in pairs)
    assert expected[-1] < expected[0]


def test_gradients_are_those_of_jax():
    """Whose conjugate is the direction of steepest ascent."""
    run = etrace.value_and_grad(lambda y, t: (y - t) ** 2, window=20)
    net, twin = nets()
    _, gradient, _ = run(etrace.DRTRL(net), None, XS, TARGETS)
    _, pair, _ = run(etrace.DRTRL(twin), None, XS, TARGETS)
    by_hand = jax.tree.map(lambda a, b: jax.lax.complex(a, -b), pair.re, pair.im)
    assert et.gradient_distance(gradient, by_hand) < 1e-12


class Synthesiser(eqx.Module):
    scale: jax.Array

    def __call__(self, hidden):
        return jnp.conj(self.scale * hidden)


class RealSynthesiser(eqx.Module):
    re: jax.Array
    im: jax.Array

    def __call__(self, hidden):
        return Synthesiser(jax.lax.complex(self.re, self.im))(hidden)


def test_complex_synthesisers_move_as_two_real_ones():
    def fitted(synthesiser):
        dni = etrace.DNI(nets()[0], synthesiser=synthesiser)
        options = dict(window=2, epochs=5)
        optimiser, loss = optax.sgd(0.01), lambda y, t: (y - t) ** 2
        dni, losses = etrace.fit_synthesiser(
            dni, loss, XS, TARGETS, optimiser, **options
        )
        return dni.synthesiser, losses

    one, losses = fitted(Synthesiser(jnp.array(0.1 + 0.2j)))
    two, expected = fitted(RealSynthesiser(jnp.array(0.1), jnp.array(0.2)))
    assert jnp.allclose(losses, expected, rtol=1e-12)
    assert jnp.allclose(one.scale, jax.lax.complex(two.re, two.im), rtol=1e-12)
    assert abs(two.im - 0.2) > 1e-2


# ---------------------------------------------------------------------- extra arguments


def test_reduce_on_plateau():
    """It is given the loss of every window: the steps shrink, the sooner the loss
    stays."""
    plateau = optax.contrib.reduce_on_plateau(0.5, patience=3, rtol=1e-3)
    optimiser = optax.chain(optax.sgd(0.0), plateau)  # no progress is made
    _, losses, (_, state) = losses_of(nets()[1], optimiser, 10)
    assert (losses == losses[0]).all() and state.best_value == losses[0]
    assert state.scale == 0.5**3  # nine windows without progress
    optimiser = optax.chain(optax.sgd(0.02), plateau)
    _, losses, (_, state) = losses_of(nets()[1], optimiser, 10)
    assert (np.diff(losses) < 0).all() and state.scale == 1


def test_extra_arguments():
    """The value and the gradient are those of the window, and so is the function, whose
    gradient is the rule's: also where the past has a part in it."""
    given = []

    def update(updates, state, params=None, *, value, grad, value_fn, **extra):
        at = jax.value_and_grad(value_fn)(params)
        jax.debug.callback(lambda *x: given.append(x), value, grad, *at, ordered=True)
        assert not extra
        return updates, state

    none = optax.GradientTransformationExtraArgs(lambda _: (), update)
    net = nets()[1]
    train = etrace.learn(
        lambda y, t: (y - t) ** 2, optax.chain(none, optax.scale(0.0)), window=5
    )
    *_, losses = train(etrace.DRTRL(net), None, None, XS, TARGETS)
    jax.effects_barrier()
    run = etrace.value_and_grad(lambda y, t: (y - t) ** 2, window=5)
    state = etrace.DRTRL(net).init(XS[0])
    for n, (value, grad, again, slope) in enumerate(given):
        part = slice(5 * n, 5 * n + 5)
        expected = run(etrace.DRTRL(net), state, XS[part], TARGETS[part])
        assert np.allclose([value, again, losses[n]], expected[0], rtol=1e-12)
        assert et.gradient_distance(grad, expected[1]) < 1e-12
        assert et.gradient_distance(slope, expected[1]) < 1e-12
        state = expected[2]
    assert len(given) == 4


def test_l_bfgs():
    _, losses, _ = losses_of(nets()[1], optax.lbfgs(), 20)
    assert (np.diff(losses) < 0).all() and losses[-1] < 0.01 * losses[0]


def test_l_bfgs_by_windows():
    """Its line search sees only the part of the past that is linear."""
    _, losses, _ = losses_of(nets()[1], optax.lbfgs(), 10, window=5)
    losses = losses.reshape(10, -1).mean(axis=1)
    assert losses[-1] < 0.05 * losses[0]


def test_arguments_that_cannot_be_given():
    def update(updates, state, params=None, *, hessian, **extra):
        return updates, state

    curved = optax.GradientTransformationExtraArgs(lambda _: (), update)
    optimiser = optax.chain(optax.sgd(0.1), curved)
    with pytest.raises(TypeError, match="argument: 'hessian'.*no other argument"):
        losses_of(nets()[1], optimiser, 1)
    with pytest.raises(TypeError, match="value_fn cannot be given for complex"):
        losses_of(nets()[0], optax.lbfgs(), 1)


def test_an_optimiser_without_extra_arguments():
    """Of one's own, with the signature of optax's oldest."""

    class Descent:
        def init(self, params):
            return ()

        def update(self, grads, state, params):
            return jax.tree.map(lambda g: -0.05 * g, grads), state

    _, losses, _ = losses_of(nets()[0], Descent(), 5)
    _, expected, _ = losses_of(nets()[0], optax.sgd(0.05), 5)
    assert np.allclose(losses, expected, rtol=1e-12)
