"""What the drivers keep: nothing that grows with the sequence, no copy of the state."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import etrace
import etrace.testing as et


@pytest.fixture
def algorithm():
    problem = et.make_problem(et.NetSpec((et.LayerSpec("gru", 3),)), length=2)
    return etrace.DRTRL(problem.model)


def sequence(steps: int):
    return jnp.ones((steps, 2)), jnp.ones((steps, 2))


def value_and_grad(algorithm, state, inputs, targets):
    driver = etrace.value_and_grad(et.squared_error, window=5)
    return driver(algorithm, state, inputs, targets)


def learn(algorithm, state, inputs, targets):
    train = etrace.learn(et.squared_error, optax.sgd(0.1), window=5)
    return train(algorithm, None, state, inputs, targets)


def temporary_bytes(driver, algorithm, steps: int) -> int:
    state = algorithm.init(jnp.ones(2))
    arrays, static = eqx.partition((algorithm, state), eqx.is_array)

    def run(arrays, inputs, targets):
        algorithm, state = eqx.combine(arrays, static)
        result = driver(algorithm, state, inputs, targets)
        return eqx.filter(result, eqx.is_array)

    compiled = jax.jit(run).lower(arrays, *sequence(steps)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("driver", [value_and_grad, learn])
def test_memory_does_not_grow_with_the_sequence(driver, algorithm):
    """But for one loss per window."""
    short, long = (temporary_bytes(driver, algorithm, t) for t in (50, 5000))
    assert long - short <= 2 * 8 * 5000 // 5


@pytest.mark.parametrize("window, extra", [(1, 0.7), (5, 1.5)])
def test_the_trace_is_overwritten_in_place(window, extra):
    """A step needs little beside the trace; a window, a few activations a step."""
    kind = et.LayerSpec("gru", 64)
    problem = et.make_problem(et.NetSpec((kind,)), length=20, batch=16)
    algorithm = etrace.DRTRL(problem.model, batched=True)
    state = algorithm.init(problem.inputs[0])
    driver = etrace.value_and_grad(problem.loss_fn, window=window)
    arrays, static = eqx.partition(algorithm, eqx.is_array)
    held, fixed = eqx.partition(state, eqx.is_array)

    def run(held, arrays, inputs, targets):
        model = eqx.combine(arrays, static)
        result = driver(model, eqx.combine(held, fixed), inputs, targets)
        return eqx.filter(result, eqx.is_array)

    arguments = (held, arrays, problem.inputs, problem.targets)
    compiled = jax.jit(run, donate_argnums=0).lower(*arguments).compile()
    traces = sum(x.nbytes for x in jax.tree.leaves(state[2].data))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > traces
    assert memory.temp_size_in_bytes < extra * traces


class Events(eqx.Module):
    """Many leaky neurons that read a few channels of events."""

    weight: jax.Array
    leak: jax.Array
    readout: jax.Array

    def init_state(self):
        return jnp.zeros_like(self.leak)

    def __call__(self, v, events):
        decay = jax.nn.sigmoid(self.leak)
        v = decay * v + (1 - decay) * (self.weight @ events)
        return self.readout @ jnp.tanh(v), v


def test_factors_are_linear_in_neurons():
    """A hundred thousand neurons, where one trace per parameter takes 2.6 GB."""
    neurons, channels, batch = 100_000, 100, 64
    shapes = ((neurons, channels), (neurons,), (2, neurons))
    model = Events(*(jnp.zeros(shape, jnp.float32) for shape in shapes))
    events = jnp.zeros((20, batch, channels), jnp.float32)
    targets = jnp.zeros((20, batch, 2), jnp.float32)
    algorithm = etrace.ESDRTRL(model, batched=True)
    state = algorithm.init(events[0])
    held, fixed = eqx.partition((algorithm, state), eqx.is_array)
    driver = etrace.value_and_grad(et.squared_error, window=1)

    def run(held, events, targets):
        algorithm, state = eqx.combine(held, fixed)
        return eqx.filter(driver(algorithm, state, events, targets), eqx.is_array)

    compiled = jax.jit(run, donate_argnums=0).lower(held, events, targets).compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert used - memory.alias_size_in_bytes + memory.temp_size_in_bytes < 1e9
    assert etrace.DRTRL(model, batched=True).graph(events[0]).nbytes > 2.5e9


def test_the_states_memory_is_donated(algorithm):
    inputs, targets = sequence(10)
    for run in (
        lambda s: value_and_grad(algorithm, s, inputs, targets)[-1],
        lambda s: learn(algorithm, s, inputs, targets)[2],
        lambda s: etrace.evolve(algorithm, s, inputs, window=5)[0],
    ):
        state = algorithm.init(inputs[0])
        new = run(state)
        assert all(x.is_deleted() for x in jax.tree.leaves(state))
        assert not any(x.is_deleted() for x in jax.tree.leaves((new, algorithm)))


def test_a_state_of_shared_arrays_can_be_donated():
    """`init_state` may give a parameter itself, or one array twice."""

    class Shared(eqx.Module):
        start: jax.Array

        def init_state(self):
            return self.start, self.start

        def __call__(self, state, x):
            h = 0.9 * state[0] + x
            return h, (h, h)

    algorithm = etrace.DRTRL(Shared(jnp.ones(2)))
    state = algorithm.init(jnp.ones(2))
    for _ in range(2):
        _, _, state = value_and_grad(algorithm, state, *sequence(10))
    assert not algorithm.model.start.is_deleted()
