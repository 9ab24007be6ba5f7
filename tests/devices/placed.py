"""A model, a task, and where their arrays lie."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import etrace

TIME, BATCH, IN, OUT, HIDDEN = 6, 8, 4, 4, 8


class Leaky(eqx.Module):
    """A rate network."""

    w: jax.Array
    u: jax.Array
    b: jax.Array
    out: jax.Array

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.w = jax.random.normal(keys[0], (HIDDEN, IN))
        self.u = jax.random.normal(keys[1], (HIDDEN, HIDDEN)) / 4
        self.b = jnp.zeros(HIDDEN)
        self.out = jax.random.normal(keys[2], (OUT, HIDDEN)) / 3

    @property
    def cells(self) -> list[eqx.Module]:
        return [self]

    def init_state(self) -> jax.Array:
        return jnp.zeros(HIDDEN)

    def __call__(self, h, x):
        h = 0.7 * h + jnp.tanh(self.w @ x + self.u @ h + self.b)
        return self.out @ h, h


def gru() -> eqx.Module:
    keys = jax.random.split(jax.random.key(0))
    cell = eqx.nn.GRUCell(IN, HIDDEN, key=keys[0])
    return etrace.nn.RNN([cell], eqx.nn.Linear(HIDDEN, OUT, key=keys[1]))


def data() -> tuple[jax.Array, jax.Array]:
    shapes = (TIME, BATCH, IN), (TIME, BATCH, OUT)
    pairs = enumerate(shapes, start=1)
    xs, ys = (jax.random.normal(jax.random.key(n), shape) for n, shape in pairs)
    return xs, ys


def loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((outputs - targets) ** 2)


class Layout:
    """Examples over `data` rows of devices, weights over `model` columns."""

    def __init__(self, data: int, model: int):
        devices = np.array(jax.devices()).reshape(data, model)
        self.mesh = Mesh(devices, ("data", "model"))

    def at(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, P(*axes))

    def model(self, model: Any) -> Any:
        """Each weight cut along its outputs; the read-out along its inputs."""

        def place(path, x):
            behind = path[0].name in ("out", "readout")
            if not behind:
                return jax.device_put(x, self.at("model"))
            return jax.device_put(
                x, self.at(None, "model") if x.ndim > 1 else self.at()
            )

        arrays, static = eqx.partition(model, eqx.is_array)
        arrays = jax.tree_util.tree_map_with_path(place, arrays)
        return eqx.combine(arrays, static)

    def data(self, tree: Any) -> Any:
        """Time-major data, cut along the batch."""
        return jax.device_put(tree, self.at(None, "data"))


def axes(x: jax.Array) -> tuple[Any, ...]:
    """The mesh axis over which each axis of an array is cut."""
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding)
    spec = [a if sharding.mesh.shape.get(a, 1) > 1 else None for a in sharding.spec]
    return *spec, *[None] * (x.ndim - len(spec))


def share(tree: Any) -> float:
    """The largest part of all bytes that lies on one device."""
    arrays = jax.tree.leaves(tree)
    held: dict[Any, int] = {}
    for x in arrays:
        for shard in x.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values()) / sum(x.nbytes for x in arrays)


def quiet(make: Any, model: Any) -> etrace.ETraceVjpAlgorithm:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        algorithm = make(model, batched=True)
        algorithm.init(data()[0][0])
    return algorithm
