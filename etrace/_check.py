"""Everything that is checked before a call computes anything."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._data import untag
from ._model import Spec, shape_of, split_model

if TYPE_CHECKING:
    from ._algorithm import ETraceVjpAlgorithm


def check_options(vjp_method: Any, mixing_tails: Any, trace_dtype: Any) -> None:
    if vjp_method not in ("single-step", "multi-step"):
        raise ValueError(
            f'vjp_method is {vjp_method!r}; expected "single-step" or "multi-step".'
        )
    if mixing_tails not in ("now", "local"):
        raise ValueError(
            f'mixing_tails is {mixing_tails!r}; expected "now" or "local".'
        )
    if trace_dtype is not None and not jnp.issubdtype(trace_dtype, jnp.inexact):
        raise TypeError(
            f"trace_dtype is {jnp.dtype(trace_dtype).name}; expected a floating-point "
            "dtype, such as jnp.bfloat16, or None to store traces as computed."
        )


def check_call(
    algorithm: "ETraceVjpAlgorithm",
    hidden: PyTree,
    other: PyTree,
    trace: Any,
    inputs: tuple[PyTree, ...],
) -> None:
    """Raises unless state and inputs are what `init` led to expect."""
    graph = getattr(trace, "graph", None)
    if graph is None:
        raise TypeError(
            f"trace is a {type(trace).__name__}; expected the third part of the state "
            "that init(...) or update(...) returned: (hidden, other, trace)."
        )
    call = graph.call
    params, _, _ = split_model(algorithm.model)
    if Spec.of(params) != call.params:
        raise ValueError(
            "trace belongs to another model: the parameters' structure, shapes or "
            "dtypes differ from those init(...) saw. Call init(...) again for this "
            "model."
        )
    batch = 1 if algorithm.batched else 0
    _check_state("hidden", hidden, call.hidden, batch)
    _check_state("other", other, call.other, batch)
    _check_inputs(inputs, call.inputs, batch)
    _check_batch(algorithm, hidden, other, inputs)


def _check_state(name: str, tree: PyTree, expected: Spec, batch: int) -> None:
    leaves, treedef = jax.tree.flatten(tree)
    if treedef != expected.treedef:
        raise ValueError(
            f"{name} has the structure {treedef}, expected {expected.treedef}: it "
            "belongs to another model. Pass the state that init(...) or the last "
            "update(...) gave."
        )
    for where, x, e in zip(expected.names(), leaves, expected.leaves, strict=True):
        if jnp.ndim(x) != len(e.shape) + batch or jnp.shape(x)[batch:] != e.shape:
            front = "(batch, ...) + " if batch else ""
            raise ValueError(
                f"{name}{where} has shape {jnp.shape(x)}, expected {front}{e.shape}. "
                "Pass the state that init(...) or the last update(...) gave."
            )
        if jax.dtypes.result_type(x) != e.dtype:
            raise TypeError(
                f"{name}{where} is {shape_of(x)}, expected dtype {e.dtype.name}. "
                "Pass the state that init(...) or the last update(...) gave."
            )


def _check_inputs(inputs: tuple[PyTree, ...], expected: Spec, batch: int) -> None:
    plain, multi, _ = untag(inputs)
    leaves, treedef = jax.tree.flatten(plain)
    if treedef != expected.treedef:
        raise ValueError(
            f"the inputs have the structure {treedef}, expected {expected.treedef} as "
            "in init(...): pass the same number of inputs, each of the same structure."
        )
    for where, x, m, e in zip(
        expected.names(), leaves, jax.tree.leaves(multi), expected.leaves, strict=True
    ):
        axes = ["k"] * m + ["batch"] * batch
        lead = len(axes)
        if x.ndim != len(e.shape) + lead or x.shape[lead:] != e.shape:
            shape = ", ".join([*axes, *map(str, e.shape)])
            raise ValueError(
                f"inputs{where} has shape {x.shape}, expected ({shape}) as in "
                "init(...). Check the batch axis (batched=True) and the time axis "
                "(MultiStepData)."
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
            f"hidden, other and inputs have batch sizes {sorted(sizes)}; expected one. "
            "Call init(...) again to change the batch size."
        )
