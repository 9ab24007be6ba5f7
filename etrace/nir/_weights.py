"""Weights of Equinox and of NIR, the ones as the others."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import nir
import numpy as np

from ..nn._parameters import Shape

# --------------------------------------------------------------------- from a graph


def linear_of(
    node: nir.Affine | nir.Linear, shape: Shape, dtype: np.dtype
) -> eqx.nn.Linear:
    if len(shape) != 1:
        raise ValueError(f"its input has the shape {shape}; expected one axis.")
    check_weight(node.weight, (None, *shape))
    bias = node.bias if isinstance(node, nir.Affine) else None
    make = functools.partial(eqx.nn.Linear, *shape, len(node.weight))
    return _with_weights(make, node.weight, bias, dtype)


def conv_of(
    node: nir.Conv1d | nir.Conv2d, shape: Shape, dtype: np.dtype
) -> eqx.nn.Conv:
    axes, groups = 1 if isinstance(node, nir.Conv1d) else 2, int(node.groups)
    if len(shape) != 1 + axes or shape[0] % groups:
        raise ValueError(
            f"its input has the shape {shape}; expected channels, in {groups} equal "
            f"groups, and {axes} more axes."
        )
    _check_declared("input_shape", node.input_shape, shape[1:])
    kernel = (None,) * axes
    check_weight(node.weight, (None, shape[0] // groups, *kernel))
    stride, padding = _sizes(node.stride, axes), node.padding
    if not isinstance(padding, str):
        padding = _sizes(padding, axes)
    elif padding == "same" and set(stride) != {1}:
        raise ValueError(f'padding is "same" and stride {stride}; expected stride 1.')
    make = functools.partial(
        eqx.nn.Conv,
        axes,
        shape[0],
        len(node.weight),
        np.shape(node.weight)[2:],
        stride=stride,
        padding=padding,
        dilation=_sizes(node.dilation, axes),
        groups=groups,
    )
    return _with_weights(make, node.weight, node.bias, dtype)


def flatten_of(node: nir.Flatten, shape: Shape) -> Callable:
    _check_declared("input_type", node.input_type["input"], shape)
    first, last = (int(n) % max(len(shape), 1) for n in (node.start_dim, node.end_dim))
    if (first, last) != (0, len(shape) - 1):
        raise ValueError(
            f"it joins the axes {first} to {last} of {shape}; expected all of them, by "
            "start_dim=0 and end_dim=-1. A graph has no axis for a batch."
        )
    return jnp.ravel


def check_weight(weight: Any, expected: tuple[int | None, ...]) -> None:
    """Raises unless the weight has this shape; None stands for any length."""
    shape = np.shape(weight)
    fits = len(shape) == len(expected) and all(
        b in (None, a) for a, b in zip(shape, expected)
    )
    if not fits:
        words = ", ".join("any" if n is None else str(n) for n in expected)
        raise ValueError(f"weight has the shape {shape}; expected ({words}).")


def _check_declared(name: str, declared: Any, shape: Shape) -> None:
    """Raises if a node says that its input has another shape."""
    if declared is not None and tuple(np.ravel(declared)) != shape:
        raise ValueError(f"{name} is {declared}; its input has {shape}.")


def _with_weights(make: Callable, weight: Any, bias: Any, dtype: np.dtype) -> Any:
    """A layer of Equinox with these weights; no others are drawn."""
    options = dict(use_bias=bias is not None, dtype=dtype, key=jax.random.key(0))
    layer = eqx.filter_eval_shape(make, **options)
    layer = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(weight, dtype))
    if bias is None:
        return layer
    if np.shape(bias) != (len(weight),):
        raise ValueError(
            f"bias has the shape {np.shape(bias)}; expected ({len(weight)},)."
        )
    bias = jnp.asarray(bias, dtype).reshape(layer.bias.shape)
    return eqx.tree_at(lambda m: m.bias, layer, bias)


def _sizes(value: Any, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    return tuple(map(int, np.broadcast_to(value, axes)))


# ----------------------------------------------------------------------- to a graph


def linear_node(weight: Any, bias: Any = None) -> nir.Affine | nir.Linear:
    if bias is None:
        return nir.Linear(np.asarray(weight))
    shape = np.shape(weight)[:1]
    return nir.Affine(np.asarray(weight), np.array(np.broadcast_to(bias, shape)))


def conv_node(conv: eqx.nn.Conv, shape: Shape) -> nir.Conv1d | nir.Conv2d:
    axes = conv.num_spatial_dims
    if axes > 2 or conv.padding_mode != "ZEROS":
        raise ValueError(
            f"it has {axes} axes and padding_mode {conv.padding_mode!r}; expected one "
            'or two axes, and "ZEROS".'
        )
    if shape[:1] != (conv.in_channels,) or len(shape) != 1 + axes:
        raise ValueError(
            f"its input has the shape {shape}; expected {conv.in_channels} channels "
            f"and {axes} more axes."
        )
    weight = np.asarray(conv.weight)
    bias = np.zeros(len(weight), weight.dtype)
    options: Any = dict(
        weight=weight,
        bias=bias if conv.bias is None else np.asarray(conv.bias).reshape(-1),
        stride=conv.stride,
        padding=_symmetric(conv),
        dilation=conv.dilation,
        groups=conv.groups,
        input_shape=shape[1:],
    )
    if axes == 1:
        one = {k: v[0] for k, v in options.items() if isinstance(v, tuple)}
        node = nir.Conv1d(**options | one)
    else:
        node = nir.Conv2d(**options)
    # nir 1.0.8 knows square kernels of one group only.
    x = jax.ShapeDtypeStruct(shape, conv.weight.dtype)
    node.input_type = {"input": np.array(shape)}
    node.output_type = {"output": np.array(jax.eval_shape(conv, x).shape)}
    return node


def _symmetric(conv: eqx.nn.Conv) -> str | tuple[int, ...]:
    """The padding in the words of NIR."""
    padding = conv.padding
    if padding == "VALID":
        return "valid"
    if padding == "SAME" and set(conv.stride) == {1}:
        return "same"
    if isinstance(padding, str) or any(low != high for low, high in padding):
        raise ValueError(
            f"padding is {padding!r} and stride {conv.stride}; expected the same "
            'padding on both sides, "VALID", or "SAME" with stride 1.'
        )
    return tuple(low for low, _ in padding)
