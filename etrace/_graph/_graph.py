"""The graph of one model's step: which weight enters which state, and where.

`analyse` traces the step function of one example and finds the hidden groups, the
sites and, for each site, the traces it needs. `Graph` is what the rest of the library
works on; it is static (no array of the model in it) and compared by identity.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .._model import Call, Spec, join_complex, split_complex
from ._batched import Env, Value, run
from ._meetings import Meetings, MixingTails, Occurrence
from ._memory import Memory, TraceSpec
from ._positions import Positions, find_positions
from ._primitives import Primitives
from ._program import Program, Var, trace_program
from ._sites import Site


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """See the module's docstring. Static: it may sit in the structure of a pytree."""

    call: Call
    outputs: Spec  # of the model's outputs
    program: Program
    primitives: Primitives
    positions: Positions
    sites: tuple[Site, ...]
    traces: tuple[TraceSpec, ...]
    couplings: tuple[np.ndarray, ...]  # per group: which entries of D may not be zero
    occurrences: tuple[Occurrence, ...]
    weight_equations: tuple[int, ...]
    old: tuple[Var, ...]  # hidden leaves before the step, complex ones as two
    new: tuple[Var, ...]  # ... and after it
    mixing_tails: MixingTails
    remembers_all: bool
    follows_all: bool  # whether a rule credits every parameter, by every path

    def trace_shape(self, t: int) -> tuple[int, ...]:
        """[components, b, p, o, c] of one trace, for one example."""
        spec = self.traces[t]
        return (len(spec.components), *self.sites[spec.site].form.sizes)

    def remembered(self, group: int) -> tuple[int, ...]:
        """The components of a group that any trace holds."""
        held = {s for t in self.traces if t.group == group for s in t.components}
        return tuple(sorted(held))

    def trace_dtype(self, t: int) -> Any:
        """That of the weight the trace is a derivative by."""
        return self.sites[self.traces[t].site].weight.dtype

    @functools.cached_property
    def reaching(self) -> tuple[int, ...]:
        """The leaves of the parameter tree that reach the state."""
        found = (o.parameters for o in self.occurrences if o.status != "output")
        return tuple(sorted({p for parameters in found for p in parameters}))

    @property
    def state_dtype(self) -> Any:
        """The dtype that holds every number of the (real) hidden leaves."""
        return functools.reduce(np.promote_types, (v.dtype for v in self.old))

    def bind(self, params: Any, consts: Any) -> Env:
        """The values of the model's arrays."""
        pairs = zip(
            self.inputs["params"] + self.inputs["consts"],
            jax.tree.leaves((params, consts)),
            strict=True,
        )
        return {v: Value(x, 0) for v, x in pairs}

    def weights(self, params: Any, consts: Any) -> tuple[Any, ...]:
        """The value of the weight expression at every site."""
        env = run(self.program, self.bind(params, consts), self.weight_equations)
        return tuple(env[s.weight].array for s in self.sites)

    @functools.cached_property
    def inputs(self) -> Mapping[str, tuple[Var, ...]]:
        return _split(self.program.inputs, _argument_sizes(self.call))


def analyse(
    call: Call,
    constants: tuple[np.ndarray | None, ...],
    mixing_tails: MixingTails,
    remember_all: bool,
    follow_all: bool,
) -> Graph:
    """Analyses one step of a model.

    **Arguments:**

    - `call`: the step, with the shapes of all its arguments.
    - `constants`: the values of the model's constant arrays where they are known
        (they may say where a movement takes its elements from).
    - `mixing_tails`: what to do with a weight whose path to the state has a mixing
        operation in it: `"now"` leaves it untraced, `"local"` traces its local part.
    - `remember_all`: whether traces hold every component they reach, or only those
        that a position-local path reads one step later.
    - `follow_all`: whether the rule credits every parameter that reaches the state, by
        whatever path.
    """
    call.check()
    program = _trace(call)
    arguments = _split(program.inputs, _argument_sizes(call))
    known = {
        v: c
        for v, c in zip(arguments["consts"], constants, strict=True)
        if c is not None
    }
    primitives = Primitives(program, known)
    old = arguments["hidden"]
    n = len(old)
    first = len(program.outputs) - len(call.other.leaves) - n
    new = program.outputs[first : first + n]
    positions = find_positions(primitives, old, new)
    meetings = Meetings(primitives, positions, new, mixing_tails)
    meetings.run(arguments)
    memory = Memory(primitives, positions, old, new)
    traces = tuple(
        memory.trace(meetings.sites, *found, remember_all) for found in meetings.found
    )
    outputs, _, _ = jax.eval_shape(call.step, *(s.tree() for s in call.specs))
    return Graph(
        call,
        Spec.of(outputs),
        program,
        primitives,
        positions,
        tuple(meetings.sites),
        traces,
        tuple(map(memory.coupling, positions.groups)),
        tuple(o.followed() if follow_all else o for o in meetings.occurrences),
        meetings.weight_equations(),
        old,
        new,
        mixing_tails,
        remember_all,
        follow_all,
    )


def _argument_sizes(call: Call) -> dict[str, int]:
    hidden = call.hidden.leaves
    return {
        "params": len(call.params.leaves),
        "consts": len(call.consts.leaves),
        "hidden": len(hidden)
        + sum(np.issubdtype(x.dtype, np.complexfloating) for x in hidden),
        "other": len(call.other.leaves),
        "inputs": len(call.inputs.leaves),
    }


def _split(flat, sizes: dict[str, int]) -> dict[str, tuple]:
    ends = np.cumsum(list(sizes.values()))
    return {
        name: tuple(flat[end - size : end])
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _trace(call: Call) -> Program:
    """The step as a program of flat real hidden leaves."""
    specs = call.specs

    def flat_step(*leaves):
        parts: dict[str, Any] = _split(leaves, _argument_sizes(call))
        parts["hidden"] = join_complex(parts["hidden"], call.hidden.leaves)
        trees = [s.treedef.unflatten(p) for s, p in zip(specs, parts.values())]
        outputs, hidden, other = call.step(*trees)
        return (
            *jax.tree.leaves(outputs),
            *split_complex(jax.tree.leaves(hidden)),
            *jax.tree.leaves(other),
        )

    def real(x):
        part = jax.eval_shape(jax.numpy.real, x)
        return [part, part] if np.issubdtype(x.dtype, np.complexfloating) else [x]

    arguments = [x for s in specs[:2] for x in s.leaves]
    arguments += [part for x in call.hidden.leaves for part in real(x)]
    arguments += [x for s in specs[3:] for x in s.leaves]
    n_hidden = _argument_sizes(call)["hidden"]
    n_out = len(jax.eval_shape(flat_step, *arguments))
    first = n_out - len(call.other.leaves) - n_hidden
    return trace_program(flat_step, arguments, range(first, first + n_hidden))
