"""A graph as a chain of nodes, some of them with feedback."""

from typing import NamedTuple

import nir

SUPPORTED = (
    "Supported are chains of layers from one Input to one Output, with feedback from a "
    "neuron to itself through one Linear or Affine node."
)

NEURONS = nir.IF | nir.LI | nir.LIF | nir.CubaLI | nir.CubaLIF


class Step(NamedTuple):
    """A node, and the node through which it feeds back to itself."""

    path: str
    node: nir.NIRNode
    feedback: nir.NIRNode | None


def chain(graph: nir.NIRGraph, path: str = "") -> list[Step]:
    """The nodes from input to output, those of subgraphs in place of these."""
    where = f"the subgraph {path!r}" if path else "the graph"
    before, after = _neighbours(graph, where)
    feedback = {
        after[name][0]: name
        for name, node in graph.nodes.items()
        if isinstance(node, nir.Linear | nir.Affine)
        and before[name] == after[name]
        and len(after[name]) == 1
        and isinstance(graph.nodes[after[name][0]], NEURONS)
    }
    for name, through in feedback.items():
        before[name].remove(through)
        after[name].remove(through)
    (first,), (last,) = (_only(graph, kind, where) for kind in (nir.Input, nir.Output))
    for name in graph.nodes.keys() - feedback.values():
        expected = int(name != first), int(name != last)
        if (len(before[name]), len(after[name])) != expected:
            raise ValueError(
                f"node {name!r} of {where} has the inputs {before[name]} and the "
                f"outputs {after[name]}; expected {expected[0]} and {expected[1]}. "
                f"{SUPPORTED}"
            )
    names = [first]
    while names[-1] != last:
        names += after[names[-1]]
    if left := graph.nodes.keys() - {*names, *feedback.values()}:
        raise ValueError(
            f"nodes {sorted(left)} of {where} are not on the way from Input to Output. "
            f"{SUPPORTED}"
        )
    return _steps(graph, names, feedback, path)


def _steps(
    graph: nir.NIRGraph, names: list[str], feedback: dict[str, str], path: str
) -> list[Step]:
    steps = []
    for name in names:
        node, full = graph.nodes[name], f"{path}.{name}" if path else name
        if isinstance(node, nir.NIRGraph):
            steps += chain(node, full)
        else:
            through = graph.nodes[feedback[name]] if name in feedback else None
            steps.append(Step(full, node, through))
    return steps


def _neighbours(
    graph: nir.NIRGraph, where: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The names before and after each node."""
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    after: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for a, b in graph.edges:
        if not {a, b} <= graph.nodes.keys():
            raise ValueError(
                f"{where} has an edge from {a!r} to {b!r}; expected names of its "
                f"nodes, {sorted(graph.nodes)}."
            )
        after[a].append(b)
        before[b].append(a)
    return before, after


def _only(graph: nir.NIRGraph, kind: type, where: str) -> list[str]:
    """The name of the only node of this kind."""
    names = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
    if len(names) != 1:
        raise ValueError(
            f"{where} has {len(names)} {kind.__name__} nodes, {names}; expected one. "
            f"{SUPPORTED}"
        )
    return names
