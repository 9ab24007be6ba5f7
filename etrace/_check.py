"""Everything that is checked before a call computes anything."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PyTree

from ._analysis import Graph, digest, fixed
from ._axes import examples_in
from ._data import untag
from ._mesh import check_placement
from ._model import Call, Spec, Static, kind_of, shape_of, split_model
from ._rule import Rule
from ._trace import Trace, first_spec


def check_call(
    algorithm: Rule,
    hidden: PyTree,
    other: PyTree,
    trace: Any,
    inputs: tuple[PyTree, ...],
) -> None:
    """Raises unless state and inputs are what `init` led to expect."""
    check_values(algorithm, hidden, other, trace)
    check_shapes(algorithm, hidden, other, trace, inputs)


def check_values(algorithm: Rule, hidden: PyTree, other: PyTree, trace: Any) -> Graph:
    """The graph of a trace; raises for what other numbers make wrong, call by call."""
    graph = _graph_of(trace)
    _check_kept(hidden=hidden, other=other, trace=trace)
    _check_constants(algorithm.model, graph)
    return graph


def check_shapes(
    algorithm: Rule,
    hidden: PyTree,
    other: PyTree,
    trace: Trace,
    inputs: tuple[PyTree, ...],
) -> None:
    """Raises for what is wrong with all calls of such structures, shapes and dtypes:
    inside a compiled function it is found once."""
    check_placement(
        model=algorithm.model, hidden=hidden, other=other, trace=trace, inputs=inputs
    )
    call = trace.graph.call
    _check_model(algorithm.model, call)
    batch = 1 if algorithm.batched else 0
    _check_state("hidden", hidden, call.hidden, batch)
    _check_state("other", other, call.other, batch)
    _check_inputs(inputs, call.inputs, batch)
    _check_batch(algorithm, hidden, other, inputs)
    _check_trace(algorithm, trace, hidden)


def check_belongs(
    model: eqx.Module, trace: Any, *, ignoring_constants: bool = False
) -> None:
    """Raises unless a trace was made for this model, but for its parameters."""
    graph = _graph_of(trace)
    _check_model(model, graph.call)
    if not ignoring_constants:
        _check_constants(model, graph)


def _check_constants(model: eqx.Module, graph: Graph) -> None:
    """Raises if constants that a trace depends on have changed."""
    if not fixed(graph):
        return
    consts = split_model(model)[1]
    if jax.tree.structure(consts) != graph.call.consts.treedef:
        _check_model(model, graph.call)
    now = jax.tree.leaves(consts)
    for n, (_, then) in fixed(graph).items():
        if digest(now[n]) not in (None, then):
            raise ValueError(_changed(graph, n))


def guarded(algorithm: Any, graph: Graph) -> Any:
    """The algorithm, after `check_belongs`.

    Inside `jax.jit` the values of constants are not known: there it is one that raises
    when it is run with others than those of `graph`, that of the trace.
    """
    if not fixed(graph):
        return algorithm
    params, consts, static = split_model(algorithm.model)
    leaves, treedef = jax.tree.flatten(consts)
    for n, (then, _) in fixed(graph).items():
        if isinstance(leaves[n], Tracer):
            differs = jnp.any(leaves[n] != then)
            leaves[n] = eqx.error_if(leaves[n], differs, _changed(graph, n))
    consts = treedef.unflatten(leaves)
    return algorithm.with_model(eqx.combine(params, consts, static))


def _changed(graph: Graph, constant: int) -> str:
    return (
        f"model{graph.call.consts.names()[constant]} has changed since the trace was "
        "made: a constant that the trace depends on, such as a mask on weights. Move "
        "the state over with algorithm, state = algorithm.rewired(state, new_model), "
        "or begin with a fresh one, init(...)."
    )


def _graph_of(trace: Any) -> Graph:
    graph = getattr(trace, "graph", None)
    if not isinstance(graph, Graph):
        raise TypeError(
            f"trace is {kind_of(trace)}; expected the third part of the state that "
            "init(...) or update(...) returned. Pass its parts in order: "
            "update(hidden, other, trace, *inputs)."
        )
    return graph


def _check_kept(**trees: PyTree) -> None:
    """Raises for arrays whose memory was given to a driver."""
    for name, tree in trees.items():
        arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
        if any(not isinstance(x, Tracer) and x.is_deleted() for x in arrays):
            raise ValueError(
                f"{name} has arrays that were deleted: drivers write the next state "
                "over the one they are given. Go on with the state that was returned, "
                "or pass jax.tree.map(jnp.copy, state) to keep one."
            )


def _check_model(model: eqx.Module, call: Call) -> None:
    """Raises unless `model` is, but for its numbers, the one that `call` is of."""
    params, consts, static = split_model(model)
    for now, then in ((Spec.of(params), call.params), (Spec.of(consts), call.consts)):
        if now.treedef != then.treedef:
            difference = f"of another class or structure, {then} instead of {now}"
        else:
            difference = ", ".join(
                f"with {name} {shape_of(a)} instead of {shape_of(b)}"
                for name, a, b in zip(then.names(), then.leaves, now.leaves)
                if a != b
            )
        if difference:
            raise ValueError(
                f"trace belongs to another model: one {difference}. Pass a state that "
                "init(...) made for this model."
            )
    pairs = zip(Static.of(static).leaves, call.static.leaves, strict=True)
    for now, then in pairs:
        if now is not then and not now == then:
            raise ValueError(
                f"trace belongs to another model: one that holds {then!r} where this "
                f"one holds {now!r}. Pass a state that init(...) made for this model."
            )


def _check_state(name: str, tree: PyTree, expected: Spec, batch: int) -> None:
    leaves, treedef = jax.tree.flatten(tree)
    if treedef != expected.treedef:
        raise ValueError(
            f"{name} is {_outline(tree)}, expected {expected}. Does it belong to "
            "another model? Pass the state that init(...) or the last update(...) gave."
        )
    for where, x, e in zip(expected.names(), leaves, expected.leaves, strict=True):
        if jnp.ndim(x) != len(e.shape) + batch or jnp.shape(x)[batch:] != e.shape:
            raise ValueError(
                f"{name}{where} has shape {jnp.shape(x)}, expected "
                f"{_axes(['batch'] * batch, e)} with batched={bool(batch)}. "
                "Pass the state that init(...) or the last update(...) gave."
            )
        if jax.dtypes.result_type(x) != e.dtype:
            raise TypeError(
                f"{name}{where} is {shape_of(x)}, expected dtype {e.dtype.name}. "
                "Pass the state that init(...) or the last update(...) gave."
            )


def _outline(tree: PyTree) -> str:
    """A pytree, with shapes and dtypes for its arrays."""
    return eqx.tree_pformat(tree, width=200)


def _axes(lead: list[str], expected: jax.ShapeDtypeStruct) -> str:
    """`(k, batch, 3)`, as a shape is written."""
    names = [*lead, *map(str, expected.shape)]
    return f"({', '.join(names)}{',' * (len(names) == 1)})"


def _check_inputs(inputs: tuple[PyTree, ...], expected: Spec, batch: int) -> None:
    plain, multi, _ = untag(inputs)
    leaves, treedef = jax.tree.flatten(plain)
    if treedef != expected.treedef:
        raise ValueError(
            f"inputs are {_outline(plain)}, expected {expected} as in init(...): pass "
            "the same number of inputs, each of the same structure."
        )
    for where, x, m, e in zip(
        expected.names(), leaves, jax.tree.leaves(multi), expected.leaves, strict=True
    ):
        axes = ["k"] * m + ["batch"] * batch
        lead = len(axes)
        if x.ndim != len(e.shape) + lead or x.shape[lead:] != e.shape:
            raise ValueError(
                f"inputs{where} has shape {x.shape}, expected {_axes(axes, e)} as in "
                f"init(...). A batch axis needs batched=True (it is {bool(batch)}), a "
                f"time axis needs MultiStepData (it is {'' if m else 'not '}tagged so)."
            )
        if x.dtype != e.dtype:
            raise TypeError(
                f"inputs{where} is {shape_of(x)}, expected dtype {e.dtype.name} as in "
                "init(...). Cast it, or call init(...) again with such inputs."
            )


def _check_batch(algorithm, hidden, other, inputs) -> None:
    if not algorithm.batched:
        return
    plain, multi, _ = untag(inputs)
    sizes = {jnp.shape(x)[0] for x in jax.tree.leaves((hidden, other))}
    flags = jax.tree.leaves(multi)
    sizes |= {x.shape[int(m)] for x, m in zip(jax.tree.leaves(plain), flags)}
    if len(sizes) > 1:
        raise ValueError(
            f"hidden, other and inputs have batch sizes {sorted(sizes)}; expected one "
            "for all. Call init(...) again to change the batch size; tag time-major "
            "inputs (time, batch, ...) as MultiStepData."
        )


# What a rule stores, by everything it may depend on.
_stored: dict[tuple[Any, ...], Spec] = {}


def _check_trace(algorithm: Rule, trace: Trace, hidden: PyTree) -> None:
    """Raises unless a trace is what this algorithm stores for its graph."""
    graph, data = trace.graph, trace.data
    then, now = graph.options, algorithm._graph_options()
    options = {
        "mixing_tails": then.mixing_tails != now.mixing_tails,
        "position_size": then.position_size != now.position_size,
        "vjp_method": then.remembers_all != now.remembers_all,
        "name": then != now,
    }
    for name, differs in options.items():
        if differs:
            raise ValueError(
                f"trace was made by an algorithm of another {name} than this one, "
                f"{getattr(algorithm, name)!r}. Pass the state that init(...) of this "
                "algorithm gave."
            )
    batch = examples_in(hidden) if algorithm.batched else None
    expected = _expected_trace(algorithm, graph, batch)
    if Spec.of(data) != expected:
        raise ValueError(
            f"trace holds {_outline(data)}, expected {expected} for batched="
            f"{algorithm.batched}, trace_dtype={algorithm.trace_dtype} and the other "
            f"options of {algorithm.name}: it was made by another algorithm. Pass the "
            "state that init(...) of this one gave."
        )
    first = first_spec(graph, batch)
    if Spec.of(trace.first) != Spec.of(first):
        raise ValueError(
            f"trace.first is {Spec.of(trace.first)}, expected {Spec.of(first)} for "
            f"batched={algorithm.batched}. Pass the state that init(...) or the last "
            "update(...) gave."
        )


def _expected_trace(algorithm: Rule, graph: Graph, batch: int | None) -> Spec:
    options = {k: v for k, v in vars(algorithm).items() if k != "model"}
    options = jax.tree.map(lambda x: shape_of(x) if eqx.is_array(x) else x, options)
    key = (type(algorithm), Static.of(options), graph, batch)
    compute = lambda: Spec.of(algorithm.trace_spec(graph, batch or 1))  # noqa: E731
    try:
        hash(key)
    except TypeError:  # an option that cannot be hashed
        return compute()
    if key not in _stored:
        if len(_stored) >= 256:
            _stored.clear()
        _stored[key] = compute()
    return _stored[key]
