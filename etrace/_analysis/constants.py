"""Constants of a model that the numbers in a trace depend on."""

from collections.abc import Iterator, Mapping

import numpy as np

from .._program.ir import Var
from .cache import digest
from .graph import Graph, of_graph


@of_graph
def fixed(graph: Graph) -> Mapping[int, tuple[np.ndarray, bytes | None]]:
    """Of the constants that a trace depends on, by number: the value and its digest, as
    far as the analysis knew them.

    They lie on the way from a parameter to the place where it meets data: a trace is of
    what a mask made of a weight, and goes back to the weight by the mask of today. Or
    they say which element goes where. Rules that follow the parameters themselves
    depend on none.
    """
    if graph.options.follows_all:
        return {}
    program = graph.program
    wanted = [*(site.weight for site in graph.sites), *_indices(graph)]
    used = {v for i in program.needed(wanted) for v in program.equations[i].inputs}
    used.update(wanted)
    consts = enumerate(graph.inputs["consts"])
    found = {n: graph.operations.known(v) for n, v in consts if v in used}
    return {n: (x, digest(x)) for n, x in found.items() if x is not None}


def _indices(graph: Graph) -> Iterator[Var]:
    """Known indices and predicates, where floating-point values are moved by them."""
    for equation in graph.program.equations:
        if any(v.inexact for v in equation.inputs):
            for v in equation.inputs:
                if not v.inexact and graph.operations.known(v) is not None:
                    yield v
