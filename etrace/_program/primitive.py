"""What the analysis knows of an operation: one entry for each primitive.

* An *elementwise* operation computes each element of its results from the same element
  of every operand (scalars and axes of length one are broadcast).
* A *movement* copies elements of its operands to other places.
* Everything else *mixes*: positions talk to each other there, but for what its entry
  says it keeps apart.

Anything unknown mixes, which costs credit but never correctness. The entries are in
`primitives`; an equation carries its own.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any


class Kind(enum.Enum):
    ELEMENTWISE = "elementwise"
    MOVEMENT = "movement"
    MIXING = "mixing"
    # A value whose derivative is zero by declaration.
    STOP = "stop"


class Zeros(enum.Enum):
    """Where results are zero: where the product of all operands is (and the operation
    is linear in each), where all are, or where the first is."""

    PRODUCT = "product"
    ALL = "all"
    FIRST = "first"


class Singular(enum.Enum):
    """Of which operands a derivative may be infinite: of weights, or of those that meet
    data too."""

    WEIGHTS = "weights"
    WITH_DATA = "with data"


class Rewritten(enum.Enum):
    """Operations whose derivative JAX, or XLA, has not got right (`corrections`)."""

    EXTREMUM = "extremum"
    BRANCHES = "branches"
    FORWARDS = "forwards"


@dataclasses.dataclass(frozen=True, eq=False)
class Primitive:
    """One operation, or one kind of them.

    **How elements flow**

    - `kind`: what it is.
    - `indices`: operands that make it a movement if they are known at analysis.
    - `move`: of a movement, its results from NumPy arrays, which saves compiling it.
    - `sources`: of a movement, where each number of the results lies among the
        operands, laid end to end, if that is known.
    - `axes`: of a mixing operation, the pairs of an axis of an operand and the axis of
        every result along which nothing is mixed.
    - `blocks`: what it keeps apart, where axes do not say it.

    **Where weights enter**

    - `form`: the linear form with one of its operands as the weight, if there is one.
    - `multiplies`: whether it is a product of a weight and data, summed over an axis.
    - `linear_in_data`: whether it is linear in what a weight is multiplied with.

    **Zeros and derivatives**

    - `zeros`: where its results are zero for sure.
    - `flat`: whether its derivative is zero though its results are inexact.
    - `singular`: whether its derivative may be infinite.
    - `rewritten`: whether the library has a derivative in place of JAX's.
    - `has_own_derivative`: whether the user declared it.
    - `over_batch`: whether it looks at a whole batch at once.
    """

    name: str
    kind: Kind = Kind.MIXING
    indices: slice | None = None
    move: Callable[..., tuple[Any, ...]] | None = None
    sources: tuple[Any, ...] | None = None
    axes: Callable[[Any, int], Any] | None = None
    blocks: Callable[[Any, int, Callable], Any] | None = None
    form: Callable[[Any, int], Any] | None = None
    multiplies: bool = False
    linear_in_data: bool = False
    zeros: Zeros | None = None
    flat: bool = False
    singular: Singular | None = None
    rewritten: Rewritten | None = None
    has_own_derivative: bool = False
    over_batch: bool = False
