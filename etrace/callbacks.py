"""What to do after each piece of a stream: callbacks of [`etrace.stream`][].

A callback is any function of a [`etrace.callbacks.Progress`][]. Training stops where
one returns True.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._algorithm import ETraceVjpAlgorithm
from ._check_sequence import check_positive
from ._checkpoint import save

__all__ = ["Checkpoint", "EarlyStop", "History", "Progress"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where training is after a piece.

    - `step`: the number of steps so far.
    - `algorithm`, `optimiser_state`, `state`: as they are now; `algorithm.model` is the
        model. The next piece writes over the memory of `state`: copy what you keep.
    - `losses`: of every window of the piece, `(windows,)`.
    - `aux`: with `has_aux=True`, what the loss gave beside it, stacked along time.
    """

    step: int
    algorithm: ETraceVjpAlgorithm
    optimiser_state: PyTree
    state: PyTree
    losses: Any
    aux: PyTree = None

    @property
    def loss(self) -> float:
        """The mean of the losses."""
        return float(np.mean(np.asarray(self.losses)))


class History:
    """Collects the loss, and metrics of one's own.

    ```python
    history = etrace.callbacks.History(norm=lambda p: optax.tree.norm(p.state[0]))
    ```

    **Arguments:** functions of a [`etrace.callbacks.Progress`][], by name.

    - `steps`: after how many steps each value was taken.
    - `values`: lists of values by name; `"loss"` is always there.
    """

    def __init__(self, **metrics: Callable[[Progress], Any]):
        if "loss" in metrics:
            raise ValueError('the metric "loss" is there already; give yours a name.')
        self._metrics = metrics
        self.steps: list[int] = []
        self.values: dict[str, list[Any]] = {name: [] for name in ("loss", *metrics)}

    def __call__(self, progress: Progress) -> None:
        self.steps.append(progress.step)
        self.values["loss"].append(progress.loss)
        for name, metric in self._metrics.items():
            self.values[name].append(jax.device_get(metric(progress)))


class EarlyStop:
    """Stops where a number has not become smaller for several pieces, or is no number.

    **Arguments:**

    - `patience`: how many pieces.
    - `by`: how much smaller it must be to count.
    - `of`: a function of a [`etrace.callbacks.Progress`][], the mean loss by default.
    """

    def __init__(
        self,
        patience: int,
        *,
        by: float = 0.0,
        of: Callable[[Progress], Any] = lambda progress: progress.loss,
    ):
        check_positive("patience", patience)
        self.patience, self.by, self.of = patience, by, of
        self.best, self.waited = math.inf, 0

    def __call__(self, progress: Progress) -> bool:
        found = float(self.of(progress))
        if found < self.best - self.by:
            self.best, self.waited = found, 0
        else:
            self.waited += 1
        return self.waited >= self.patience or math.isnan(found)


class Checkpoint:
    """Saves `(algorithm, optimiser_state, state, step)` by [`etrace.save`][].

    **Arguments:**

    - `path`: of the file; the one before is replaced.
    - `every`: after how many pieces.
    """

    def __init__(self, path: str | os.PathLike, *, every: int = 1):
        check_positive("every", every)
        self.path, self.every, self._pieces = path, every, 0

    def __call__(self, progress: Progress) -> None:
        self._pieces += 1
        if self._pieces % self.every == 0:
            p = progress
            save(self.path, (p.algorithm, p.optimiser_state, p.state, p.step))
