"""A checkpoint is written in full or not at all, whenever the process is killed."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
import pytest

from etrace._checkpoint import restore, save

from ..helpers import examples
from . import worker
from .states import bits, full, start


def test_it_is_on_the_disk_before_it_has_its_name(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def seen(file):
        kind = "directory" if os.path.isdir(f"/proc/self/fd/{file}") else "file"
        events.append(f"fsync of the {kind}")
        fsync(file)

    def moved(a, b):
        events.append(f"{Path(a).name} -> {Path(b).name}")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "replace", moved)
    save(path, full())
    assert events == [
        "fsync of the file",
        "run.ckpt.tmp -> run.ckpt",
        "fsync of the directory",
    ]


def failing(*arguments: Any) -> None:
    raise OSError("no space left")


def interrupted(file: Any, arrays: Any) -> None:
    file.write(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "module, name, fails, error",
    [
        (os, "fsync", failing, OSError),
        (os, "replace", failing, OSError),
        (eqx, "tree_serialise_leaves", interrupted, KeyboardInterrupt),
    ],
)
def test_a_failure_leaves_the_old_one(module, name, fails, error, path, monkeypatch):
    save(path, 1)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(module, name, fails)
        save(path, 2)
    assert restore(path, 0) == 1
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(path):
    leftover = path.with_name("run.ckpt.tmp")
    leftover.write_bytes(bytes(10**6))
    save(path, 1)
    assert restore(path, 0) == 1
    assert list(path.parent.iterdir()) == [path]


def killed(process: subprocess.Popen, lines: int, seconds: float) -> list[str]:
    """Kills a process some time after it printed some lines; all that it printed."""
    assert process.stdout is not None
    printed = [process.stdout.readline() for _ in range(lines)]
    time.sleep(seconds)
    process.kill()
    rest, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    return printed + rest.splitlines()


def test_a_training_that_is_killed_again_and_again(tmp_path):
    """It ends with the same bits as one that is left alone."""
    kills, moments = examples(ci=3, thorough=50), random.Random()
    pieces = 20 * kills  # more than it can learn before it is killed
    alone, directory = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir(), directory.mkdir()
    worker.train(str(alone), pieces)
    code = f"import tests.checkpoint.worker as w; w.train({str(directory)!r}, {pieces})"
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for kill in range(kills):
        # Every third while it starts, the others while it trains and saves.
        starting = kill % 3 == 2
        lines = 0 if starting else moments.randint(1, 5)
        seconds = moments.uniform(0, 2 if starting else 0.03)
        killed(start(code, **cache), lines, seconds)
    process = start(code, **cache)
    output, _ = process.communicate()
    assert process.returncode == 0 and output.count("saved") < pieces
    with (
        np.load(alone / "result.npz") as expected,
        np.load(directory / "result.npz") as got,
    ):
        assert expected.files == got.files and len(got.files) > 20
        for name in got.files:
            assert bits(got[name]) == bits(expected[name])
    assert {p.name for p in directory.iterdir()} == {"run.ckpt", "result.npz"}


def test_a_process_that_is_killed_while_it_writes(path):
    """The checkpoint is the last one it knew of, or the next."""
    kills, moments = examples(ci=3, thorough=25), random.Random()
    code = f"import tests.checkpoint.worker as w; w.write({str(path.parent)!r})"
    leftover, writes = path.with_name("run.ckpt.tmp"), 0
    for _ in range(kills):
        printed = killed(start(code), moments.randint(1, 2), moments.uniform(0, 0.1))
        restored = restore(path, worker.numbers())
        assert (restored["array"] == restored["number"]).all()
        assert restored["number"] - int(printed[-1]) in (0, 1)
        writes += leftover.exists()
    assert writes > 0
    save(path, 1)
    assert list(path.parent.iterdir()) == [path]
