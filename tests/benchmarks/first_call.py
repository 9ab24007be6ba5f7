"""How long the first call takes: tracing, analysis and compilation, beside BPTT's.

python -m tests.benchmarks.first_call            # some minutes
python -m tests.benchmarks.first_call "3 GRUs"   # one network, once, in this process
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from tqdm import tqdm

import etrace

from .models import squared_error

STEPS, INPUTS, UNITS, REPEATS = 25, 10, 32, 3


class Stack(eqx.Module):
    """GRU layers."""

    cells: list[eqx.nn.GRUCell]

    def init_state(self):
        return tuple(jnp.zeros(UNITS) for _ in self.cells)

    def __call__(self, state, x):
        new = []
        for cell, h in zip(self.cells, state, strict=True):
            x = cell(x, h)
            new.append(x)
        return x, tuple(new)


class HodgkinHuxley(eqx.Module):
    """Neurons of four numbers (v, m, h, n), several substeps of Euler's method a step;
    their conductances are trained too."""

    weight: jax.Array
    conductances: jax.Array
    substeps: int = eqx.field(static=True)

    def init_state(self):
        one = jnp.ones(len(self.weight))
        return -65 * one, 0.05 * one, 0.6 * one, 0.32 * one

    def __call__(self, state, x):
        current, dt = self.weight @ x, 0.5 / self.substeps
        sodium, potassium, leak = jax.nn.softplus(self.conductances)

        def substep(state, _):
            v, m, h, n = state
            m = m + dt * (_rate(v, 40, 0.1) * (1 - m) - 4 * jnp.exp(-(v + 65) / 18) * m)
            open_ = 0.07 * jnp.exp(-(v + 65) / 20) * (1 - h)
            h = h + dt * (open_ - jax.nn.sigmoid((v + 35) / 10) * h)
            shut = 0.125 * jnp.exp(-(v + 65) / 80) * n
            n = n + dt * (_rate(v, 55, 0.01) * (1 - n) - shut)
            flow = sodium * m**3 * h * (v - 50) + potassium * n**4 * (v + 77)
            return (v + dt * (current - flow - leak * (v + 54.4)), m, h, n), None

        state, _ = jax.lax.scan(substep, state, None, length=self.substeps)
        return state[0], state


def _rate(v: jax.Array, middle: float, slope: float) -> jax.Array:
    return slope * (v + middle) / (1.000001 - jnp.exp(-(v + middle) / 10))


def _stack(layers: int) -> eqx.Module:
    keys = jax.random.split(jax.random.key(0), layers)
    sizes = [INPUTS, *[UNITS] * layers]
    pairs = zip(sizes, keys)
    return Stack([eqx.nn.GRUCell(size, UNITS, key=key) for size, key in pairs])


def _neurons(number: int, substeps: int) -> eqx.Module:
    weight = 0.1 * jnp.ones((number, INPUTS))
    return HodgkinHuxley(weight, jnp.array([120.0, 36.0, 0.3]), substeps)


NETWORKS: dict[str, Callable[[], Any]] = {
    **{f"{n} GRU{'s' * (n > 1)}": lambda n=n: _stack(n) for n in (1, 3, 8)},
    **{
        f"{n} Hodgkin-Huxley neurons, {k} substeps": lambda n=n, k=k: _neurons(n, k)
        for n, k in ((4, 5), (4, 20), (4, 100), (256, 20))
    },
}


def bptt(model: Any, inputs: jax.Array, targets: jax.Array) -> Any:
    def total(model):
        def step(state, pair):
            output, state = model(state, pair[0])
            return state, squared_error(output, pair[1])

        pairs = (inputs, targets)
        return jnp.mean(jax.lax.scan(step, model.init_state(), pairs)[1])

    return eqx.filter_jit(eqx.filter_value_and_grad(total))(model)


def online(model: Any, inputs: jax.Array, targets: jax.Array) -> Any:
    run = etrace.value_and_grad(squared_error, window=STEPS)
    return run(etrace.DRTRL(model), None, inputs, targets)


def first(name: str) -> None:
    """Prints the seconds of both, and the megabytes of the process after each."""
    model = NETWORKS[name]()
    inputs = jnp.ones((STEPS, INPUTS))
    size = jax.eval_shape(model, model.init_state(), inputs[0])[0].shape
    found = []
    for method in (bptt, online):
        start = time.perf_counter()
        jax.block_until_ready(method(model, inputs, jnp.zeros((STEPS, *size))))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found += [time.perf_counter() - start, memory]
    print(*found)


def main() -> None:
    print("| | BPTT, s | etrace, s | ratio | MB more |\n|---|--:|--:|--:|--:|")
    for name in tqdm(NETWORKS, desc="networks"):
        command = [sys.executable, "-m", "tests.benchmarks.first_call", name]
        runs = [
            subprocess.run(command, check=True, capture_output=True, text=True)
            for _ in range(REPEATS)
        ]
        numbers = [list(map(float, run.stdout.split())) for run in runs]
        reference, before, ours, after = map(statistics.median, zip(*numbers))
        ratio = statistics.median(n[2] / n[0] for n in numbers)
        cells = f"{reference:.1f} | {ours:.1f} | {ratio:.1f} | {after - before:.0f}"
        tqdm.write(f"| {name} | {cells} |")


if __name__ == "__main__":
    first(sys.argv[1]) if len(sys.argv) > 1 else main()
