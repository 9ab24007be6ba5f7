"""Which numbers of the state can influence which, whatever the parameters are.

For every value of the program: on which of some sources each of its elements may
depend, as boolean arrays [*shape, sources]. Where a weight is zero by construction (a
constant mask) nothing passes; a weight that happens to be zero does not count.
"""

import numpy as np

from .._program.dependence import Dependence, Flags
from .._program.labels import LABEL, UNSET
from .graph import Graph, of_graph


@of_graph
def reach(graph: Graph, n: int) -> tuple[np.ndarray, ...]:
    """Per site, which numbers of the state a weight can influence within `n` steps.

    [N, b, o]: within one step those of the positions that z[b, :, o] flows into, with
    each further step what the whole Jacobian leads to. Positions are complete: all
    their numbers are reached, or none.
    """
    position = positions_of(graph)
    result = []
    for s, site in enumerate(graph.sites):
        b, p, o, _ = site.form.sizes
        reached = np.zeros((position.max(initial=0) + 1, b * o), bool)
        for spec in graph.traces:
            if spec.site == s:
                offset = graph.positions.groups[spec.group].offset
                found, columns = spec.positions, np.arange(b * o).reshape(b, 1, o)
                columns = np.broadcast_to(columns, found.shape)
                traced = found != UNSET
                reached[found[traced] + offset, columns[traced]] = True
        numbers = reached[position]
        for step in range(1, n):
            more = numbers | _product(pattern(graph), numbers)
            if step == 1:  # what takes other ways to the state within a step
                more |= from_site(graph, s)
            more = _complete(more, position)
            if step > 1 and (more == numbers).all():
                break
            numbers = more
        result.append(numbers.reshape(-1, b, o))
    return tuple(result)


@of_graph
def pattern(graph: Graph) -> np.ndarray:
    """Which entries of ∂h_t/∂h_{t-1} may not be zero, [N, N]."""
    sources, start = {}, 0
    n = sum(v.size for v in graph.old)
    for v in graph.old:
        own = np.eye(n, dtype=bool)[start : start + v.size]
        sources[v] = own.reshape(*v.shape, n)
        start += v.size
    return _new_state(graph, Dependence(graph.operations, sources, {}, n).run())


def from_site(graph: Graph, s: int) -> np.ndarray:
    """Which numbers of the new state may depend on z[b, :, o], [N, b * o]."""
    site = graph.sites[s]
    b, p, o, _ = site.form.sizes
    columns = np.broadcast_to(np.arange(b * o).reshape(b, 1, o), (b, p, o))
    own = np.zeros(b * p * o, int)  # the column of each element, as the site has them
    own[site.form.canonical(np.arange(b * p * o).reshape(site.shape))] = columns
    flags = own.reshape(*site.shape, 1) == np.arange(b * o)
    at_var = {} if site.direct else {site.equation.outputs[0]: flags}
    at_edge = {site.edge: flags} if site.direct else {}
    walk = Dependence(graph.operations, at_var, at_edge, b * o)
    return _new_state(graph, walk.run())


def positions_of(graph: Graph) -> np.ndarray:
    """The position, among those of all groups, of each number of the state."""
    labels, end = {}, 0
    for g in graph.positions.groups:
        labels.update(g.labels(graph.old))
        end += g.size
    for v in graph.old:
        if v not in labels:  # nothing to credit: positions behind all others
            labels[v] = np.arange(end, end + v.size, dtype=LABEL)
            end += v.size
    return np.concatenate([labels[v].reshape(-1) for v in graph.old])


def _complete(numbers: np.ndarray, position: np.ndarray) -> np.ndarray:
    """All numbers of the positions that are touched."""
    touched = np.zeros((position.max(initial=0) + 1, numbers.shape[1]), bool)
    np.logical_or.at(touched, position, numbers)
    return touched[position]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float32) @ b.astype(np.float32)) > 0


def _new_state(graph: Graph, flags: Flags) -> np.ndarray:
    """Those of the new state, [N, sources]."""
    size = next(iter(flags.values())).shape[-1] if flags else 0
    rows = [
        flags[v].reshape(v.size, -1) if v in flags else np.zeros((v.size, size), bool)
        for v in graph.new
    ]
    return np.concatenate(rows)
