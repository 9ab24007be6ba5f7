"""Learning to read digits online: eligibility traces against backpropagation.

A gated (GRU) and a spiking (LIF) recurrent network look at scikit-learn's digits a row
at a time, 8 steps of 8 pixels, or a pixel at a time, 64 steps of 1. Each is trained
twice from the same start, on the same batches: forward in time with `etrace.DRTRL`, and
with backpropagation through time (BPTT). Prints a table, draws the learning curves.

    python notebooks/digits.py                            # everything; a minute or two
    python notebooks/digits.py --model lif --task rows --rule drtrl --hidden 200
"""

import argparse
import time
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import etrace


# ------------------------------------------------------------------------- the models
# Plain Equinox, written for one example and one step: `init_state() -> state` and
# `__call__(state, x) -> (outputs, state)`. Nothing marks what is to be traced.


class GRU(eqx.Module):
    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, inputs, hidden, *, key):
        keys = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(inputs, hidden, key=keys[0])
        self.readout = eqx.nn.Linear(hidden, 10, key=keys[1])

    def init_state(self):
        return jnp.zeros(self.cell.hidden_size)

    def __call__(self, h, x):
        h = self.cell(x, h)
        return self.readout(h), h


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _surrogate(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + 4 * jnp.abs(v)) ** 2


class LIF(eqx.Module):
    """Leaky integrate-and-fire neurons, read out by leaky integrators."""

    encoder: eqx.nn.Linear
    recurrent: eqx.nn.Linear
    readout: eqx.nn.Linear
    decay: jax.Array

    def __init__(self, inputs, hidden, *, key):
        keys = jax.random.split(key, 3)
        self.encoder = eqx.nn.Linear(inputs, hidden, key=keys[0])
        self.recurrent = eqx.nn.Linear(hidden, hidden, use_bias=False, key=keys[1])
        self.readout = eqx.nn.Linear(hidden, 10, key=keys[2])
        self.decay = jnp.linspace(0.0, 4.0, hidden)

    def init_state(self):
        return jnp.zeros(self.decay.shape), jnp.zeros(10)

    def __call__(self, state, x):
        v, y = state
        spikes = spike(v - 1)
        v = jax.nn.sigmoid(self.decay) * (v - spikes)
        v = v + self.encoder(x) + self.recurrent(spikes)
        y = 0.9 * y + self.readout(spike(v - 1))
        return y, (v, y)


# ------------------------------------------------------------------ the learning rules
# Two functions with the same arguments and results: (loss, gradient).


def loss_fn(outputs, targets):
    """The loss of one time step: outputs (batch, 10), targets (batch,)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
    return losses.mean()


def drtrl(model, inputs, targets, mask, window):
    """Forward in time. The result does not depend on the window, the memory does."""
    algorithm = etrace.DRTRL(model, batched=True)
    gradient = etrace.value_and_grad(loss_fn, window=window, carry=False)
    return gradient(algorithm, None, inputs, targets, mask)


def run(model, inputs):
    """Outputs (time, batch, 10) for inputs (time, batch, pixels)."""
    batch = inputs.shape[1]
    state = jax.tree.map(lambda x: jnp.repeat(x[None], batch, 0), model.init_state())
    step = lambda state, x: jax.vmap(model)(state, x)[::-1]  # noqa: E731
    return jax.lax.scan(step, state, inputs)[1]


def bptt(model, inputs, targets, mask, window):
    """Backward through all time steps at once."""

    @eqx.filter_value_and_grad
    def gradient(model):
        losses = jax.vmap(loss_fn)(run(model, inputs), targets)
        return jnp.sum(mask * losses) / jnp.sum(mask)

    return gradient(model)


# ------------------------------------------------------------------------ the training


class Task(NamedTuple):
    steps: int
    epochs: int  # unless told otherwise
    unseen: int  # the loss counts from this step on


TASKS = {"rows": Task(8, 40, 4), "pixels": Task(64, 12, 32)}
MODELS = {"gru": GRU, "lif": LIF}
RULES = {"drtrl": drtrl, "bptt": bptt}


def load(steps, seed=0):
    """Train and test (inputs (time, examples, pixels / step), labels), in NumPy."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    *images, train, test = split
    images = [x.reshape(len(x), steps, -1).swapaxes(0, 1) for x in images]
    images = [(x / 16).astype(np.float32) for x in images]
    return (images[0], train), (images[1], test)


def train(rule, model, task, options):
    epochs = options.epochs or TASKS[task].epochs
    steps = TASKS[task].steps
    (inputs, labels), test = load(steps)
    mask = (jnp.arange(steps) >= TASKS[task].unseen).astype(jnp.float32)
    window = options.window or steps
    key = jax.random.key(options.seed)
    model = MODELS[model](64 // steps, options.hidden, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    batches = len(labels) // options.batch
    schedule = optax.cosine_decay_schedule(options.rate, epochs * batches)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    opt_state = optimiser.init(params)

    def step(params, opt_state, x, y):
        model = eqx.combine(params, static)
        targets = jnp.broadcast_to(y, (steps, *y.shape))
        loss, grads = RULES[rule](model, x, targets, mask, window)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def accuracy(params, x, y):
        outputs = run(eqx.combine(params, static), x)
        votes = jnp.tensordot(mask, jax.nn.softmax(outputs), 1)
        return jnp.mean(votes.argmax(-1) == y)

    start = time.perf_counter()
    example = inputs[:, : options.batch], labels[: options.batch]
    step = jax.jit(step).lower(params, opt_state, *example).compile()
    memory = step.memory_analysis().temp_size_in_bytes / 1e6
    compiled = time.perf_counter()
    accuracy(params, *test)
    rng = np.random.default_rng(options.seed)
    curve, seconds = [], 0.0
    for _ in range(epochs):
        begin = time.perf_counter()
        order = rng.permutation(len(labels))
        for i in range(batches):
            batch = order[i * options.batch : (i + 1) * options.batch]
            params, opt_state, loss = step(params, opt_state, inputs[:, batch], labels[batch])
        jax.block_until_ready(params)
        seconds += time.perf_counter() - begin
        curve.append(float(accuracy(params, *test)))
    return curve, seconds, compiled - start, memory, float(accuracy(params, inputs, labels))

if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--rule", default="drtrl,bptt"); p.add_argument("--model", default="gru,lif")
    p.add_argument("--task", default="rows"); p.add_argument("--seeds", default="0")
    p.add_argument("--epochs", type=int); p.add_argument("--hidden", type=int, default=64)
    p.add_argument("--window", type=int); p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rate", type=float, default=5e-3); p.add_argument("--unseen", type=int)
    o = p.parse_args()
    for t in o.task.split(","):
        if o.unseen is not None: TASKS[t] = TASKS[t]._replace(unseen=o.unseen)
        for m in o.model.split(","):
            for s in o.seeds.split(","):
                o.seed = int(s)
                for r in o.rule.split(","):
                    c, sec, comp, mem, tr = train(r, m, t, o)
                    print(t, m, s, r, f"test {c[-1]:.3f} best {max(c):.3f} train {tr:.3f} | {sec:.1f}s compile {comp:.1f}s {mem:.2f}MB", [round(x,2) for x in c[::max(1,len(c)//8)]], flush=True)
