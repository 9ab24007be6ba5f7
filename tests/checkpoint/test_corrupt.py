"""Files that are no checkpoints, or no more, and trees that cannot be saved."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etrace._checkpoint import _file, check_description, restore, save

from .states import full
from .worker import Net


def signed(body: bytes) -> bytes:
    return _file._MAGIC + hashlib.sha256(body).digest() + body


def changed(content: bytes, at: int) -> bytes:
    """With one bit of one byte flipped."""
    at %= len(content)
    return content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]


def of_equinox(tmp: Path) -> bytes:
    eqx.tree_serialise_leaves(tmp, Net())
    return tmp.read_bytes()


def of_numpy(tmp: Path) -> bytes:
    np.savez(tmp, np.zeros(3))
    return tmp.with_name(f"{tmp.name}.npz").read_bytes()


NOT, DAMAGED = "is not a checkpoint", "is damaged"
CORRUPT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", NOT),
    "one byte": (lambda c: c[:1], NOT),
    "half the magic": (lambda c: c[:9], NOT),
    "the magic alone": (lambda c: c[:18], DAMAGED),
    "half the checksum": (lambda c: c[:34], DAMAGED),
    "no header": (lambda c: c[:50], DAMAGED),
    "half the header": (lambda c: c[:1000], DAMAGED),
    "no arrays": (lambda c: c[: c.index(b"\n", 50) + 1], DAMAGED),
    "half the arrays": (lambda c: c[: (c.index(b"\n", 50) + len(c)) // 2], DAMAGED),
    "all but a byte": (lambda c: c[:-1], DAMAGED),
    "a byte more": (lambda c: c + b"\0", DAMAGED),
    "twice": (lambda c: c + c, DAMAGED),
    "without the first byte": (lambda c: c[1:], NOT),
    "a flipped bit in the magic": (lambda c: changed(c, 3), NOT),
    "in the checksum": (lambda c: changed(c, 30), DAMAGED),
    "in the header": (lambda c: changed(c, 60), DAMAGED),
    "in an array": (lambda c: changed(c, -100), DAMAGED),
    "in the last byte": (lambda c: changed(c, -1), DAMAGED),
    "zeros": (lambda c: bytes(len(c)), NOT),
    "zeros behind the magic": (lambda c: c[:18] + bytes(len(c) - 18), DAMAGED),
    "a page of zeros": (lambda c: c[:4096] + bytes(4096) + c[8192:], DAMAGED),
    "text": (lambda c: b"weights: 1, 2, 3\n", NOT),
    "JSON": (lambda c: b'{"format": 1}', NOT),
    "a pickle": (lambda c: pickle.dumps({"weights": np.zeros(3)}), NOT),
    "another format": (
        lambda c: signed(c[50:].replace(b'"format": 1', b'"format": 2', 1)),
        "is a checkpoint of format 2; this etrace reads format 1",
    ),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_what_is_corrupt_is_refused(name, path):
    change, message = CORRUPT[name]
    tree = full()
    save(path, tree)
    content = path.read_bytes()
    path.write_bytes(change(content))
    assert path.read_bytes() != content
    with pytest.raises(ValueError, match=f"path '.*run.ckpt' {message}"):
        restore(path, tree)


@pytest.mark.parametrize("make", [of_equinox, of_numpy])
def test_files_of_others_are_refused(make, path, tmp_path):
    path.write_bytes(make(tmp_path / "other.eqx"))
    with pytest.raises(ValueError, match="Give a file that etrace.save wrote"):
        restore(path, full())


def test_any_byte_matters(path):
    """Each one flipped, and the file cut off before each one."""
    tree = [1]
    save(path, tree)
    content = path.read_bytes()
    for at in range(len(content)):
        for wrong in (changed(content, at), content[:at]):
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match=f"{NOT}|{DAMAGED}"):
                restore(path, tree)
    path.write_bytes(content)
    assert restore(path, [0]) == tree


def test_none_there(path):
    with pytest.raises(FileNotFoundError, match="run.ckpt"):
        restore(path, full())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(path.parent / "nowhere" / "run.ckpt", 1)


def donated() -> jax.Array:
    x = jnp.ones(3)
    x.delete()
    return x


MISTAKES: dict[str, tuple[Callable[[], Any], type, str]] = {
    "a shape": (
        lambda: (1, jax.ShapeDtypeStruct((3,), float)),
        ValueError,
        r"tree\[1\] is an array float64\[3\] without a value. Only `like`",
    ),
    "donated": (
        lambda: {"a": donated()},
        ValueError,
        r"tree\['a'\] is an array float64\[3\] .* donated: save the state that",
    ),
    "objects": (
        lambda: np.array([None, "a"]),
        TypeError,
        r"tree is of dtype object, which cannot be saved; expected an array of num",
    ),
    "records": (
        lambda: np.zeros(2, [("a", int), ("b", float)]),
        TypeError,
        "tree is of dtype .*'a'.* cannot be saved",
    ),
    "a large int": (
        lambda: [2**64],
        TypeError,
        r"tree\[0\] is of dtype object, .* or a number of at most 64 bits",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_saved(name, path):
    make, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        save(path, make())
    assert not list(path.parent.iterdir())


def test_not_inside_jit(path):
    with pytest.raises(ValueError, match="Call etrace.save outside of jax.jit"):
        jax.jit(lambda x: save(path, x))(jnp.ones(3))


def test_what_is_no_description():
    with pytest.raises(TypeError, match="expected the dict that etrace.describe"):
        check_description(3, full())
