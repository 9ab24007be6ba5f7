"""Online steps of a large sparse recurrent network of spiking neurons.

    python -m tests.benchmarks.sparse_run --neurons 1e5 --synapses 1e7 --rule ESDRTRL

Resident memory is the highest of the whole process, in which the matrix is made, too.
"""

import argparse
import resource
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jaxtyping import Array, Float, Int

import etrace

from . import models


class SparseNet(eqx.Module):
    """LIF neurons with random sparse recurrent synapses, every one of them trained."""

    synapses: Float[Array, " synapses"]
    gain: Float[Array, " neurons"]
    readout: Float[Array, "outputs neurons"]
    places: Int[np.ndarray, "synapses 2"]

    def __init__(self, neurons: int, synapses: int):
        rng = np.random.default_rng(0)
        post, pre = rng.integers(0, neurons, (2, synapses), np.int32)
        self.places = np.stack([np.sort(post), pre], axis=1)
        self.synapses = jnp.asarray(0.1 * rng.normal(size=synapses), jnp.float32)
        self.gain = jnp.ones(neurons)
        readout = rng.normal(size=(models.OUTPUTS, neurons)) / neurons
        self.readout = jnp.asarray(readout, jnp.float32)

    def init_state(self) -> tuple[Array, Array]:
        zeros = jnp.zeros_like(self.gain)
        return zeros, zeros

    def __call__(
        self, state: tuple[Array, Array], x: Float[Array, ""]
    ) -> tuple[Array, tuple[Array, Array]]:
        v, z = state
        shape = (len(v), len(v))
        recurrent = sparse.BCOO((self.synapses, self.places), shape=shape) @ z
        v = 0.9 * v * (1 - z) + recurrent + self.gain * x
        z = jax.nn.sigmoid(4 * (v - 1))
        return self.readout @ z, (v, z)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neurons", type=float, default=1e5)
    parser.add_argument("--synapses", type=float, default=1e7)
    parser.add_argument("--rule", default="ESDRTRL")
    options = parser.parse_args()
    neurons, synapses = int(options.neurons), int(options.synapses)
    algorithm = getattr(etrace, options.rule)(SparseNet(neurons, synapses))
    start = time.perf_counter()
    x, target = jnp.ones(1), jnp.zeros((1, models.OUTPUTS))
    state = algorithm.init(x[0])
    print(f"analysis: {time.perf_counter() - start:.1f} s")
    step = eqx.filter_jit(etrace.value_and_grad(models.squared_error, window=1))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        _, grads, state = step(algorithm, state, x, target)
        jax.block_until_ready((grads, state))
        times.append(time.perf_counter() - start)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"first step, compiled: {times[0]:.1f} s")
    print(f"a step: {1e3 * statistics.median(times[1:]):.0f} ms")
    print(f"resident memory: {resident / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
