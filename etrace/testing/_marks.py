"""Hand-made marks on the inputs of mixing operations."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import equinox as eqx
import jax

_T = TypeVar("_T")

#: Decides from a mark's `feeds` whether gradients stop there; None outside of a
#: reference computation.
_stops: ContextVar[Callable[[frozenset[int]], bool] | None] = ContextVar(
    "etrace_testing_stops", default=None
)


def mixing_input(value: _T, feeds: Iterable[int] = ()) -> _T:
    """Marks a value that enters a mixing operation, for
    [`etrace.testing.dense_reference`][].

    In ordinary use this is the identity and leaves nothing behind in the jaxpr. Wrap
    with it every value derived from the previous or the current state at the point
    where it enters an operation through which neurons talk to each other: a dot, a
    convolution, a reduction, a data-dependent gather. A value derived from the step's
    inputs only may be marked as well: it then ends the influence of the parameters
    before it.

    **Arguments:**

    - `value`: an array or a pytree of arrays.
    - `feeds`: the groups whose *new* state the operation reaches within the same step,
        directly or through later layers. `()` for an operation that only goes to the
        outputs.

    **Returns:**

    `value`; inside a reference computation, with gradients stopped where that
    computation asks for it.

    !!! warning

        Marks act while Python traces the model. A function that holds one must not sit
        behind a cache that knows nothing of them: no `jax.jit`, and no `scan` or `cond`
        over a function that outlives the step, around a mark.
    """
    stops = _stops.get()
    if stops is None or not stops(frozenset(feeds)):
        return value
    held, rest = eqx.partition(value, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(held), rest)


@contextlib.contextmanager
def stop_marks(selects: Callable[[frozenset[int]], bool]) -> Iterator[None]:
    """Within the context, gradients stop at the marks whose `feeds` satisfy
    `selects`."""
    token = _stops.set(selects)
    try:
        yield
    finally:
        _stops.reset(token)
