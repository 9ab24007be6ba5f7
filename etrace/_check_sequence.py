"""What the sequence drivers check before anything is computed."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._data import as_arrays
from ._model import Spec, shape_of

if TYPE_CHECKING:
    from ._algorithm import ETraceVjpAlgorithm


class Sequence(eqx.Module):
    """Inputs, targets and mask, all with a leading time axis."""

    inputs: tuple[PyTree, ...]
    targets: PyTree
    mask: Array | None

    @property
    def length(self) -> int:
        return jax.tree.leaves(self.inputs)[0].shape[0]

    def part(self, start: int, stop: int) -> "Sequence":
        return jax.tree.map(lambda x: x[start:stop], self)


def check_window(window: Any, reduction: Any) -> None:
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window is {window!r}; expected a positive int.")
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction is {reduction!r}; expected "mean" or "sum".')


def check_sequence(
    algorithm: "ETraceVjpAlgorithm", inputs: PyTree, targets: PyTree, mask: Any
) -> Sequence:
    """The sequence, as arrays; raises unless all its parts are equally long."""
    inputs = as_arrays(inputs if isinstance(inputs, tuple) else (inputs,))
    targets, mask = as_arrays((targets, mask))
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
    if mask is not None:
        _check_mask(algorithm, mask, leaves[0])
    return Sequence(inputs, targets, mask)


def _check_mask(algorithm: "ETraceVjpAlgorithm", mask: Array, data: Array) -> None:
    allowed = [data.shape[:1]] + ([data.shape[:2]] if algorithm.batched else [])
    if mask.shape not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(
            f"mask has shape {mask.shape}, expected {expected}: one weight per step"
            + (", or per step and example." if algorithm.batched else ".")
        )


def check_loss(
    algorithm: "ETraceVjpAlgorithm",
    sequence: Sequence,
    loss_fn: Callable[..., Any],
    has_aux: bool,
) -> None:
    """Raises unless the loss of one step is a real scalar."""
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
    outputs = algorithm.outputs(*first(sequence.inputs))
    targets = first(sequence.targets)
    if sequence.mask is not None and sequence.mask.ndim == 2:
        strip = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)  # noqa: E731
        outputs, targets = jax.tree.map(strip, (outputs, targets))
    _check_loss(loss_fn, has_aux, Spec.of(outputs), Spec.of(targets))


@functools.lru_cache(maxsize=256)
def _check_loss(
    loss_fn: Callable[..., Any], has_aux: bool, outputs: Spec, targets: Spec
) -> None:
    result = jax.eval_shape(loss_fn, outputs.tree(), targets.tree())
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"loss_fn returned a {type(result).__name__}; with has_aux=True it must "
            "return a pair (scalar, aux)."
        )
    loss = result[0] if has_aux else result
    if not isinstance(loss, jax.ShapeDtypeStruct):
        hint = " Use has_aux=True for a pair." if isinstance(loss, tuple) else ""
        raise TypeError(
            f"loss_fn returned a {type(loss).__name__}; expected one scalar array, the "
            f"loss of one step.{hint}"
        )
    if loss.shape != ():
        raise ValueError(
            f"loss_fn returned {shape_of(loss)}; expected a scalar, the loss of one "
            "step. Reduce it, for example by jnp.mean."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            f"loss_fn returned {shape_of(loss)}; expected a real floating-point scalar."
        )
