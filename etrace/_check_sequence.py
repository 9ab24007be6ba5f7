"""What the sequence drivers check before anything is computed."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._algorithm import ETraceVjpAlgorithm
from ._analysis import Graph
from ._check import check_values
from ._data import MultiStepData, Tag, as_arrays
from ._model import Spec, kind_of, shape_of
from ._modulation import check_modulator


class Sequence(eqx.Module):
    """Inputs, targets and mask, all with a leading time axis."""

    inputs: tuple[PyTree, ...]
    targets: PyTree
    mask: Array | None
    modulator: Array | None
    batched: bool = eqx.field(static=True)

    @property
    def length(self) -> int:
        return jax.tree.leaves(self.inputs)[0].shape[0]

    @property
    def batch(self) -> int | None:
        """The number of examples, or None without a batch axis."""
        shape = jax.tree.leaves(self.inputs)[0].shape
        return shape[1] if self.batched else None

    @property
    def steps(self) -> tuple[MultiStepData, ...]:
        """The inputs of a call of all steps."""
        return tuple(map(MultiStepData, self.inputs))

    def part(self, start: int, stop: int) -> "Sequence":
        return jax.tree.map(lambda x: x[start:stop], self)


def check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive int.")


def check_window(window: Any, reduction: Any) -> None:
    check_positive("window", window)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction is {reduction!r}; expected "mean" or "sum".')


def check_optimiser(optimiser: Any) -> None:
    methods = (getattr(optimiser, name, None) for name in ("init", "update"))
    if not all(map(callable, methods)):
        raise TypeError(
            f"optimiser is {kind_of(optimiser)}; expected an optax transformation, "
            "with init(params) and update(grads, state, params), such as "
            "optax.adam(1e-3)."
        )


def check_sequence(
    algorithm: Any, inputs: PyTree, targets: PyTree, mask: Any, modulator: Any = None
) -> Sequence:
    """The sequence, as arrays; raises unless all its parts are equally long."""
    if not isinstance(algorithm, ETraceVjpAlgorithm):
        raise TypeError(
            f"algorithm is {kind_of(algorithm)}; expected a learning rule around a "
            "model, such as etrace.DRTRL(model)."
        )
    is_tag = lambda x: isinstance(x, Tag)  # noqa: E731
    if any(map(is_tag, jax.tree.leaves(inputs, is_leaf=is_tag))):
        raise ValueError(
            "inputs hold a data tag; expected plain time-major arrays. Take off "
            "SingleStepData and MultiStepData: the driver cuts the sequence itself."
        )
    inputs = as_arrays(inputs if isinstance(inputs, tuple) else (inputs,))
    targets, mask = as_arrays(targets, "targets"), as_arrays(mask, "mask")
    leaves = jax.tree.leaves(inputs)
    if not leaves or any(x.ndim == 0 for x in leaves):
        shapes = [x.shape for x in leaves]
        raise ValueError(
            f"inputs hold arrays of shapes {shapes}; expected time-major arrays, "
            "(time, ...) or, batched, (time, batch, ...)."
        )
    length = leaves[0].shape[0]
    if length == 0:
        raise ValueError(
            f"inputs have shape {leaves[0].shape}: an empty sequence. Expected at "
            "least one step on the leading axis."
        )
    for name, tree in (("inputs", inputs), ("targets", targets)):
        for x in jax.tree.leaves(tree):
            if x.ndim == 0 or x.shape[0] != length:
                raise ValueError(
                    f"{name} hold an array of shape {x.shape}, expected ({length}, "
                    f"...): the inputs have {length} steps. Time is the leading axis."
                )
    if modulator is not None:
        modulator = _check_modulator(algorithm, modulator, inputs)
    if mask is not None:
        _check_mask(algorithm, mask, leaves[0])
        _check_targets(mask, targets)
    return Sequence(inputs, targets, mask, modulator, algorithm.batched)


def _check_modulator(
    algorithm: ETraceVjpAlgorithm, modulator: Any, inputs: tuple[PyTree, ...]
) -> Array:
    if not algorithm._takes_modulator():
        raise TypeError(
            f"modulator is given, but {algorithm.name} learns from the loss; expected "
            "None. Use etrace.ThreeFactor(model, rule=...) to learn from a modulator."
        )
    steps = tuple(map(MultiStepData, inputs))
    graph, batch = algorithm._graph(steps)
    tagged = MultiStepData(as_arrays(modulator, "modulator"))
    size = batch if algorithm.batched else None
    return check_modulator(tagged, graph, size, steps).data


def _check_mask(algorithm: ETraceVjpAlgorithm, mask: Array, data: Array) -> None:
    allowed = [data.shape[:1]] + ([data.shape[:2]] if algorithm.batched else [])
    if mask.shape not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(
            f"mask has shape {mask.shape}, expected {expected}: one weight per step"
            + (", or per step and example." if algorithm.batched else ".")
        )


def _check_targets(mask: Array, targets: PyTree) -> None:
    """With a mask per example, the loss is given the targets of one example."""
    for x in jax.tree.leaves(targets):
        if x.shape[: mask.ndim] != mask.shape:
            raise ValueError(
                f"targets hold an array of shape {x.shape}, expected ({mask.shape[0]}, "
                f"{mask.shape[1]}, ...): with a mask of shape {mask.shape} the loss is "
                "taken example by example. Give targets a batch axis behind time."
            )


def graph_for(
    algorithm: ETraceVjpAlgorithm, state: PyTree | None, sequence: Sequence
) -> Graph:
    """The graph of the sequence's steps: that of a state that is given. (It is not
    looked for again, since inside `jax.jit` less of the model is known.)"""
    if state is None:
        return algorithm._graph(sequence.steps)[0]
    if not (isinstance(state, tuple | list) and len(state) == 3):
        raise TypeError(
            f"state is {kind_of(state)}; expected the triple (hidden, other, "
            "trace) of init(...) or of the last call, or None for a fresh state."
        )
    return check_values(algorithm, *state)


def check_function(loss_fn: Any) -> None:
    """Raises unless it may be a loss."""
    if not callable(loss_fn) or not _hashable(loss_fn):
        raise TypeError(
            f"loss_fn is {kind_of(loss_fn)}; expected a hashable function "
            "loss_fn(outputs_t, targets_t) -> scalar. Put arrays it needs into the "
            "targets, and what is learnt into the model."
        )


def check_loss(
    sequence: Sequence,
    loss_fn: Callable[..., Any],
    has_aux: bool,
    graph: Graph,
) -> None:
    """Raises unless the loss of one step is a real scalar."""
    each = sequence.mask is not None and sequence.mask.ndim == 2
    lead = () if sequence.batch is None or each else (sequence.batch,)
    outputs = Spec.of(graph.outputs.tree(lead))
    targets = Spec.of(sequence.targets, 1 + each)
    _check_loss(loss_fn, has_aux, outputs, targets)


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _check_loss(
    loss_fn: Callable[..., Any], has_aux: bool, outputs: Spec, targets: Spec
) -> None:
    try:
        result = jax.eval_shape(loss_fn, outputs.tree(), targets.tree())
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"loss_fn(outputs_t, targets_t) failed for the outputs {outputs} and the "
            f"targets {targets} of one step: {str(error).rstrip('.')}. Check that the "
            "targets are what the loss expects; time is taken off, a batch axis is not "
            "(it is, with a mask for every example)."
        ) from error
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"loss_fn returned {kind_of(result)}; with has_aux=True it must return a "
            "pair (scalar, aux)."
        )
    loss = result[0] if has_aux else result
    if not isinstance(loss, jax.ShapeDtypeStruct):
        hint = " Use has_aux=True for a pair." if isinstance(loss, tuple) else ""
        raise TypeError(
            f"loss_fn returned {kind_of(loss)}; expected one scalar array, the loss of "
            f"one step.{hint}"
        )
    if loss.shape != ():
        raise ValueError(
            f"loss_fn returned {shape_of(loss)}; expected a scalar, the loss of one "
            "step. Reduce it, for example by jnp.mean."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            f"loss_fn returned {shape_of(loss)}; expected a real floating-point scalar."
            " An integer has no gradient: return a differentiable loss."
        )
