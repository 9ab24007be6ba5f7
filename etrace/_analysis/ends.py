"""Where derivatives end: comparisons, integers, rounding, `stop_gradient`."""

from .._program.ir import Equation, Program, Var
from .._program.source import short
from .graph import Graph


def ends_of(graph: Graph, parameter: int) -> tuple[str, ...]:
    """Where what depends on a parameter, by now or by the state, ends without a
    derivative: `gt in file.py:12 (function)`, in order."""
    program, moving = graph.program, {graph.inputs["params"][parameter]}
    found: list[Equation] = []
    while True:
        size = len(moving)
        found = _walk(program, moving)
        # What moves the new state moves the old one of the next step.
        moving.update(old for old, new in zip(graph.old, graph.new) if new in moving)
        if len(moving) == size:
            break
    lines = ((e.name, short(e.source)) for e in found)
    return tuple(
        dict.fromkeys(f"{name} in {line}" if line else name for name, line in lines)
    )


def _walk(program: Program, moving: set[Var]) -> list[Equation]:
    """The equations at which it ends; what goes on is added to `moving`."""
    used = {v for e in program.equations for v in e.inputs}.union(program.outputs)
    found = []
    for e in program.equations:
        if not any(v in moving for v in e.inputs):
            continue
        if e.primitive.flat:
            found.append(e)
            continue
        moving.update(v for v in e.outputs if v.inexact)
        if any(v in used and not v.inexact for v in e.outputs):
            found.append(e)
    return found
