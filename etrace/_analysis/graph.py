"""The graph of one model's step: which weight enters which state, and where.

`analyse` traces the step function of one example and finds the hidden groups, the
sites and, for each site, the traces it needs. `Graph` is what the rest of the library
works on; it is static (no array of the model in it) and compared by identity.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from .._model import Call, Spec
from .._program.control_flow import keeps_positions
from .._program.corrections import with_derivatives
from .._program.evaluate import Env, Value, run
from .._program.flow import converging
from .._program.forms import linear_form
from .._program.ir import Edge, Program, Var
from .._program.merge_products import merge_products
from .._program.operations import Operations, of_body
from .._program.primitives import WRAP_KEY
from .._program.shortcuts import with_shortcuts
from .._program.trace import trace_program
from .coordinates import Coordinates
from .exits import Exits, find_exits
from .find_sites import Meetings, Occurrence
from .held import Memory, TraceSpec, with_uses
from .initial import find_initial, step_from_initial
from .inside import Place, find_inside
from .options import GraphOptions
from .positions import Positions, find_positions
from .recurrence import Diagonal, check_single, find_diagonals
from .replicate import replicate
from .sites import Site

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """See the module's docstring. Static: it may sit in the structure of a pytree."""

    call: Call
    coordinates: Coordinates
    outputs: Spec  # of the model's outputs
    program: Program
    operations: Operations
    positions: Positions
    converging: Mapping[Edge, np.ndarray]
    exits: Exits
    sites: tuple[Site, ...]
    traces: tuple[TraceSpec, ...]
    couplings: tuple[np.ndarray, ...]  # per group: which entries of D may not be zero
    occurrences: tuple[Occurrence, ...]
    weight_equations: tuple[int, ...]
    old: tuple[Var, ...]  # (real) hidden leaves before the step
    new: tuple[Var, ...]  # ... and after it
    options: GraphOptions
    diagonals: Mapping[int, Diagonal] | None
    too_large: Mapping[Place, int]  # cut, as positions would hold so many numbers
    found: dict[Any, Any] = dataclasses.field(default_factory=dict)  # see `of_graph`

    def __copy__(self) -> "Graph":
        return self

    def __deepcopy__(self, memo: Any) -> "Graph":
        # It does not change, and a copy would be the graph of no trace.
        return self

    @property
    def constants(self) -> tuple[np.ndarray | None, ...]:
        """The values of the model's constant arrays, where they are known."""
        return tuple(map(self.operations.known, self.inputs["consts"]))

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

    @functools.cached_property
    def read(self) -> frozenset[int]:
        """The leaves of the parameter tree that the step or `init_state` reads."""
        reading = {v for e in self.program.equations for v in e.inputs}
        reading.update(self.program.outputs)
        params = enumerate(self.inputs["params"])
        found = (p for p, v in params if v in reading)
        return frozenset(found).union(self.call.initial.read)

    def is_initial(self, i: int) -> bool:
        """Whether by this equation the initial state enters the first step."""
        if not self.call.initial.hidden:
            return False
        first = self.inputs["other"][-1]
        return first in self.program.equations[i].inputs

    @functools.cached_property
    def raw_keys(self) -> tuple[int, ...]:
        """The other leaves that the step reads as keys, of `jax.random.PRNGKey`."""
        equations = self.program.equations
        read = {v for e in equations if e.primitive is WRAP_KEY for v in e.inputs}
        return tuple(n for n, v in enumerate(self.inputs["other"]) if v in read)

    @functools.cached_property
    def named_axes(self) -> tuple[str, ...]:
        """The axes that the step names, such as in `jax.lax.pmean`, but for that of the
        batch."""
        own = {self.call.axis.name} if self.call.axis else set()
        named = (n for e in self.program.equations for n in e.axes if n not in own)
        return tuple(dict.fromkeys(named))

    @functools.cached_property
    def across(self) -> str | None:
        """The named axis, if any, over which the new state of an example depends on
        others: on their states and weights, or on anything within a batch."""
        moving = self.program.reached_from((*self.old, *self.inputs["params"]))
        for i in self.program.needed(self.new):
            axes = self.program.equations[i].axes
            inputs = [v for v in self.program.equations[i].inputs if v.inexact]
            if axes and (self.program.over(i) or not moving.isdisjoint(inputs)):
                return axes[0]
        return None

    @property
    def has_own_derivatives(self) -> bool:
        """Whether the step has functions with derivatives of their own."""
        return any(e.has_own_derivative for e in self.program.equations)

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

    def new_edge(self, leaf: int) -> Edge:
        """Where the new value of a hidden leaf leaves the step."""
        carried = len(self.call.carried.leaves)
        first = len(self.program.outputs) - carried - len(self.new)
        return len(self.program.equations), first + leaf

    def leaves_by_mixing(self, edge: Edge) -> bool:
        """Whether an exit is read by a mixing operation, and not an output itself."""
        at_end = edge[0] == len(self.program.equations)
        return not at_end and edge not in self.positions.cuts

    def feeds_another(self, edge: Edge, group: int) -> bool:
        """Whether what is read at an edge flows into the new state of another group."""
        if edge[0] == len(self.program.equations):
            return False
        outputs = self.program.equations[edge[0]].outputs
        others = (g for g in range(len(self.positions.groups)) if g != group)
        return any(self.positions.flows_into(g, outputs) for g in others)

    def read_out(self, edge: Edge, params: Any, consts: Any) -> Array:
        """The weight that reads a value at an edge, of `read_out_shape`."""
        i, j = edge
        equation = self.program.equations[i]
        form, var = linear_form(equation, 1 - j), equation.inputs[1 - j]
        assert form is not None
        env = run(self.program, self.bind(params, consts), self.program.needed([var]))
        return form.canonical_weight(env[var].array)[0]

    def read_out_shape(self, edge: Edge) -> tuple[int, int] | None:
        """[results, elements of the value] of the weight that reads it at an edge.

        None if that is not one product with an expression of parameters.
        """
        i, j = edge
        equation = self.program.equations[i]
        if len(equation.inputs) != 2 or equation.inputs[1 - j] not in self.expressions:
            return None
        form = linear_form(equation, 1 - j)
        return form.sizes[2:] if form and form.sizes[:2] == (1, 1) else None

    @functools.cached_property
    def expressions(self) -> frozenset[Var]:
        """Values made of parameters and constants alone."""
        data = self.program.reached_from(_data(self.program, self.inputs))
        values = {v for e in self.program.equations for v in e.outputs}
        return frozenset((values | {*self.inputs["params"]}) - data)

    @functools.cached_property
    def inputs(self) -> Mapping[str, tuple[Var, ...]]:
        return _arguments(self.program, self.call, self.coordinates)


def of_graph(fun: Callable[..., Found]) -> Callable[..., Found]:
    """A function of a graph and other fixed things, found once: the graph keeps it."""

    @functools.wraps(fun)
    def kept(graph: Graph, *arguments: Any) -> Found:
        key = fun, *arguments
        if key not in graph.found:
            graph.found[key] = fun(graph, *arguments)
        return graph.found[key]

    return kept


def analyse(
    call: Call,
    constants: tuple[np.ndarray | None, ...],
    options: GraphOptions = GraphOptions(),  # noqa: B008
) -> Graph:
    """Analyses one step of a model.

    **Arguments:**

    - `call`: the step, with the shapes of all its arguments.
    - `constants`: the values of the model's constant arrays where they are known
        (they may say where a movement takes its elements from).
    - `options`: what the learning rule asks for.
    """
    if call.axis is None:
        return _analysed(call, constants, options)
    found = []

    def inside(_: Any) -> None:
        found.append(_analysed(call, constants, options))

    # Where the axis has its name, and so can be traced.
    axis = call.axis
    jax.vmap(inside, axis_name=axis.name)(np.zeros(axis.size))
    return found[0]


def _analysed(
    call: Call, constants: tuple[np.ndarray | None, ...], options: GraphOptions
) -> Graph:
    call.check()
    call = dataclasses.replace(call, initial=find_initial(call, constants))
    coordinates, operations, positions, too_large = _positions(call, constants, options)
    program = operations.program
    arguments = _arguments(program, call, coordinates)
    old, new = arguments["hidden"], _new(program, call, coordinates)
    first = arguments["other"][-1] if call.initial.hidden else None
    meetings = Meetings(operations, positions, new, options.mixing_tails, first)
    meetings.run(arguments)
    open_tails = converging(operations, meetings.flow)
    open_tails |= positions.own_products(operations)
    exits = find_exits(operations, positions, meetings.entering, open_tails)
    diagonals: Mapping[int, Diagonal] | None = {}
    if options.recurrence == "diagonal":
        moving = program.reached_from(old)
        diagonals = find_diagonals(operations, positions, exits, moving)
    if isinstance(options.recurrence, float):
        check_single(positions, coordinates.names())
    memory = Memory(
        operations, positions, open_tails, exits, old, new, options, diagonals
    )
    traces = tuple(memory.trace(meetings.sites, *found) for found in meetings.found)
    outputs, _, _ = jax.eval_shape(call.step, *(s.tree() for s in call.specs))
    return Graph(
        call,
        coordinates,
        Spec.of(outputs),
        program,
        operations,
        positions,
        open_tails,
        exits,
        tuple(meetings.sites),
        with_uses(traces, meetings.sites),
        tuple(map(memory.coupling, positions.groups)),
        tuple(o.followed() if options.follows_all else o for o in meetings.occurrences),
        program.needed(s.weight for s in meetings.sites),
        old,
        new,
        options,
        diagonals,
        too_large,
    )


def _positions(
    call: Call, constants: tuple[np.ndarray | None, ...], options: GraphOptions
) -> tuple[Coordinates, Operations, Positions, Mapping[Place, int]]:
    """The step in coordinates where positions hold what belongs together, and where
    no weight's product parts to several; and where they would hold too much."""
    coordinates = Coordinates.whole(call.hidden)
    program = None
    while True:
        program = program or _trace(call, coordinates, options.position_size)
        arguments = _arguments(program, call, coordinates)
        pairs = zip(arguments["consts"], constants, strict=True)
        operations = Operations(program, {v: c for v, c in pairs if c is not None})
        old, new = arguments["hidden"], _new(program, call, coordinates)
        params, data = arguments["params"], _data(program, arguments)
        positions = find_positions(operations, old, new, params, data)
        sizes = coordinates.numbers(), options.position_size
        inside = find_inside(operations, positions, old, new, *sizes)
        if inside.axes:
            coordinates, program = coordinates.with_inner(inside.axes), None
            continue
        if inside.ranks:
            coordinates, program = coordinates.with_ranks(inside.ranks), None
            continue
        if positions.parts:
            coordinates, program = coordinates.with_parts(positions.parts), None
            continue
        if options.follows_all:  # what follows every path needs no copies
            break
        program = replicate(operations, positions, params, data)
        if program is None:
            break
    return coordinates, operations, positions, inside.too_large


def _data(
    program: Program, arguments: Mapping[str, tuple[Var, ...]]
) -> tuple[Var, ...]:
    """Where data enter; what an operation over a batch gives is of the data."""
    over_batch = (v for e in program.equations if e.axes for v in e.outputs)
    given = arguments["hidden"] + arguments["other"] + arguments["inputs"]
    return (*given, *over_batch)


def _new(program: Program, call: Call, coordinates: Coordinates) -> tuple[Var, ...]:
    """The hidden leaves after the step."""
    end = len(program.outputs) - len(call.carried.leaves)
    return program.outputs[end - len(coordinates.leaves) : end]


def _arguments(
    program: Program, call: Call, coordinates: Coordinates
) -> dict[str, tuple[Var, ...]]:
    return _split(program.inputs, _argument_sizes(call, coordinates))


def _argument_sizes(call: Call, coordinates: Coordinates) -> dict[str, int]:
    return {
        "params": len(call.params.leaves),
        "consts": len(call.consts.leaves),
        "hidden": len(coordinates.leaves),
        "other": len(call.carried.leaves),
        "inputs": len(call.inputs.leaves),
    }


def _split(flat, sizes: dict[str, int]) -> dict[str, tuple]:
    ends = np.cumsum(list(sizes.values()))
    return {
        name: tuple(flat[end - size : end])
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _trace(call: Call, coordinates: Coordinates, position_size: int) -> Program:
    """The step as a program of flat real hidden leaves."""
    sizes = _argument_sizes(call, coordinates)
    specs = (call.params, call.consts, call.hidden, call.carried, call.inputs)

    def flat_step(*leaves):
        parts: dict[str, Any] = _split(leaves, sizes)
        parts["hidden"] = coordinates.join(parts["hidden"])
        trees = [s.treedef.unflatten(p) for s, p in zip(specs, parts.values())]
        outputs, hidden, carried = step_from_initial(call, *trees)
        return (
            *jax.tree.leaves(outputs),
            *coordinates.split(jax.tree.leaves(hidden)),
            *jax.tree.leaves(carried),
        )

    arguments = [x for s in specs[:2] for x in s.leaves]
    arguments += coordinates.leaves
    arguments += [x for s in specs[3:] for x in s.leaves]
    n_out = len(jax.eval_shape(flat_step, *arguments))
    first = n_out - len(call.carried.leaves) - sizes["hidden"]
    copied = range(first, first + sizes["hidden"])
    fixed = sizes["params"] + sizes["consts"]
    program = trace_program(
        flat_step,
        arguments,
        copied,
        sizes["params"],
        fixed,
        functools.partial(keeps_positions, classify=of_body, most=position_size),
    )
    program = dataclasses.replace(program, axis=call.axis)
    if coordinates.apart:
        program = with_shortcuts(program)
    program = with_derivatives(program)
    given = _arguments(program, call, coordinates)
    return merge_products(
        program, given["params"], _data(program, given), program.outputs[first:]
    )
