"""Sequences that need not fit in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._algorithm import ETraceVjpAlgorithm
from ._check_sequence import check_positive
from ._model import kind_of
from .callbacks import Progress


def stream(
    train: Callable[..., Any],
    algorithm: ETraceVjpAlgorithm,
    optimiser_state: PyTree | None,
    state: PyTree | None,
    source: Any,
    *,
    steps: int,
    progress: bool = False,
    callbacks: Any = (),
) -> Iterator[tuple[ETraceVjpAlgorithm, PyTree, PyTree, PyTree]]:
    """Online training on a sequence of any length, read piece by piece.

    At most two pieces are in memory at a time, so that memory does not grow with the
    sequence. It is a generator: stop, log, or save whenever you like.

    ```python
    train = etrace.learn(loss_fn, optax.adam(1e-3), window=25)
    pieces = etrace.stream(train, algorithm, None, None, source, steps=1000)
    for algorithm, optimiser_state, state, losses in pieces:
        ...
    ```

    **Arguments:**

    - `train`: a function made by `etrace.learn`.
    - `algorithm`, `optimiser_state`, `state`: as for `train`, to begin with.
    - `source`: a tuple `(inputs, targets)` or `(inputs, targets, mask)` of time-major
        arrays that are read slice by slice (`numpy.memmap`, an HDF5 data set, ...), or
        an iterable of such tuples, each of any number of steps.
    - `steps`: the steps of a piece, best a multiple of the window: a piece is cut into
        windows, and its last one may be shorter. Nothing is dropped at the end.
    - `progress`: shows a progress bar with the mean loss (needs tqdm).
    - `callbacks`: called after every piece with a [`etrace.callbacks.Progress`][], in
        order. Where one returns True, the piece is the last.

    **Returns:** an iterator over what `train` returns for each piece, `(algorithm,
    optimiser_state, state, losses)`.

    **Raises:** ValueError or TypeError if `source` is neither, or its parts differ in
    length.
    """
    check_positive("steps", steps)
    _check_callbacks(callbacks)
    total, pieces = _pieces(source, steps)
    bar = _bar(total) if progress else None
    return _run(train, (algorithm, optimiser_state, state), pieces, callbacks, bar)


def _run(
    train: Callable,
    carry: Sequence,
    pieces: Iterator[tuple],
    callbacks: Sequence[Callable],
    bar: Any,
):
    before, step = None, 0
    try:
        for piece in pieces:
            *carry, losses = train(*carry, *piece)
            # Computations are queued: without waiting, so would their inputs be.
            jax.block_until_ready(before)
            before, step = losses, step + _length(piece)
            both = losses if isinstance(losses, tuple) else (losses, None)  # with aux
            now = Progress(step, *carry, *both)
            if bar is not None:
                bar.set_postfix(loss=f"{now.loss:.4g}", refresh=False)
                bar.update(_length(piece))
            stop = [bool(callback(now)) for callback in callbacks]
            yield (*carry, losses)
            if any(stop):
                break
    finally:
        if bar is not None:
            bar.close()


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(
            f"callbacks are {kind_of(callbacks)}; expected a list of functions of an "
            "etrace.callbacks.Progress, such as [etrace.callbacks.History()]."
        )


def _pieces(source: Any, steps: int) -> tuple[int | None, Iterator[tuple]]:
    """The number of steps, if it is known, and the sequence in pieces of `steps`."""
    if isinstance(source, tuple):
        total = _length(source)
        cuts = range(0, total, steps)
        return total, (_cut(source, t, min(t + steps, total)) for t in cuts)
    if not isinstance(source, Iterable):
        raise TypeError(
            f"source is {kind_of(source)}; expected a tuple (inputs, targets) or "
            "(inputs, targets, mask) of time-major arrays, or an iterable of such "
            "tuples."
        )
    return None, _regrouped(source, steps)


def _regrouped(source: Iterable[tuple], steps: int) -> Iterator[tuple]:
    """The same steps in pieces of `steps` each, but for the last."""
    held, count = [], 0
    for item in source:
        if not isinstance(item, tuple):
            raise TypeError(
                f"source yields {kind_of(item)}; expected tuples (inputs, targets) or "
                "(inputs, targets, mask) of time-major arrays."
            )
        start, length = 0, _length(item)
        while count + length - start >= steps:
            stop = start + steps - count
            yield _joined([*held, _cut(item, start, stop)])
            held, count, start = [], 0, stop
        if start < length:
            held.append(_cut(item, start, length))
            count += length - start
    if held:
        yield _joined(held)


def _length(source: tuple) -> int:
    """The number of steps of `(inputs, targets)` or `(inputs, targets, mask)`."""
    if len(source) not in (2, 3):
        raise ValueError(
            f"source holds a tuple of {len(source)}; expected (inputs, targets) or "
            "(inputs, targets, mask). The inputs of a model with several are a tuple "
            "inside it."
        )
    shapes = [getattr(x, "shape", None) for x in jax.tree.leaves(source)]
    if not shapes or not all(shapes):
        raise TypeError(
            f"source holds leaves of shapes {shapes}; expected arrays with a leading "
            "time axis."
        )
    lengths = {shape[0] for shape in shapes if shape}
    if len(lengths) != 1:
        raise ValueError(
            f"source holds arrays of {sorted(lengths)} steps; expected one number of "
            "steps for all. Time is the leading axis."
        )
    return lengths.pop()


def _cut(source: tuple, start: int, stop: int) -> tuple:
    return jax.tree.map(lambda x: _array(x[start:stop]), source)


def _array(x: Any) -> jax.Array | np.ndarray:
    """An array of JAX stays where it lies."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _joined(items: list[tuple]) -> tuple:
    if len(items) == 1:
        return items[0]
    module = lambda xs: jnp if isinstance(xs[0], jax.Array) else np  # noqa: E731
    return jax.tree.map(lambda *xs: module(xs).concatenate(xs), *items)


def _bar(total: int | None) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True shows its bar with tqdm, which is not installed: "
            "pip install tqdm"
        ) from error
    return tqdm(total=total, unit="step")
