"""What every algorithm is told when it is made."""

from typing import Any, Literal, TypedDict

import jax.numpy as jnp

from ._analysis import MixingTails

VjpMethod = Literal["single-step", "multi-step"]


class Options(TypedDict, total=False):
    """Keywords of every rule, see `ETraceVjpAlgorithm`."""

    batched: bool
    axis_name: str | None
    trace_dtype: Any
    hidden_filter: Any
    mixing_tails: MixingTails
    position_size: int


def check_options(
    vjp_method: Any,
    mixing_tails: Any,
    trace_dtype: Any,
    batched: Any,
    position_size: Any,
    axis_name: Any,
) -> None:
    if not isinstance(batched, bool):
        raise TypeError(
            f"batched is {batched!r}; expected True or False. The batch size is that "
            "of the inputs given to init(...)."
        )
    if not (axis_name is None or isinstance(axis_name, str)):
        raise TypeError(
            f"axis_name is {axis_name!r}; expected the name, a string, by which the "
            "model knows the axis of the batch, or None."
        )
    if axis_name is not None and not batched:
        raise ValueError(
            f"axis_name is {axis_name!r}, but batched is False: there is no batch axis "
            "to name. Use batched=True, or map the whole call: jax.vmap(..., "
            f"axis_name={axis_name!r})."
        )
    if vjp_method not in ("single-step", "multi-step"):
        raise ValueError(
            f'vjp_method is {vjp_method!r}; expected "single-step" or "multi-step".'
        )
    if mixing_tails not in ("now", "local"):
        raise ValueError(
            f'mixing_tails is {mixing_tails!r}; expected "now" or "local".'
        )
    _check_position_size(position_size)
    if trace_dtype is None:
        return
    try:
        dtype = jnp.dtype(trace_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"trace_dtype is {dtype or repr(trace_dtype)}; expected a floating-point "
            "dtype, such as jnp.bfloat16, or None to store traces as computed."
        )


def _check_position_size(size: Any) -> None:
    expected = (
        "a positive int, how many numbers of one leaf of the state may be one "
        "position; 1 makes every number one of its own."
    )
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"position_size is {size!r}; expected {expected}")
    if size < 1:
        raise ValueError(f"position_size is {size}; expected {expected}")
