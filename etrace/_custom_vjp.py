"""The update of an algorithm as a `jax.custom_vjp` function of plain pytrees."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax

from ._model import Static, is_array


class Differentiable(Protocol):
    """An algorithm, an `equinox.Module`, as the three functions of its update."""

    @property
    def model(self) -> eqx.Module: ...
    @property
    def _update(self) -> Callable[..., Any]: ...
    @property
    def _update_fwd(self) -> Callable[..., Any]: ...
    @property
    def _update_bwd(self) -> Callable[..., Any]: ...


def differentiable(algorithm: Differentiable) -> Callable[..., Any]:
    """`_update` of (params, inputs, hidden, other, trace), with `_update_fwd` and
    `_update_bwd` as its derivative.

    Whatever else the algorithm holds (constants, a rule's own arrays) is not
    differentiated.
    """
    _, rest = eqx.partition(algorithm.model, eqx.is_inexact_array)
    arrays, static = eqx.partition(
        eqx.tree_at(lambda a: a.model, algorithm, rest), is_array
    )
    fun = jax.custom_vjp(functools.partial(_primal, Static.of(static)))
    fun.defvjp(
        functools.partial(_forward, Static.of(static)),
        functools.partial(_backward, Static.of(static)),
    )
    return functools.partial(fun, arrays)


def _primal(static, arrays, *arguments):
    return eqx.combine(arrays, static.tree())._update(*arguments)


def _forward(static, arrays, *arguments):
    result, residuals = eqx.combine(arrays, static.tree())._update_fwd(*arguments)
    return result, (arrays, residuals)


def _backward(static, residuals, cotangents):
    arrays, residuals = residuals
    algorithm = eqx.combine(arrays, static.tree())
    return None, *algorithm._update_bwd(residuals, cotangents)
