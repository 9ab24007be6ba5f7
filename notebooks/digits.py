"""Learn to read handwritten digits online, and compare with backpropagation.

A gated (GRU) and a spiking (LIF) recurrent network read scikit-learn's digits row by
row (8 steps of 8 pixels) and pixel by pixel (64 steps of 1). Each is trained twice,
from the same start on the same batches: forward in time by `etrace.DRTRL`, and by
backpropagation through time (BPTT). Prints a table and draws the learning curves.

Row by row the two are on a par. Pixel by pixel BPTT leads, most of all with the GRU:
D-RTRL follows each neuron's own past, not the past that reached it through others.

    python notebooks/digits.py                         # everything, about two minutes
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

# ---------------------------------------------------------------------------- models
# Plain Equinox, for one example and one time step: `init_state() -> state` and
# `model(state, x) -> (outputs, state)`. Nothing marks what is to be traced.


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
    """A step, with the slope of a smooth surrogate."""
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _surrogate(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + 4 * jnp.abs(v)) ** 2


class LIF(eqx.Module):
    """Leaky integrate-and-fire neurons, whose spikes are smoothed and read out."""

    encoder: eqx.nn.Linear
    recurrent: eqx.nn.Linear
    readout: eqx.nn.Linear
    leak: jax.Array

    def __init__(self, inputs, hidden, *, key):
        keys = jax.random.split(key, 3)
        self.encoder = eqx.nn.Linear(inputs, hidden, key=keys[0])
        self.recurrent = eqx.nn.Linear(hidden, hidden, use_bias=False, key=keys[1])
        self.readout = eqx.nn.Linear(hidden, 10, key=keys[2])
        self.leak = jnp.linspace(0.0, 4.0, hidden)  # time constants of 2 to 50 steps

    def init_state(self):
        return jnp.zeros_like(self.leak), jnp.zeros_like(self.leak)

    def __call__(self, state, x):
        v, smooth = state
        spikes = spike(v - 1)
        current = self.encoder(x) + self.recurrent(spikes)
        v = jax.nn.sigmoid(self.leak) * (v - spikes) + current
        smooth = 0.9 * smooth + spike(v - 1)
        return self.readout(smooth), (v, smooth)


# -------------------------------------------------------- two ways to get a gradient


def loss_fn(outputs, labels):
    """The loss of one time step: outputs (batch, 10), labels (batch,)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return losses.mean()


def drtrl(model, inputs, labels, mask, window):
    """Forward in time, `window` steps at once; any window gives the same gradient."""
    algorithm = etrace.DRTRL(model, batched=True)
    gradient = etrace.value_and_grad(loss_fn, window=window, carry=False)
    return gradient(algorithm, None, inputs, labels, mask)


def bptt(model, inputs, labels, mask, window):
    """Backward through the whole sequence; `window` is not used."""

    @eqx.filter_value_and_grad
    def gradient(model):
        losses = jax.vmap(loss_fn)(run(model, inputs), labels)
        return jnp.sum(mask * losses) / jnp.sum(mask)

    return gradient(model)


def run(model, inputs):
    """The outputs (time, batch, 10) for inputs (time, batch, pixels)."""

    def step(state, x):
        outputs, state = jax.vmap(model)(state, x)
        return state, outputs

    start = jax.vmap(lambda _: model.init_state())(inputs[0])
    return jax.lax.scan(step, start, inputs)[1]


# -------------------------------------------------------------------------- training

MODELS = {"gru": GRU, "lif": LIF}
RULES = {"drtrl": drtrl, "bptt": bptt}
STEPS = {"rows": 8, "pixels": 64}
EPOCHS = {"rows": 30, "pixels": 15}  # unless told otherwise


class Result(NamedTuple):
    curve: list[float]  # test accuracy after every epoch
    seconds: float  # training, without compiling and testing
    compiling: float
    megabytes: float  # temporary memory of one compiled training step


def load(steps):
    """Inputs (digits, time, pixels) to train and to test on, labels to both."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).astype(np.float32).reshape(len(images), steps, -1)
    return train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=0
    )


def train(task, model, rule, options):
    steps, epochs = STEPS[task], options.epochs or EPOCHS[task]
    images, test_images, labels, test_labels = load(steps)
    size = min(options.batch, len(labels))
    batches = len(labels) // size
    # The network answers in the last quarter of the sequence.
    mask = (jnp.arange(steps) >= steps * 3 // 4).astype(jnp.float32)

    key = jax.random.key(options.seed)
    network = MODELS[model](64 // steps, options.hidden, key=key)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    rate = optax.cosine_decay_schedule(0.01, epochs * batches)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def step(params, opt_state, x, y):
        x, y = x.swapaxes(0, 1), jnp.broadcast_to(y, (steps, size))
        network = eqx.combine(params, static)
        _, grads = RULES[rule](network, x, y, mask, options.window or steps)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def accuracy(params, x, y):
        votes = jax.nn.softmax(run(eqx.combine(params, static), x.swapaxes(0, 1)))
        return jnp.mean(jnp.tensordot(mask, votes, 1).argmax(-1) == y)

    opt_state = optimiser.init(params)
    progress = tqdm(range(epochs), f"{task:>6} {model} {rule:>5}", unit="epoch")
    start = time.perf_counter()
    step = step.lower(params, opt_state, images[:size], labels[:size]).compile()
    compiling = time.perf_counter() - start
    megabytes = step.memory_analysis().temp_size_in_bytes / 1e6

    curve, seconds = [], 0.0
    random = np.random.default_rng(options.seed)
    for _ in progress:
        start = time.perf_counter()
        order = random.permutation(len(labels))[: batches * size]
        for batch in order.reshape(batches, size):
            x = images[batch]
            x = x + 0.3 * random.standard_normal(x.shape, np.float32)  # so few digits
            params, opt_state = step(params, opt_state, x, labels[batch])
        jax.block_until_ready(params)
        seconds += time.perf_counter() - start
        curve.append(float(accuracy(params, test_images, test_labels)))
        progress.set_postfix(accuracy=f"{curve[-1]:.1%}")
    return Result(curve, seconds, compiling, megabytes)


# --------------------------------------------------------------------------- results


def print_table(results):
    row = "{:8}{:7}{:7}{:>13}{:>9}{:>13}{:>11}"
    heads = "test accuracy", "seconds", "+ compiling", "memory MB"
    print("\n" + row.format("task", "model", "rule", *heads))
    for name, r in results.items():
        numbers = f"{r.seconds:.1f}", f"{r.compiling:.1f}", f"{r.megabytes:.1f}"
        print(row.format(*name, f"{r.curve[-1]:.1%}", *numbers))


def draw(results, path):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(task for task, _, _ in results))
    size = 5 * len(tasks), 4
    figure, axes = plt.subplots(1, len(tasks), figsize=size, squeeze=False)
    axes = dict(zip(tasks, axes[0]))
    for (task, model, rule), r in results.items():
        style = {"gru": "C0", "lif": "C1"}[model] + {"drtrl": "-", "bptt": ":"}[rule]
        epochs = range(1, len(r.curve) + 1)
        axes[task].plot(epochs, r.curve, style, label=f"{model} {rule}")
    for task, ax in axes.items():
        ax.set(title=f"digits by {task}", xlabel="epoch", ylabel="test accuracy")
        ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Learn to read digits online, and compare with backpropagation."
    )
    for name, known in [("rule", RULES), ("model", MODELS), ("task", STEPS)]:
        parser.add_argument(f"--{name}", choices=[*known, "both"], default="both")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}")
    parser.add_argument("--window", type=int, help="default: the whole sequence")
    parser.add_argument("--hidden", type=int, default=100, help="default: 100 neurons")
    parser.add_argument("--batch", type=int, default=32, help="default: 32 digits")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--output", default="digits.png", help="default: digits.png")
    options = parser.parse_args(arguments)
    for name in ("epochs", "window", "hidden", "batch"):
        if (number := getattr(options, name)) is not None and number < 1:
            parser.error(f"argument --{name}: expected at least 1, got {number}")

    pick = lambda known, name: known if name == "both" else [name]  # noqa: E731
    results = {
        (task, model, rule): train(task, model, rule, options)
        for task in pick(STEPS, options.task)
        for model in pick(MODELS, options.model)
        for rule in pick(RULES, options.rule)
    }
    print_table(results)
    draw(results, options.output)
    print(f"\nlearning curves: {options.output}")


if __name__ == "__main__":
    main()
