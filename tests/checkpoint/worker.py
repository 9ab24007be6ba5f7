"""A small training, and what test_killed.py runs in processes that it kills."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from etrace import DRTRL, ETraceVjpAlgorithm, learn, stream
from etrace._checkpoint import restore, save

STEPS, WINDOW = 20, 5
OPTIMISER = optax.adam(1e-2)


class Net(eqx.Module):
    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear
    gain: float
    activation: Callable

    def __init__(self, size: int = 4, seed: int = 0, gain: float = 1.0):
        keys = jax.random.split(jax.random.key(seed))
        self.cell = eqx.nn.GRUCell(3, size, key=keys[0])
        self.readout = eqx.nn.Linear(size, 2, key=keys[1])
        self.gain = gain
        self.activation = jnp.tanh

    def init_state(self) -> jax.Array:
        return jnp.zeros(self.cell.hidden_size, self.cell.weight_hh.dtype)

    def __call__(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = self.cell(x, state)
        return self.activation(self.gain * self.readout(state)), state


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((output - target) ** 2)


def training(algorithm: ETraceVjpAlgorithm, *inputs: Any) -> dict[str, Any]:
    """All there is to save, before the first step."""
    parameters = eqx.filter(algorithm.model, eqx.is_inexact_array)
    return {
        "algorithm": algorithm,
        "optimiser": OPTIMISER.init(parameters),
        "state": algorithm.init(*inputs),
        "key": jax.random.key(3),
        "done": 0,
    }


def train(directory: str, pieces: int) -> None:
    """Trains on a random stream, from the checkpoint on if there is one.

    Prints a line when it begins and after every piece, and writes `result.npz`.
    """
    path = Path(directory) / "run.ckpt"
    now = training(DRTRL(Net()), jnp.zeros(3))
    now["losses"] = np.zeros((pieces, STEPS // WINDOW))
    if path.exists():
        now = restore(path, now)
    print("begins", flush=True)

    def source() -> Iterator[tuple[jax.Array, jax.Array]]:
        while True:
            now["key"], key = jax.random.split(now["key"])
            inputs = jax.random.normal(key, (STEPS, 3))
            yield inputs, jnp.cumsum(inputs, axis=0)[:, :2]

    steps = learn(loss, OPTIMISER, window=WINDOW)
    names = ("algorithm", "optimiser", "state")
    found = stream(steps, *(now[name] for name in names), source(), steps=STEPS)
    for *new, losses in itertools.islice(found, pieces - now["done"]):
        now["losses"][now["done"]] = losses
        now |= zip(names, new, strict=True)
        now["done"] += 1
        save(path, now)
        print("saved", flush=True)
    now["key"] = jax.random.key_data(now["key"])
    leaves = jax.tree.leaves(eqx.filter(now, eqx.is_array_like))
    np.savez(Path(directory) / "result.npz", *leaves)


def write(directory: str) -> None:
    """Saves 16 MB, over and over, each time of the next number; prints the number."""
    path = Path(directory) / "run.ckpt"
    now = numbers()
    if path.exists():
        now = restore(path, now)
    while True:
        now = {"number": now["number"] + 1, "array": now["array"] + 1}
        save(path, now)
        print(now["number"], flush=True)


def numbers() -> dict[str, Any]:
    """What `write` begins with."""
    return {"number": 0, "array": np.zeros(2**21)}
