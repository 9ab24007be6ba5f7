"""Hand-made marks: what a model says about itself to the dense references."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._vectors import from_vector, to_vector

_T = TypeVar("_T")
#: What is seen at a mark: a value on its way into an open mixing operation, one on its
#: way out of the model, a new state that is read in the same step, and of a site its
#: weight, its output and the derivative of this output by the weight.
Kind = Literal["exit", "output", "state", "weight", "site", "input"]


class Watch:
    """What a reference computation does at the marks, and what it sees there.

    - `stops`: decides from a mark's `feeds` whether gradients stop there.
    - `shifts`: by kind, the real vectors added to the values, in order of call.
    - `values`, `facts`: by kind, what was seen, before the shifts: real vectors, and
        what the marks say about them.
    """

    def __init__(
        self,
        stops: Callable[[frozenset[int]], bool] = lambda feeds: False,
        shifts: Mapping[Kind, Sequence[Array]] | None = None,
    ) -> None:
        self.stops = stops
        self.shifts = {} if shifts is None else shifts
        self.values: dict[Kind, list[Array]] = {}
        self.facts: dict[Kind, list[Any]] = {}

    def see(self, kind: Kind, value: PyTree[Array], fact: Any = None) -> None:
        """Notes a value."""
        self.values.setdefault(kind, []).append(to_vector(value))
        self.facts.setdefault(kind, []).append(fact)

    def shift(self, kind: Kind, value: _T) -> _T:
        """Adds the shift meant for the value that was seen last."""
        if kind not in self.shifts:
            return value
        shift = self.shifts[kind][len(self.values[kind]) - 1]
        return jax.tree.map(jnp.add, value, from_vector(shift, value))


#: None outside of a reference computation.
_watch: ContextVar[Watch | None] = ContextVar("etrace_testing_watch", default=None)


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Within the context, all marks report to `watch`."""
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


def stop_marks(
    selects: Callable[[frozenset[int]], bool],
) -> contextlib.AbstractContextManager[Watch]:
    """Within the context, gradients stop at the marks whose `feeds` satisfy
    `selects`."""
    return watching(Watch(selects))


def mixing_input(value: _T, feeds: Iterable[int] = (), of: int | None = None) -> _T:
    """Marks a value that enters a mixing operation, for
    [`etrace.testing.dense_reference`][] and [`etrace.testing.rule_reference`][].

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
    - `of`: the group whose positions the elements belong to: element i of the array,
        flattened, to position i. None if they belong to no position. Only
        `rule_reference` reads this, and only where `feeds` lacks the group: there the
        value is one of the group's *exits*.

    **Returns:**

    `value`; inside a reference computation, with gradients stopped where that
    computation asks for it.

    !!! warning

        Marks act while Python traces the model. A function that holds one must not sit
        behind a cache that knows nothing of them: no `jax.jit`, and no `scan` or `cond`
        over a function that outlives the step, around a mark.
    """
    watch = _watch.get()
    if watch is None:
        return value
    feeds = frozenset(feeds)
    is_exit = of is not None and of not in feeds
    if is_exit:
        watch.see("exit", value, (of, feeds))
    if watch.stops(feeds):
        held, rest = eqx.partition(value, eqx.is_inexact_array)
        value = eqx.combine(jax.lax.stop_gradient(held), rest)
    return watch.shift("exit", value) if is_exit else value


def local_output(value: Array, of: int) -> Array:
    """Marks outputs that are local functions of a position: nothing mixes on the way.

    **Arguments:**

    - `value`: an array, on its way out of the model.
    - `of`: the group whose positions the elements belong to: element i, flattened, to
        position i.

    **Returns:**

    `value`.
    """
    watch = _watch.get()
    if watch is None:
        return value
    watch.see("output", value, (of, frozenset()))
    return watch.shift("output", value)


def new_state(value: Array, of: int) -> Array:
    """Marks the new state of a group of one number per neuron, where it is also read
    within the step: as the output of a layer.

    **Arguments:**

    - `value`: the new state. What is read must be what this returns.
    - `of`: the group.

    **Returns:**

    `value`.
    """
    watch = _watch.get()
    if watch is None:
        return value
    watch.see("state", value, of)
    return watch.shift("state", value)


def site(
    operation: Callable[[Array, Array], Array],
    weight: Array,
    x: Array,
    *,
    elementwise: bool = False,
) -> Array:
    """The operation in which a weight meets data, `operation(weight, x)`, marked.

    **Arguments:**

    - `operation`: linear in the weight: a product, a convolution, a lookup, a sum.
    - `weight`: an array made of parameters and constants only.
    - `x`: data.
    - `elementwise`: whether each number of the weight meets one number of the data at a
        time, as those of a bias, a gain or a decay do.

    **Returns:**

    `operation(weight, x)`.
    """
    watch = _watch.get()
    if watch is None:
        return operation(weight, x)

    def of_weight(vector: Array) -> Array:
        return to_vector(
            operation(from_vector(vector, weight), jax.lax.stop_gradient(x))
        )

    watch.see("weight", weight)
    weight = watch.shift("weight", weight)
    watch.see("input", jax.jacrev(of_weight)(to_vector(weight)))
    z = operation(weight, x)
    watch.see("site", z, elementwise)
    return watch.shift("site", z)


def product_site(outer: Array, inner: Array, x: Array) -> Array:
    """`outer @ (inner @ x)`, marked as one site, whose weight is `outer @ inner`."""
    if _watch.get() is None:
        return outer @ (inner @ x)
    return site(jnp.matmul, outer @ inner, x)
