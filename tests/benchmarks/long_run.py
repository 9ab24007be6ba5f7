"""A million steps: memory and speed must not change on the way.

    python -m tests.benchmarks.long_run --steps 1000000

Resident memory is read from /proc, so this needs Linux.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Iterator

import numpy as np
import optax

import etrace

from . import models

PIECE = 1000


def source(steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random pulses, and their running mean to be told."""
    rng = np.random.default_rng(0)
    for _ in range(steps // PIECE):
        inputs = (rng.random((PIECE, 16)) < 0.3).astype(np.float32)
        mean = np.cumsum(inputs[:, : models.OUTPUTS], axis=0)
        yield inputs, mean / np.arange(1, PIECE + 1, dtype=np.float32)[:, None]


def resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=25)
    options = parser.parse_args()
    train = etrace.learn(models.squared_error, optax.adam(1e-3), window=options.window)
    algorithm = etrace.DRTRL(models.make("lif", 16, 64))
    pieces = etrace.stream(
        train,
        algorithm,
        None,
        None,
        source(options.steps),
        steps=PIECE,
        progress=True,
    )
    memory, times = [], [time.perf_counter()]
    for i, (*_, losses) in enumerate(pieces, start=1):
        if i % 10 == 0:
            memory.append(resident_bytes())
            times.append(time.perf_counter())
    speed = 10 * PIECE / np.diff(times)
    settled = memory[1:]  # from 20 thousand steps on
    tenth = max(len(speed) // 10, 1)
    print(f"loss of the last window {float(losses[-1]):.4f}")
    print(
        f"resident memory: {memory[0] / 1e6:.1f} MB after {10 * PIECE} steps,", end=""
    )
    print(f" {min(settled) / 1e6:.1f} to {max(settled) / 1e6:.1f} MB from then on,")
    print(f"    drift {max(settled) / memory[0] - 1:+.2%} at most")
    print("steps a second, medians of the tenths of the run:")
    print(
        "   ",
        *(f"{np.median(s):.0f}" for s in np.array_split(speed, len(speed) // tenth)),
    )


if __name__ == "__main__":
    main()
