"""Time and memory of compiled programs."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Times:
    """Of several calls, in seconds."""

    median: float
    low: float  # the quartiles
    high: float

    @staticmethod
    def of(calls: list[float]) -> "Times":
        low, median, high = statistics.quantiles(calls, n=4, method="inclusive")
        return Times(median, low, high)


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int, at_most: float
) -> Iterator[tuple[str, Times]]:
    """Times functions in turn, so that all see the same state of the machine.

    Each is called once to compile. One that takes long is called less often, once
    `at_most` seconds are spent on it, but at least three times.
    """
    calls: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for i in range(repeats):
        for name, function in functions.items():
            if i < 3 or sum(calls[name]) < at_most:
                start = time.perf_counter()
                jax.block_until_ready(function())
                calls[name].append(time.perf_counter() - start)
    for name, times in calls.items():
        yield name, Times.of(times)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What compiling took, in seconds, and the bytes of the program."""

    seconds: float
    temporary: int
    argument: int
    output: int
    shared: int  # of arguments and outputs

    @property
    def total(self) -> int:
        return self.temporary + self.argument + self.output - self.shared


def compiled(function: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function for such arguments (arrays or shapes)."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return Compiled(
        seconds,
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
    )


def copy_speed(size: int) -> float:
    """Bytes a second that a copy of an array of `size` bytes reads and writes.

    From one array to another that is there already: new memory would be slow at first.
    """
    source = jnp.ones(size // 4, jnp.float32)
    target = [jnp.zeros_like(source)]
    copy = jax.jit(lambda x, into: x + 1, donate_argnums=1, keep_unused=True)

    def run():
        target[0] = copy(source, target[0])
        return target[0]

    ((_, times),) = interleaved({"copy": run}, 20, 5.0)
    return 2 * size / times.median
