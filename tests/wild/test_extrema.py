"""Maxima, masks of -inf, winners, sorting, and kinks."""

import jax
import jax.numpy as jnp
import pytest

import etrace

from .program import IN, STEPS, N, Net, Program, W, check, chosen, loss, normal

A = normal(N, seed=5)
MASK = jnp.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)


def leak(w, h):
    return jax.nn.sigmoid(w["a"]) * h


def driven(drive):
    """Leaky neurons, of what drives them."""

    def step(w, h, x):
        h = leak(w, h) + drive(w, x)
        return h, h

    return step


def products(w, x):
    return w["w"] * x[None]


def masked_max(w, x):
    return jnp.max(jnp.where(MASK, products(w, x), -jnp.inf), 1)


def masked_softmax(w, x):
    weights = jax.nn.softmax(jnp.where(MASK, products(w, x), -jnp.inf), axis=1)
    return jnp.sum(weights * x[None], 1)


def max_where(w, x):
    return jnp.max(products(w, x), axis=1, initial=-jnp.inf, where=MASK)


def tied_max(w, x):
    """Silent synapses are all zero: the cotangent is shared among them."""
    return jnp.max(jnp.maximum(products(w, x), 0.0), 1)


def masked_logsumexp(w, x):
    return jax.nn.logsumexp(jnp.where(MASK, products(w, x), -jnp.inf), axis=1)


def maxout(w, x):
    return jnp.max((jnp.stack([w["w"], -0.5 * w["w"] + 0.1]) @ x), 0)


def product_with_zero(w, x):
    terms = jnp.concatenate([products(w, x), 0 * w["w"][:, :1]], 1)
    return jnp.prod(terms, 1) + jnp.sum(products(w, x), 1)


def straight_through(w, x):
    """The winner alone forwards, a softmax backwards."""
    soft = jax.nn.softmax(w["w"] @ x)
    hard = jax.nn.one_hot(jnp.argmax(soft), N, dtype=float)
    return hard + soft - jax.lax.stop_gradient(soft)


def top_two(w, x):
    values, at = jax.lax.top_k(jnp.tanh(w["w"] @ x), 2)
    return jnp.zeros(N).at[at].add(values)


def sparsemax(w, x):
    z = w["w"] @ x
    ordered = -jnp.sort(-z)
    total, k = jnp.cumsum(ordered), jnp.arange(1.0, N + 1)
    size = jnp.sum(1 + k * ordered > total)
    return jnp.maximum(z - (total[size - 1] - 1) / size.astype(float), 0.0)


def at_kinks(w, x):
    """Everything at the point where JAX chooses a derivative: the weights are zero."""
    z = w["w"] @ x
    kinks = jnp.abs(z) + jnp.maximum(z, 0.0) + jax.nn.relu(z) + jnp.clip(z, 0, 1)
    return kinks + jnp.sign(z)


def winners(w, h, x):
    """Who is not among the two strongest is inhibited; who they are is no credit."""
    h = leak(w, h) + w["w"] @ x
    h = jnp.where(h >= jax.lax.top_k(h, 2)[0][-1], h, 0.1 * h)
    return h, h


def peak(w, state, x):
    """Outputs are the highest membrane up to now, which fades."""
    h, top = state
    h = leak(w, h) + w["w"] @ x
    top = jnp.maximum(0.9 * top, h)
    return top, (h, top)


def clipped(w, h, x):
    h = jnp.clip(leak(w, h) + w["w"] @ x, -0.3, 0.3)
    return h, h


def safe_norm(w, h, x):
    """The norm of a state that begins at zero, where an unguarded one gives NaN."""
    square = jnp.sum(h**2)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    h = leak(w, h) / (1 + jnp.where(square > 0, norm, 0.0)) + w["w"] @ x
    return h, h


EXACT = {
    "masked max": driven(masked_max),
    "masked softmax": driven(masked_softmax),
    "max where": driven(max_where),
    "tied max": driven(tied_max),
    "masked logsumexp": driven(masked_logsumexp),
    "maxout": driven(maxout),
    "product with a zero": driven(product_with_zero),
    "winners": winners,
    "clipped": clipped,
}
TOLD = {
    "straight-through argmax": driven(straight_through),
    "top two": driven(top_two),
    "sparsemax": driven(sparsemax),
    "safe norm": safe_norm,
}


COMMON = ("masked max", "tied max", "straight-through argmax")


@pytest.mark.parametrize("name", chosen([*EXACT, *TOLD], COMMON))
def test_gradients(name: str):
    step = {**EXACT, **TOLD}[name]
    check(Program(step, {"w": W, "a": A}, exact=name in EXACT))


def test_the_highest_value_so_far():
    start = lambda: (jnp.zeros(N), jnp.zeros(N))  # noqa: E731
    check(Program(peak, {"w": W, "a": A}, start))


def test_where_a_derivative_is_a_choice():
    weights = {"w": jnp.zeros((N, IN)), "a": A}
    check(Program(driven(at_kinks), weights, lambda: jnp.ones(N)))


def test_all_inputs_tied():
    step = driven(lambda w, x: jnp.max(products(w, x), 1))
    weights = {"w": jnp.ones((N, IN)), "a": A}
    check(Program(step, weights, inputs=jnp.ones((STEPS, IN))))


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
def test_a_mask_of_a_large_number_in_single_precision():
    """A neuron keeps the strongest of its connected inputs; -1e9 masks the others, of
    which single precision can tell no differences below 64."""

    def step(w, h, x):
        masked = jnp.where(jnp.array([True, True, False]), w["w"] * x, -1e9)
        h = jnp.float32(0.9) * h + jnp.max(masked)
        return h, h

    weights = {"w": jnp.array([1.0, 2.0, 3.0], jnp.float32)}
    model = Net(weights, step, lambda: jnp.zeros((), jnp.float32))
    run = etrace.value_and_grad(loss, window=1, reduction="sum", carry=False)
    inputs, target = jnp.ones((1, 3), jnp.float32), jnp.zeros(1)
    exact = jnp.array([0.0, 2 * (2 - 0.3), 0.0], jnp.float32)
    for rule in (etrace.RTRL(model), etrace.DRTRL(model)):
        assert jnp.allclose(run(rule, None, inputs, target)[1].weights["w"], exact)
    whole = etrace.DRTRL(model, None, "multi-step")
    assert jnp.allclose(run(whole, None, inputs, target)[1].weights["w"], exact)


@pytest.mark.parametrize("k", [1, 2])
def test_the_largest_along_another_axis(k: int):
    """Of rows, not within them: neurons of different rows change places."""

    def step(w, h, x):
        h = jax.nn.sigmoid(w["a"]).reshape(2, 2) * h + (w["w"] @ x).reshape(2, 2)
        top = jax.lax.top_k(h, k, axis=0)[0]
        h = top if k == 2 else h - 0.2 * top
        return h, h

    check(Program(step, {"w": W, "a": A}, lambda: jnp.zeros((2, 2)), exact=False))
