"""Checks of what rules are made with."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from .._options import VjpMethod


def check_fraction(name: str, value: Any, *, one: bool = False) -> float:
    """A number in [0, 1), in [0, 1] if `one`."""
    inside = f"a number from 0 up to{'' if one else ', but not,'} 1"
    if isinstance(value, bool) or not eqx.is_array_like(value) or jnp.ndim(value):
        raise TypeError(f"{name} is {value!r}; expected {inside}.")
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} is being traced; expected {inside}. It is part of the rule, not "
            "of its data: make the algorithm outside of jit with a Python number."
        )
    if not 0 <= float(value) < 1 and not (one and float(value) == 1):
        raise ValueError(f"{name} is {value}; expected {inside}.")
    return float(value)


def check_single_step(rule: type, vjp_method: VjpMethod) -> None:
    """Refuses multi-step for a rule that is defined by signals of single steps."""
    if vjp_method == "multi-step":
        raise ValueError(
            f'vjp_method is "multi-step", but {rule.__name__} is defined by the '
            'signals of each single step. Leave it at "single-step"; it takes windows '
            "of several steps as well. For reverse mode inside windows use DRTRL, "
            "ESDRTRL, OSTL, SnAp or RTRL."
        )


def check_key(key: Any) -> PRNGKeyArray:
    """A PRNG key, typed or not, as a typed one."""
    if eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif eqx.is_array(key) and key.dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key)
    raise TypeError(
        f"key is {key!r}; expected one PRNG key, such as jax.random.key(0)."
    )


def check_decays(decay: Any, rank: Any) -> tuple[float, float]:
    """The decays of x and f, from one number, a pair, or a rank."""
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank is {rank!r}; expected a positive int.")
        decay = (rank - 1) / (rank + 1)
    pair = tuple(decay) if isinstance(decay, tuple | list) else (decay, decay)
    if len(pair) != 2:
        raise ValueError(
            f"decay is {decay!r}; expected a number, or a pair of numbers for x and f."
        )
    return check_fraction("decay", pair[0]), check_fraction("decay", pair[1])
