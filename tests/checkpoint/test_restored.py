"""What comes back: every bit, in this process and in others, and by Orbax."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import etrace
from etrace._checkpoint import check_description, describe, restore, save

from ..rules import RULES
from . import worker
from .states import X, bits, example_of, full, same
from .test_refused import FOREIGN
from .worker import Net, training

LEAVES = {
    "double": jnp.array([1.5, -0.0, jnp.nan]),
    "single": jnp.ones((2, 3), jnp.float32),
    "complex": jnp.array([1 + 2j]),
    "bfloat16": jnp.array([1.5, -2], jnp.bfloat16),
    "float8": jnp.array([1.5, -2], jnp.float8_e4m3fn),
    "int4": jnp.array([1, -2], jnp.int4),
    "bool": jnp.array([True, False]),
    "empty": jnp.zeros((0, 3)),
    "weak scalar": jnp.asarray(2.5),
    "weak array": jnp.full((2, 2), 3),
    "key": jax.random.key(1),
    "keys": jax.random.split(jax.random.key(1), (2, 3)),
    "another kind of key": jax.random.key(1, impl="rbg"),
    "untyped key": jax.random.PRNGKey(1),
    "NumPy": np.arange(6.0).reshape(2, 3),
    "transposed": np.arange(6).reshape(2, 3).T,
    "of single precision": np.arange(3, dtype=np.float32),
    "of another byte order": np.arange(3, dtype=">i4"),
    "text": np.array(["a", "bcd"]),
    "bfloat16 of NumPy": np.ones((2, 1), jnp.bfloat16),
    "of no axes": np.array(3),
    "scalar": np.float32(3),
    "bfloat16 scalar": jnp.bfloat16(1.5)[()],
    "int": -(2**62),
    "unsigned": 2**64 - 1,
    "float": 0.1,
    "infinity": float("-inf"),
    "complex number": 1 - 2j,
    "truth": True,
}


def zero(x: Any) -> Any:
    """A leaf of the same type, with other numbers."""
    if not hasattr(x, "dtype"):
        return type(x)(0)
    if isinstance(x, np.generic):
        return type(x)(0)
    if isinstance(x, np.ndarray):
        return np.zeros_like(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = jnp.zeros_like(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jnp.zeros_like(x)


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_comes_back_bit_by_bit(name, path):
    save(path, LEAVES[name])
    assert bits(restore(path, zero(LEAVES[name]))) == bits(LEAVES[name])


def test_a_state_of_training_comes_back(path):
    tree = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, full())
    save(path, tree)
    like = full(etrace.DRTRL(Net(seed=1)), key=jax.random.key(0))
    assert same(restore(path, like), tree)
    like = eqx.filter_eval_shape(full)
    assert isinstance(jax.tree.leaves(like)[0], jax.ShapeDtypeStruct)
    assert [*map(bits, jax.tree.leaves(restore(path, like)))] == [
        *map(bits, jax.tree.leaves(tree))
    ]


def test_an_array_may_be_of_jax_or_numpy(path):
    save(path, (jnp.ones(3), np.ones(3)))
    a, b = restore(path, (np.zeros(3), jnp.zeros(3)))
    assert isinstance(a, jax.Array) and type(b) is np.ndarray


def test_arrays_lie_where_those_of_like_do(path):
    mesh = jax.sharding.Mesh(jax.devices()[:2], "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    save(path, (jnp.arange(4.0), jnp.arange(4.0), jnp.arange(4.0)))
    second = jax.device_put(jnp.zeros(4), jax.devices()[1])
    like = (jax.device_put(jnp.zeros(4), sharding), second, jnp.zeros(4))
    restored = restore(path, like)
    for x, y in zip(restored, like):
        assert (x.sharding, x.committed) == (y.sharding, y.committed)
        assert (x == jnp.arange(4.0)).all()


@pytest.mark.parametrize("rule", ["DRTRL", "ESDRTRL", "UORO"])
def test_training_goes_on_as_if_nothing_had_happened(rule, path):
    """With new numbers in `like`, and compiled once."""
    calls = []

    def counted(*arguments):
        calls.append("loss")
        return worker.loss(*arguments)

    learn = etrace.learn(counted, worker.OPTIMISER, window=2)
    inputs = jax.random.normal(jax.random.key(0), (2, 4, 3))

    def trained(tree, n):
        begin = (tree[name] for name in ("algorithm", "optimiser", "state"))
        *new, losses = learn(*begin, inputs[n], inputs[n, :, :2])
        names = ("algorithm", "optimiser", "state")
        return tree | dict(zip(names, new)), losses

    half, _ = trained(training(RULES[rule].make(Net()), X), 0)
    save(path, half)
    expected = trained(half, 1)
    before = len(calls)
    like = training(RULES[rule].make(Net(seed=1)), X)
    restored = restore(path, like)
    assert restored["state"][2].graph is like["state"][2].graph
    assert same(trained(restored, 1), expected)
    assert len(calls) == before


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_its_state_back(rule, path):
    algorithm, x = example_of(rule)
    tree = training(algorithm, x)
    tree = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, tree)
    save(path, tree)
    restored = restore(path, training(*example_of(rule)))
    assert same(restored, tree)
    restored["algorithm"].check(*restored["state"], x)


def stored(x: Any) -> bool:
    """What orbax can take: no functions, nothing empty."""
    return eqx.is_array_like(x) and np.size(x) > 0


def kept_by_orbax(directory: Path, tree: Any) -> None:
    with ocp.CheckpointManager(directory) as manager:
        arrays = ocp.args.StandardSave(eqx.filter(tree, stored))
        description = ocp.args.JsonSave(describe(tree))
        items = ocp.args.Composite(arrays=arrays, description=description)
        manager.save(0, args=items)


def from_orbax(directory: Path, like: Any) -> Any:
    arrays, rest = eqx.partition(like, stored)
    with ocp.CheckpointManager(directory) as manager:
        items = ocp.args.Composite(description=ocp.args.JsonRestore())
        check_description(manager.restore(0, args=items).description, like)
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(arrays))
        return eqx.combine(manager.restore(0, args=items).arrays, rest)


def test_by_orbax(tmp_path):
    tree = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, full())
    kept_by_orbax(tmp_path, tree)
    like = full(etrace.DRTRL(Net(seed=1)), key=jax.random.key(0))
    restored = from_orbax(tmp_path, like)
    assert same(restored, tree)
    assert restored["state"][2].graph is like["state"][2].graph
    for name in ("rule", "option, by its traces", "number in the model"):
        make, message = FOREIGN[name]
        with pytest.raises(ValueError, match="like is something else") as error:
            from_orbax(tmp_path, make())
        assert message in str(error.value)
