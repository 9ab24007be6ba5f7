"""Random step functions: a gradient is exact, or the report says what it leaves out.

A failure prints its spec, which is data. To find what the failure needs:

    from tests.fuzz.comparison import compare, failing
    from tests.fuzz.programs import Spec
    from tests.fuzz.smaller import shrunk

    spec = Spec(...)
    print(shrunk(spec, failing([("single-step", 1)])))
"""

import collections
import itertools

import hypothesis
import jax.numpy as jnp
import numpy as np

from ..helpers import examples, fresh_caches
from .comparison import Outcome, compare
from .operations import Shape
from .programs import OPERATIONS, Spec, specs
from .tape import Stops, Tape, run

#: Operations that the library does not survive. Nothing may stay here for long.
EXCLUDED: frozenset[str] = frozenset()

_SINGLE = ("single-step", 1), ("single-step", 2)
_MULTI = ("multi-step", 2), ("multi-step", 4)


def checks(spec: Spec) -> tuple[tuple[str, int], ...]:
    """Methods and windows: one of both methods; in the short profile one of them for
    each program, as every one is compiled anew."""
    single, multi = _SINGLE[spec.seed % 4 == 0], _MULTI[spec.seed % 8 > 5]
    if examples(ci=0, thorough=1):
        return single, multi
    return (single if spec.seed % 8 < 5 else multi,)


def test_no_third_outcome():
    outcomes: list[Outcome] = []
    used: collections.Counter[str] = collections.Counter()

    @hypothesis.settings(max_examples=examples(ci=40, thorough=2000))
    @hypothesis.seed(4)
    @hypothesis.given(spec=specs(EXCLUDED))
    def run(spec: Spec):
        fresh_caches()
        outcome = compare(spec, checks(spec))
        if outcome is not None:
            outcomes.append(outcome)
            used.update({name for name, _, _ in spec.steps})

    run()
    statuses = collections.Counter(s for o in outcomes for s in o.statuses)
    kinds = collections.Counter(o.kind for o in outcomes)
    past = sum(o.past > 1e-4 for o in outcomes) / len(outcomes)
    print(f"\n{len(outcomes)} programs, {past:.0%} with a past, {dict(kinds)},")
    print(f"{len(used)} operations, parameters {dict(statuses)},")
    print(f"{sum(not o.predicted for o in outcomes)} partly traced in another way")
    # An agreement says something where the past adds to the gradient, and diagnostics
    # are for the few.
    assert len(outcomes) > 0.9 * examples(ci=40, thorough=2000)
    assert past > 0.4
    assert statuses["traced"] > 2 * (statuses["now"] + statuses["partly"])
    assert kinds["cut"] > 0
    assert len(used) > 0.7 * len(OPERATIONS)


def operands(name: str) -> list[jnp.ndarray]:
    """Some that the operation accepts."""
    operation, generator = OPERATIONS[name], np.random.default_rng(0)
    shapes: list[Shape] = [(), (2,), (3,), (2, 3), (6,), (2, 2)]
    tuples = itertools.product(shapes, repeat=operation.data)
    chosen = next(t for t in tuples if operation.accepts(*t))
    found = [jnp.asarray(generator.normal(size=shape)) for shape in chosen]
    if operation.index:
        found.append(jnp.asarray(1, jnp.int32))
    if operation.weight is not None:
        weight = operation.weight(1, *chosen)
        found.append(jnp.asarray(generator.normal(size=weight)))
    return found


def test_the_nodes_of_an_operation_compute_it():
    for name in OPERATIONS:
        if name in ("encode", "reshape_to"):  # for the shapes of certain states only
            continue
        given, tape = operands(name), Tape()
        values = [tape.value(x, True, frozenset()) for x in given]
        output = OPERATIONS[name].on_tape(tape, 1, *values)
        env = dict(enumerate(given))
        run(tape.nodes, env, Stops(lambda node, j: False))
        expected = OPERATIONS[name].fun(1, *given)
        assert np.allclose(env[output.number], expected, rtol=1e-12), name
