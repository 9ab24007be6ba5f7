"""The step function as a flat list of equations of single primitives."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from .._model import BatchAxis
from .primitive import Primitive


@dataclasses.dataclass(frozen=True, eq=False)
class Var:
    """A value of the program; compared by identity."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def inexact(self) -> bool:
        """Whether a gradient can flow through this value."""
        return jnp.issubdtype(self.dtype, jnp.inexact)

    def axes_but(self, *used: Iterable[int]) -> tuple[int, ...]:
        """Its axes, in order, but for some."""
        taken = {d for dims in used for d in dims}
        return tuple(d for d in range(len(self.shape)) if d not in taken)


@dataclasses.dataclass(frozen=True)
class Loop:
    """How many operands of a loop its condition, all rounds, and each round read.

    The others are what a `scan` goes through; the body has all but the first.
    """

    conditions: int
    constants: int
    carry: int


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One application of a primitive: `outputs = fun(*inputs)`.

    `body` holds the inner program of a loop, or of a call with a custom derivative, if
    it only computes; and what an operation that is not JAX's own computes. `effect`: it
    does something else as well, such as printing.
    `axes`: the named axes of a batch that it acts over, as a mean over examples does.
    `plain`: `fun` is an elementwise primitive as it is, for arrays of any shape.
    """

    primitive: Primitive
    fun: Callable[..., Sequence[Any]]
    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]
    params: Mapping[str, Any]
    source: str
    body: "Program | None" = None
    loop: Loop | None = None
    effect: bool = False
    axes: tuple[str, ...] = ()
    plain: bool = False

    @property
    def name(self) -> str:
        return self.primitive.name

    @property
    def has_own_derivative(self) -> bool:
        """Whether its derivative is declared, and need not be that of its body."""
        calls = self.body is not None and self.loop is None
        return self.primitive.has_own_derivative or calls


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function of one example; of several at once where it names their `axis`."""

    inputs: tuple[Var, ...]
    outputs: tuple[Var, ...]
    equations: tuple[Equation, ...]
    constants: Mapping[Var, Any]
    axis: BatchAxis | None = None

    def operand(self, edge: "Edge") -> Var:
        """The value that is read at an edge."""
        i, j = edge
        end = i == len(self.equations)
        return self.outputs[j] if end else self.equations[i].inputs[j]

    def over(self, i: int) -> BatchAxis | None:
        """The axis of the batch, if that equation acts over it."""
        named = self.axis is not None and self.axis.name in self.equations[i].axes
        return self.axis if named else None

    def needed(self, values: Iterable[Var]) -> tuple[int, ...]:
        """The equations that these values need."""
        needed, result = set(values), []
        for i, e in reversed(list(enumerate(self.equations))):
            if any(v in needed for v in e.outputs):
                result.append(i)
                needed.update(e.inputs)
        return tuple(reversed(result))

    def applied(self, inputs: Sequence[Var]) -> tuple[list[Equation], tuple[Var, ...]]:
        """(equations, outputs) of it applied to other values, for another program that
        takes over its `constants`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        equations = [
            dataclasses.replace(e, inputs=tuple(given.get(v, v) for v in e.inputs))
            for e in self.equations
        ]
        return equations, tuple(given.get(v, v) for v in self.outputs)

    def reached_from(
        self, start: Iterable[Var], passes: Callable[["Edge"], bool] | None = None
    ) -> set[Var]:
        """The values that depend on others, and these; if it is given, by edges that
        `passes` admits and through values that gradients flow through."""
        reached = set(start)
        for i, e in enumerate(self.equations):
            edges = [(i, j) for j, v in enumerate(e.inputs) if v in reached]
            if passes is None:
                reached.update(e.outputs if edges else ())
            elif any(map(passes, edges)):
                reached.update(v for v in e.outputs if v.inexact)
        return reached


# A place where a value is read: operand `[1]` of equation `[0]`. The outputs of a
# program count as the operands of one more equation, numbered `len(equations)`.
Edge = tuple[int, int]
