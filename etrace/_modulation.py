"""Signals given with a call, in place of those of the loss."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._analysis import Graph
from ._data import MultiStepData, SingleStepData, Tag, untag
from ._model import shape_of


class Modulation(eqx.Module):
    """A checked modulator behind the inputs of a call, tagged like them."""

    value: Tag

    def of_steps(self, k: int, batch: int, batched: bool) -> Array:
        """[k, batch] or [k, batch, N]."""
        x = self.value.data
        if not isinstance(self.value, MultiStepData):
            x = jnp.broadcast_to(x, (k, *x.shape))
        if not batched or x.ndim == 1:
            x = jnp.broadcast_to(x[:, None], (k, batch, *x.shape[1:]))
        return x


def check_modulator(
    modulator: Any, graph: Graph, batch: int | None, inputs: PyTree
) -> Tag:
    """The modulator, tagged; raises unless it fits the groups, batch and steps."""
    tagged = modulator if isinstance(modulator, Tag) else SingleStepData(modulator)
    value = jnp.asarray(tagged.data)
    multi = isinstance(tagged, MultiStepData)
    _, _, length = untag(inputs)
    if multi and length is None:
        raise ValueError(
            "modulator is MultiStepData, but no input is: the call has one step. Take "
            "the tag off."
        )
    sizes = {g.size for g in graph.positions.groups}
    per_neuron = [sizes.copy().pop()] if len(sizes) == 1 else []
    lead = (length,) if multi else ()
    allowed = [lead] + [(*lead, n) for n in per_neuron]
    if batch is not None:
        allowed = [lead, (*lead, batch)] + [(*lead, batch, n) for n in per_neuron]
    if value.shape not in allowed or not jnp.issubdtype(value.dtype, jnp.floating):
        shapes = " or ".join(map(str, allowed))
        some = (
            ""
            if per_neuron
            else (
                f" The groups of the state have {sorted(sizes)} neurons: only one "
                "number for all fits them."
            )
        )
        raise ValueError(
            f"modulator is {shape_of(value)}; expected floating-point numbers of shape "
            f"{shapes}: one for all neurons, or one for each, behind the axes of time "
            f"(if tagged MultiStepData) and batch (if batched=True).{some}"
        )
    return type(tagged)(value)
