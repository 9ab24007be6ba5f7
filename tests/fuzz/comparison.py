"""One random step function: the library against the oracle."""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etrace
import etrace.testing as et

from .flows import Partition
from .positions import facts, natural_partition, parted
from .programs import FEATURES, LENGTH, Nodes, Program, Spec, nodes_of
from .reference import Reference, reference

TOLERANCE, SINGLE_TOLERANCE = 1e-9, 1e-4

_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a program.

    - `statuses`: of its parameters: "traced", "partly", "now", "output".
    - `kind`: "local"; "cut" if elements of several positions meet; "moved" if a new
        state lies at another position.
    - `past`: the distance of the gradient from the instantaneous one.
    - `predicted`: whether the oracle also says which elements are "partly" traced.
    """

    statuses: tuple[str, ...]
    kind: str
    past: float
    predicted: bool


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The norm of the difference over the larger of the norms."""
    scale = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / (scale or 1))


def compare(spec: Spec, checks: Sequence[tuple[str, int]]) -> Outcome | None:
    """Raises an AssertionError where the library differs from the oracle.

    None if the numbers grow out of bounds.
    """
    model, nodes = Program(spec, number=next(_numbers)), nodes_of(spec)
    data = sequence(spec, nodes)
    inputs = data[:2]
    example = jax.tree.map(lambda x: x[0], inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        algorithm = etrace.DRTRL(model, position_size=position_size(spec))
        algorithm.init(*example)
    untraced = etrace.UntracedParameterWarning
    warned = [str(w.message) for w in caught if w.category is untraced]
    report = algorithm.graph(*example)
    partition = library_partition(report, nodes)
    statuses = parameter_statuses(report, len(model.params))
    for k, status in enumerate(statuses):
        named = any(f".params[{k}]" in message for message in warned)
        assert named == (status in ("now", "partly")), ("warning", k, status, warned)

    said = facts(nodes, partition)
    cut = bool(said.cuts or report.graph.positions.cuts)
    # A leaf with axes inside its positions, and what arrives from elsewhere, are
    # declared choices of the library; otherwise there is one partition.
    # So is what no parameter can reach, which has no group.
    credited = {leaf for g in report.graph.positions.groups for leaf in g.leaves}
    still = len(credited) < len(report.graph.old)
    chosen = cut or partition.shared(spec.leaves) or still
    natural = None if chosen else natural_partition(nodes)
    natural = natural and parted(nodes, natural)
    whole = parted(nodes, partition)
    assert max(whole.group) == max(partition.group), ("populations", partition, whole)
    if natural is not None:
        groups = [np.equal.outer(p.group, p.group) for p in (natural, partition)]
        assert (groups[0] == groups[1]).all(), ("groups", partition)
    if natural is not None and not report.graph.positions.moved:
        assert (natural.same() == partition.same()).all(), ("groups", partition)
    partly, several = "partly" in statuses, any(m == "multi-step" for m, _ in checks)
    truth = reference(model, nodes, said, data, partly, several)
    if not truth.usable():
        return None
    of_column = np.repeat(statuses, [p.size for p in model.params])
    i = np.where(of_column == "now", 0, truth.i)
    i = np.where(of_column == "partly", truth.i_traced, i) if partly else i

    traced = {k for k, status in enumerate(statuses) if status == "traced"}
    unsaid = traced & said.silent()
    assert not unsaid, f"not traced in full: {unsaid}\n{report}"
    kind = "cut" if cut else "moved" if report.graph.positions.moved else "local"
    past = distance(truth.gradient(i, 1, False), truth.now.sum(0))
    try:
        predicted = [
            agrees(model, data, truth, of_column, i, *check) for check in checks
        ]
    except AssertionError as error:
        if truth.confirmed():
            raise AssertionError(f"{statuses}\n{report}") from error
        return None
    return Outcome(statuses, kind, past, all(predicted))


def agrees(
    model: Program,
    data: tuple,
    truth: Reference,
    statuses: np.ndarray,
    i: np.ndarray,
    method: str,
    window: int,
) -> bool:
    """Asserts that value, state and gradient are those of the oracle with immediate
    influences `i`, but for what is partly traced: returns whether that is so, too."""
    tolerance = SINGLE_TOLERANCE if model.spec.single else TOLERANCE
    value, gradient, last = library_gradient(model, data, method, window)
    total = truth.value.sum()
    assert abs(value - total) <= tolerance * max(1, abs(total)), (value, total)
    assert distance(last, truth.states[-1]) < tolerance, ("state", last)
    multi = method == "multi-step"
    whole = multi and window == LENGTH  # there nothing depends on a trace
    expected = truth.gradient(i, window, multi)
    # Which elements the library traces of the last is for the report to say.
    certain = (statuses != "partly") | whole
    found = distance(gradient[certain], expected[certain])
    assert found < tolerance, f"{method}, window {window}: distance {found:.2e}"
    return distance(gradient[~certain], expected[~certain]) < tolerance


def position_size(spec: Spec) -> int:
    """Of small states a position may hold every number; in some programs, one of each
    leaf alone, so that credit is cut."""
    return 16 if spec.seed % 3 else 1


def failing(checks: Sequence[tuple[str, int]]) -> Callable[[Spec], bool]:
    """Whether a comparison fails, for `shrunk`."""

    def fails(spec: Spec) -> bool:
        try:
            if spec.shapes:
                compare(spec, checks)
        except Exception:
            return True
        return False

    return fails


def sequence(spec: Spec, nodes: Nodes) -> tuple[Any, ...]:
    """(x, index, targets), time-major."""
    x = spec.numbers(LENGTH, FEATURES, salt=1)
    index = jnp.asarray((np.arange(LENGTH) + spec.seed) // 2 % 2, jnp.int32)
    pairs = enumerate(nodes.outputs)
    targets = tuple(spec.numbers(LENGTH, *y.shape, salt=100 + n) for n, y in pairs)
    return x, index, targets


def library_gradient(
    model: Program, data: tuple, method: Any, window: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """(value, gradient, last state) by the driver, each as one vector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", etrace.UntracedParameterWarning)
        size = position_size(model.spec)
        algorithm = etrace.DRTRL(model, vjp_method=method, position_size=size)
        value, grads, last = by_driver(algorithm, data, window)
    return value, grads, vector(eqx.filter(last[0], eqx.is_inexact_array))


def by_driver(
    algorithm: Any, data: tuple, window: int
) -> tuple[float, np.ndarray, Any]:
    """(value, gradient as a vector, last state)."""
    *inputs, targets = data
    driver = etrace.value_and_grad(et.squared_error, window=window, reduction="sum")
    value, grads, last = driver(algorithm, None, tuple(inputs), targets)
    return float(value), vector(grads), last


def vector(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def parameter_statuses(report: etrace.Report, number: int) -> tuple[str, ...]:
    """One for each parameter, from all the places where it meets data."""
    found: list[set[str]] = [set() for _ in range(number)]
    for row in report.rows:
        found[int(row.parameter.removeprefix(".params[")[:-1])].add(row.status)
    result = []
    for statuses in found:
        reaching = statuses - {"output", "unused"}
        one = "output" if not reaching else "partly"
        result.append(next(iter(reaching)) if len(reaching) == 1 else one)
    return tuple(result)


def library_partition(report: etrace.Report, nodes: Nodes) -> Partition:
    """The groups of the report, element by element."""
    graph = report.graph
    leaves = nodes.given[: len(nodes.new)]
    ends = np.cumsum([0, *(v.size for v in leaves)])
    ids = [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:])]
    if hasattr(graph, "coordinates"):
        shaped = [jnp.asarray(i.reshape(v.shape)) for i, v in zip(ids, leaves)]
        ids = [np.ravel(x) for x in graph.coordinates.split(shaped)]
    position, group = np.full(ends[-1], -1), np.full(ends[-1], -1)
    for n, g in enumerate(graph.positions.groups):
        for leaf, own in zip(g.leaves, g.positions):
            position[ids[leaf]] = own + g.offset
            group[ids[leaf]] = n
    for leaf in ids:
        if (group[leaf] < 0).all():  # nothing to credit: a group of its own, here
            position[leaf] = max(position) + 1 + np.arange(leaf.size)
            group[leaf] = max(group) + 1
    return Partition(np.unique(position, return_inverse=True)[1], group)
