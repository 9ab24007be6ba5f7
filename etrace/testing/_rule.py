"""What a learning rule is to a dense reference, and what several rules share."""

import abc
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._observe import Observation

Matrix: TypeAlias = Float[Array, "_ _"]


class AbstractRule(eqx.Module):
    """What [`etrace.testing.rule_reference`][] must know of a rule."""

    @property
    def draws(self) -> int:
        """How many random models and sequences the rule looks at before it starts."""
        return 0

    @property
    def needs(self) -> frozenset[str]:
        """Which of the costly matrices the rule reads: "within", "full"."""
        return frozenset()

    def bound(self, model: Any) -> "AbstractRule":
        """The rule, told about a model."""
        return self

    def start(self, trace: PyTree, seen: Sequence[Observation]) -> PyTree:
        """The trace to start from, changed by what is `seen` of the sequence itself and
        of the random ones."""
        return trace

    @abc.abstractmethod
    def zero(self, o: Observation) -> PyTree:
        """The trace before the first step, by the shapes of a step."""

    @abc.abstractmethod
    def advance(self, trace: PyTree, o: Observation) -> tuple[Matrix, PyTree]:
        """R `[U, n]` of a step, and the trace after it."""

    def influence(self, trace: PyTree, o: Observation) -> Matrix:
        """M `[H, n]` that the trace stands for; a ValueError if it stands for none."""
        raise ValueError(f"{type(self).__name__} has no multi-step method.")

    def gradient(
        self, trace: PyTree, o: Observation, modulator: Array | None
    ) -> tuple[Float[Array, " n"], PyTree]:
        """The gradient of a step, and the trace after it."""
        if modulator is not None:
            raise ValueError(f"{type(self).__name__} takes no modulator.")
        r, new = self.advance(trace, o)
        return o.now + self.signal(o) @ r - o.signal @ o.j, new

    def signal(self, o: Observation) -> Float[Array, " U"]:
        """λ'."""
        return o.signal


def filtered(
    trace: tuple[Matrix, Matrix], o: Observation, decay: float, where: Sequence[bool]
) -> tuple[Matrix, tuple[Matrix, Matrix]]:
    m, r = trace
    kept = jnp.where(jnp.array(where, bool), decay, 0.0).astype(r.dtype)
    r = kept[:, None] * r + o.e @ m + o.j
    return r, (o.d @ m + o.i, r)


def fed_back(feedback: Matrix | None, o: Observation) -> Float[Array, " U"]:
    if feedback is None:
        return o.signal
    marks = sum(o.facts.at_mark)
    return jnp.concatenate([feedback @ o.at_outputs, o.signal[marks:]])


def support(matrices: Sequence[Array | None]) -> Matrix:
    """1 where one of the matrices `[..., a, b]` is not zero."""
    given = [x for x in matrices if x is not None]
    found = [jnp.any(x != 0, axis=tuple(range(x.ndim - 2))) for x in given]
    return jnp.any(jnp.stack(found), axis=0).astype(given[0].dtype)
