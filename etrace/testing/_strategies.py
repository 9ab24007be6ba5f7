"""Hypothesis strategies for models, sequences and windows. The only file that needs
hypothesis.

Few shapes are drawn, and the simplest choices come first: examples shrink to a small
model of few options.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias

from hypothesis import strategies as st

from ._cells import CELLS
from ._models import LayerSpec, NetSpec
from ._parts import DECAYS, DENSE_FORMS, EXPRESSIONS
from ._problems import Problem, make_problem
from ._readouts import READOUTS

#: `st.DrawFn`, which is a protocol that cannot be checked at run time.
Draw: TypeAlias = Callable[..., Any]
#: The kinds of layers drawn by default, all with real states.
KINDS = tuple(kind for kind in CELLS if kind != "complex_lru")
_FIRST_FORMS = (*DENSE_FORMS, "factored", "conv1d", "conv2d", "embed", "elementwise")
_LATER_FORMS = (*DENSE_FORMS, "factored", "conv1d")


def _keeps_random(function: Draw) -> Draw:
    """Restores Python's random state after a draw.

    A run-time type checker may look at a random element of each sequence; hypothesis
    would take this for randomness out of its control.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        before = random.getstate()
        try:
            return function(*args, **kwargs)
        finally:
            random.setstate(before)

    return wrapper


def layer_specs(
    *,
    kinds: Collection[str] = KINDS,
    forms: Collection[str] = _FIRST_FORMS,
    expressions: Collection[str] = EXPRESSIONS,
    norms: bool = True,
    delays: bool = False,
) -> st.SearchStrategy[LayerSpec]:
    """Draws a layer: its kind, size, how its weights are applied and what they are
    expressions of."""

    def build(kind: str, form: str, small: int, **options: Any) -> LayerSpec:
        convolutional = form in ("conv1d", "conv2d")
        return LayerSpec(
            kind, size=small - 1 if convolutional else small, form=form, **options
        )

    rare = st.sampled_from([False, False, False, True])
    return st.builds(
        build,
        kind=st.sampled_from(list(kinds)),
        form=st.sampled_from(list(forms)),
        small=st.sampled_from([3, 2]),
        expression=st.sampled_from(list(expressions)),
        recurrent=st.booleans(),
        decay=st.sampled_from(list(DECAYS)),
        shared_decay=st.booleans(),
        norm=rare if norms else st.just(False),
        gain=st.booleans(),
        delayed=st.booleans() if delays else st.just(False),
        padding=st.sampled_from(["SAME", "VALID"]),
        stride=st.sampled_from([1, 2]),
    )


@st.composite
@_keeps_random
def net_specs(
    draw: Draw,
    *,
    kinds: Collection[str] = KINDS,
    first_forms: Collection[str] = _FIRST_FORMS,
    later_forms: Collection[str] = _LATER_FORMS,
    expressions: Collection[str] = EXPRESSIONS,
    readouts: Collection[str] = READOUTS,
    max_layers: int = 3,
    norms: bool = True,
    extras: bool = True,
) -> NetSpec:
    """Draws a stack of 1 to `max_layers` layers and a read-out.

    **Arguments:**

    - `kinds`, `first_forms`, `later_forms`, `expressions`, `readouts`: what to draw
        from.
    - `norms`: whether layers may have a norm.
    - `extras`: whether to draw encoders, tied weights, feedback, delayed layers,
        counters, second inputs and learnt initial states.
    """
    options: dict[str, Any] = {
        "kinds": kinds,
        "expressions": expressions,
        "norms": norms,
    }
    first = draw(layer_specs(forms=first_forms, **options))
    depth = draw(st.integers(1, max_layers))
    upper = layer_specs(forms=later_forms, delays=extras, **options)
    layers = (first, *(draw(upper) for _ in range(depth - 1)))
    inputs = draw(st.sampled_from([2, 3]))
    if layers[-1].form not in ("wx", "einsum"):
        readouts = [readout for readout in readouts if readout != "tied"]
    spec = NetSpec(layers, inputs, draw(st.sampled_from(list(readouts))))
    return draw(_with_extras(spec)) if extras else spec


@st.composite
@_keeps_random
def _with_extras(draw: Draw, spec: NetSpec) -> NetSpec:
    """Adds those of the options that the layers allow."""
    chosen: dict[str, Any] = {"counter": draw(st.booleans())}
    chosen["initial"] = draw(st.sampled_from(["zeros", "zeros", "tanh", "matrix"]))
    for option in ("second_input", "encoder", "feedback", "tied"):
        with_option = dataclasses.replace(spec, **{option: True})
        try:
            with_option.check()
        except ValueError:
            continue
        chosen[option] = draw(st.booleans())
    return dataclasses.replace(spec, **chosen)


def sequence_lengths() -> st.SearchStrategy[int]:
    """Draws a number of steps."""
    return st.sampled_from([5, 3, 8])


def masks(length: int) -> st.SearchStrategy[Any]:
    """Draws None, zeros and ones, or weights, `[length]`; some step always counts."""
    binary = st.lists(
        st.sampled_from([1.0, 0.0]), min_size=length, max_size=length
    ).filter(any)
    weights = st.lists(
        st.sampled_from([1.0, 0.5, 2.0, 0.0]), min_size=length, max_size=length
    ).filter(any)
    return st.one_of(st.none(), binary, weights)


def window_splits(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draws the lengths of the windows of a sequence, each from 1 to `length`."""
    cuts = st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set())
    return cuts.map(lambda at: _between(sorted(at), length))


@_keeps_random
def _between(cuts: Iterable[int], length: int) -> tuple[int, ...]:
    return tuple(end - start for start, end in itertools.pairwise([0, *cuts, length]))


def windows(length: int) -> st.SearchStrategy[int | tuple[int, ...]]:
    """Draws a window length, possibly with a ragged last window, or a split into
    windows."""
    return st.one_of(st.sampled_from([1, 2, 3, length]), window_splits(length))


def dtypes() -> st.SearchStrategy[str]:
    """Draws a precision; comparisons to 1e-9 need the first."""
    return st.sampled_from(["float64", "float32"])


def batch_sizes() -> st.SearchStrategy[int]:
    """Draws a batch size."""
    return st.sampled_from([3, 1])


@st.composite
@_keeps_random
def problems(
    draw: Draw,
    *,
    specs: st.SearchStrategy[NetSpec] | None = None,
    dtype: st.SearchStrategy[Any] | Any = None,
    batched: bool = False,
    lengths: st.SearchStrategy[int] | None = None,
) -> Problem:
    """Draws a [`etrace.testing.Problem`][]: model, inputs, targets, mask, initial state
    and windows.

    **Arguments:**

    - `specs`: the models, `net_specs()` by default.
    - `dtype`: one dtype, or a strategy; JAX's default float unless given.
    - `batched`: whether inputs and targets have a batch axis behind time.
    - `lengths`: the numbers of steps, `sequence_lengths()` by default.
    """
    spec = draw(net_specs() if specs is None else specs)
    length = draw(sequence_lengths() if lengths is None else lengths)
    return make_problem(
        spec,
        seed=draw(st.integers(0, 999)),
        length=length,
        batch=draw(batch_sizes()) if batched else None,
        dtype=draw(dtype) if isinstance(dtype, st.SearchStrategy) else dtype,
        mask=draw(masks(length)),
        window=draw(windows(length)),
        random_state=draw(st.booleans()),
    )
