"""What several test files share."""

import gc
import itertools

import equinox as eqx
import jax

_examples = itertools.count(1)


def clear_caches() -> None:
    """Drop every compiled program.

    Each one holds memory maps, and a process with some hundreds of them ends in
    `LLVM compilation error: Cannot allocate memory`.
    """
    eqx.clear_caches()
    jax.clear_caches()
    gc.collect()


def fresh_caches(every: int = 25) -> None:
    """Drop the compiled programs at each `every`-th call.

    A property test that compiles something for each example calls this first.
    """
    if next(_examples) % every == 0:
        clear_caches()
