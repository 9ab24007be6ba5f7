"""Checkpoints in one file, which is there in full or not at all.

magic | SHA-256 of the rest | header, a line of JSON | the arrays, by Equinox
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .._model import kind_of
from ._description import check_description, describe, is_data, is_key

_MAGIC = b"etrace checkpoint\n"
_FORMAT = 1


def save(path: str | os.PathLike, tree: PyTree) -> None:
    """Saves the state of training in a file.

    The file is written beside `path`, with `.tmp` behind its name, and renamed when it
    is complete and on the disk: whenever the process is killed, `path` is the old
    checkpoint or the new one. One process at a time may write to a path.

    **Arguments:**

    - `path`: of the file; an older one is replaced.
    - `tree`: any pytree: an algorithm with its model, the state of an optimiser,
        `(hidden, other, trace)`, PRNG keys, counters. Arrays of JAX and NumPy and
        Python numbers are saved; what else there is must be the same where the
        checkpoint is restored.

    **Raises:** TypeError or ValueError, before anything is written, if an array has no
    value (inside `jax.jit`, or its memory was donated) or cannot be saved. If writing
    fails, `path` is the old checkpoint or the new one, and nothing else is left.
    """
    data = eqx.filter(tree, is_data)
    for where, x in jax.tree.leaves_with_path(data):
        _check_savable(f"tree{jax.tree_util.keystr(where)}", x)
    leaves = jax.tree.leaves(data)
    arrays = [_plain(x) for x in leaves]
    kinds = [(_kind(x), a.dtype.str, a.shape) for x, a in zip(leaves, arrays)]
    header = {"format": _FORMAT, "leaves": kinds, "description": describe(tree)}
    with _replaced(Path(path)) as file:
        file.write(_MAGIC + bytes(32))
        file.write(json.dumps(header).encode() + b"\n")
        eqx.tree_serialise_leaves(file, arrays)
        file.seek(len(_MAGIC) + 32)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(len(_MAGIC))
        file.write(digest)


def restore(path: str | os.PathLike, like: PyTree) -> PyTree:
    """What `etrace.save` saved.

    **Arguments:**

    - `path`: of the file.
    - `like`: a pytree like the one that was saved, made by the same script: fresh
        objects, or `jax.ShapeDtypeStruct`s in place of their arrays, as
        `equinox.filter_eval_shape` makes them.

    **Returns:** a pytree of the numbers in the file, each of the type that was saved,
    arrays on the devices of those in `like`. All else is that of `like`. Its traces
    belong to the graph that `like` has, so that nothing is compiled anew.

    **Raises:** FileNotFoundError if there is no such file. ValueError if it is no
    checkpoint, is damaged in any byte or cut off, or was saved of something else than
    `like`: another model, rule, option, shape, dtype or structure, see
    `etrace.describe`.
    """
    with open(path, "rb") as file:
        header = _header(file, path)
        check_description(header["description"], like)
        expected = [np.empty(shape, dtype) for _, dtype, shape in header["leaves"]]
        arrays = eqx.tree_deserialise_leaves(file, expected)
    data, rest = eqx.partition(like, is_data)
    leaves, treedef = jax.tree.flatten(data)
    kinds = [kind for kind, _, _ in header["leaves"]]
    restored = map(_restored, kinds, arrays, leaves)
    return eqx.combine(treedef.unflatten(restored), rest)


def _header(file: io.BufferedReader, path: Any) -> dict[str, Any]:
    """What stands in front of the arrays, in a file of this format without damage."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError(
            f"path {str(path)!r} is not a checkpoint: it does not begin like one. Give "
            "a file that etrace.save wrote."
        )
    digest = file.read(32)
    start = file.tell()
    if hashlib.file_digest(file, "sha256").digest() != digest:
        raise ValueError(
            f"path {str(path)!r} is damaged: its checksum is not that of its content. "
            "It was cut off or changed after it was written; restore an older one."
        )
    file.seek(start)
    header = json.loads(file.readline())
    if header["format"] != _FORMAT:
        raise ValueError(
            f"path {str(path)!r} is a checkpoint of format {header['format']}; this "
            f"etrace reads format {_FORMAT}. Restore it with the version of etrace "
            "that saved it."
        )
    return header


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[io.BufferedRandom]:
    """A file that takes the place of `path` once it is written."""
    # Its name is fixed: the next one overwrites what a killed process left.
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # elsewhere directories cannot be synchronised
        directory = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


# ------------------------------------------------------------- leaves, as NumPy arrays


def _check_savable(name: str, x: Any) -> None:
    remedy = ""
    if isinstance(x, Tracer):
        remedy = "Call etrace.save outside of jax.jit and other transformations."
    elif isinstance(x, jax.ShapeDtypeStruct):
        remedy = "Only `like` of etrace.restore may stand for arrays."
    elif isinstance(x, jax.Array) and x.is_deleted():
        remedy = "Its memory was donated: save the state that the call returned."
    if remedy:
        raise ValueError(f"{name} is {kind_of(x)} without a value. {remedy}")
    if isinstance(x, jax.Array):
        return
    dtype = np.asarray(x).dtype
    if dtype.hasobject or dtype.names:
        raise TypeError(
            f"{name} is of dtype {dtype}, which cannot be saved; expected an array of "
            "numbers, or a number of at most 64 bits."
        )


def _kind(x: Any) -> str:
    """The type to restore."""
    if isinstance(x, jax.Array):
        if is_key(x):
            return f"key {jax.random.key_impl(x)}"
        return "weak" if x.weak_type else "array"
    if isinstance(x, np.ndarray):
        return "numpy"
    return "scalar" if isinstance(x, np.generic) else "number"


def _plain(x: Any) -> np.ndarray:
    """In a dtype that NumPy itself has."""
    if isinstance(x, jax.Array) and is_key(x):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}") if _is_foreign(x.dtype) else x


def _is_foreign(dtype: np.dtype) -> bool:
    """Whether a library added it to NumPy, such as bfloat16."""
    return dtype.isbuiltin == 2


def _restored(kind: str, x: np.ndarray, like: Any) -> Any:
    kind, _, impl = kind.partition(" ")
    if kind == "number":
        return x.item()
    if kind != "key" and _is_foreign(like.dtype):
        x = x.view(like.dtype)
    if kind in ("numpy", "scalar"):
        return x if kind == "numpy" else x[()]
    result = jnp.asarray(x)
    if kind == "key":
        result = jax.random.wrap_key_data(result, impl=impl)
    if kind == "weak":  # which an update in place keeps
        result = jnp.full(x.shape, x.dtype.type(0).item()).at[...].set(result)
    committed = isinstance(like, jax.Array) and like.committed
    return jax.device_put(result, like.sharding) if committed else result
