"""What an operation of a random step is, and the element-by-element ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .tape import Kind, Tape, Value

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a random step.

    - `fun`: `fun(choice, *operands)`, plain JAX. `choice` is a small number that picks
        an axis, a shift or a variant. The operands are data, then an index (an integer
        scalar), then a weight.
    - `data`: how many data operands; `accepts` says of which shapes.
    - `weight`: the shape of the weight, from the choice and the shapes of the data.
    - `marked`: the same on a tape, `marked(tape, choice, *operands)`, where one node
        does not say it all.
    - `single`: whether it rounds to single precision.
    - `whole`: whether it is taken to mix all it reads, which it need not do.
    """

    kind: Kind
    fun: Callable[..., Any]
    data: int = 1
    accepts: Callable[..., bool] = lambda *shapes: True
    index: bool = False
    weight: Callable[..., Shape] | None = None
    marked: Callable[..., Value] | None = None
    single: bool = False
    whole: bool = False

    def on_tape(self, tape: Tape, choice: int, *operands: Value) -> Value:
        if self.marked is not None:
            return self.marked(tape, choice, *operands)
        return tape.node(self.kind, lambda *xs: self.fun(choice, *xs), *operands)


def same(*shapes: Shape) -> bool:
    return len(set(shapes)) == 1


@jax.custom_jvp
def spike(v):
    return (v > 0.1).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + 4 * jnp.abs(v)) ** 2


@jax.custom_vjp
def other_gradient(x):
    return x * 1.0


other_gradient.defvjp(lambda x: (x * 1.0, x), lambda x, g: (0.5 * g * jnp.cos(x),))


@jax.custom_jvp
def soft_threshold(x, threshold):
    return jnp.where(x > threshold, x - threshold, 0.0)


@soft_threshold.defjvp
def _soft_threshold_jvp(primals, tangents):
    (x, threshold), (dx, dthreshold) = primals, tangents
    slope = jax.nn.sigmoid(3 * (x - threshold))
    return soft_threshold(x, threshold), slope * (dx - dthreshold)


@jax.custom_vjp
def times(x, y):
    return x * y


times.defvjp(lambda x, y: (x * y, (x, y)), lambda r, g: (g * r[1], 0.5 * g * r[0]))


def _substeps(x, body, n=3):
    return lax.scan(lambda c, _: (body(c), None), x, None, length=n)[0]


def _rotated(x):
    return jnp.imag(jnp.exp(lax.complex(0.1 * x, 0.7 * x)))


_UNARY: dict[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "abs": jnp.abs,
    "square": jnp.square,
    "cube": lambda x: 0.3 * x**3,
    "root": lambda x: jnp.sqrt(1 + x * x),
    "gauss": lambda x: jnp.exp(-x * x),
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "expm1": lambda x: jnp.expm1(jnp.minimum(x, 1.0)),
    "log1p": lambda x: jnp.log1p(x * x),
    "sign": lambda x: jnp.sign(x) * 0.3 + x,
    "floor": lambda x: x - jnp.floor(x),
    "round": lambda x: 0.2 * jnp.round(2 * x) + 0.5 * x,
    "clip": lambda x: jnp.clip(x, -0.8, 0.8),
    "rsqrt": lambda x: x * lax.rsqrt(1 + x * x),
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "exp2": lambda x: jnp.exp2(jnp.minimum(x, 1.0)),
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "cbrt": lambda x: jnp.cbrt(1 + x * x),
    "rem": lambda x: lax.rem(x, 1.0),
    "lgamma": lambda x: 0.3 * lax.lgamma(1.5 + x * x),
    "bessel": lax.bessel_i0e,
    "neg": lambda x: -x,
    "acos": lambda x: jnp.arccos(0.9 * jnp.tanh(x)),
    "complex": _rotated,
    "spike": spike,
    "other_gradient": other_gradient,
    "straight_through": lambda x: x + lax.stop_gradient(spike(x) - x),
    "half_stopped": lambda x: x * lax.stop_gradient(jnp.cos(x)),
    "where": lambda x: jnp.where(x > 0.05, x, 0.2 * x),
    "masked": lambda x: x * (x > -0.2).astype(x.dtype),
    "precise": lambda x: lax.reduce_precision(x, 11, 52),
    "checkpointed": jax.checkpoint(lambda x: jnp.tanh(x) * x),
    "jitted": jax.jit(lambda x: jnp.sin(x) + 0.2 * x),
    "scanned": lambda x: _substeps(x, lambda c: jnp.tanh(0.9 * c + 0.1)),
    "looped": lambda x: lax.fori_loop(0, 2, lambda i, c: c * jnp.cos(c), x),
    "nested": lambda x: _substeps(x, jax.jit(lambda c: _substeps(jnp.sin(c), spike))),
    "vmapped": lambda x: jax.vmap(lambda r: jnp.tanh(r) * 0.8)(x) if x.ndim else x,
    "logical": lambda x: jnp.where((x > -0.4) & ~(x > 0.6), x, 0.5 * x),
}


def _select_by(c, x, y):
    return jnp.where(y > 0, x, -0.5 * x)


def _select_by_marked(t: Tape, c: int, x: Value, y: Value) -> Value:
    return t.e(lambda p, x: jnp.where(p, x, -0.5 * x), t.e(lambda y: y > 0, y), x)


_BINARY: dict[str, Callable[..., Any]] = {
    "add": lambda c, x, y: x + y,
    "sub": lambda c, x, y: x - 0.5 * y,
    "mul": lambda c, x, y: x * y,
    "div": lambda c, x, y: x / (1.2 + y * y),
    "max": lambda c, x, y: jnp.maximum(x, y),
    "min": lambda c, x, y: jnp.minimum(x, 0.3 + y),
    "atan2": lambda c, x, y: jnp.arctan2(x, 1.5 + y * y),
    "pow": lambda c, x, y: (1.1 + x * x) ** jnp.tanh(y),
    "where2": lambda c, x, y: jnp.where(x > 0, x, 0.4 * y),
    "logaddexp": lambda c, x, y: jnp.logaddexp(x, y),
    "hypot": lambda c, x, y: jnp.sqrt(1 + x * x + 0.5 * y * y),
    "times": lambda c, x, y: times(x, y),
    "soft_threshold": lambda c, x, y: soft_threshold(x, 0.2 * y),
    "mod": lambda c, x, y: lax.rem(x, 1.5 + y * y),
    "stopped": lambda c, x, y: x * lax.stop_gradient(y),
}


def _stopped_marked(t: Tape, c: int, x: Value, y: Value) -> Value:
    return t.e(jnp.multiply, x, t.stop(y))


def _cond(c, x, y, i):
    return lax.cond(i > 0, lambda a, b: jnp.tanh(a), lambda a, b: a * 0.2 + b, x, y)


def _cond_marked(t: Tape, c: int, x: Value, y: Value, i: Value) -> Value:
    cases = t.e(jnp.tanh, x), t.e(lambda a, b: a * 0.2 + b, x, y)
    return t.e(lambda i, a, b: jnp.where(i > 0, a, b), i, *cases)


_BRANCHES = (jnp.sin, spike, lambda x: x * 0.5)


def _switch(c, x, i):
    return lax.switch(i, _BRANCHES, x)


# -------------------------------------------------------------------------- weights


def _whole(c: int, shape: Shape) -> Shape:
    """A weight of each element, of the last axis, of the first axis, or of all."""
    shapes = (shape, shape[-1:], shape[:1] + (1,) * (len(shape) - 1), ())
    return shapes[c % 4]


def _wide(w, x):
    return w.reshape((1,) * (x.ndim - w.ndim) + w.shape) if w.ndim else w


def _pair_whole(c: int, shape: Shape, _: Shape) -> Shape:
    return _whole(c, shape)


def _lerp(c, x, y, w):
    gate = jax.nn.sigmoid(_wide(w, x))
    return gate * x + (1 - gate) * y


def _substeps_of_weight(c, x, w):
    gain = _wide(jax.nn.sigmoid(w), x)
    return _substeps(x, lambda h: jnp.tanh(h * gain + 0.1), 2)


def _substeps_of_weight_marked(t: Tape, c: int, x: Value, w: Value) -> Value:
    for _ in range(2):
        x = t.e(lambda h, w: _substep(h, w), x, w)
    return x


def _substep(h, w):
    return jnp.tanh(h * _wide(jax.nn.sigmoid(w), h) + 0.1)


def _cond_weight(c, x, i, w):
    w = _wide(w, x)
    return lax.cond(i > 0, lambda a, w: a * w, lambda a, w: a + 0.5, x, w)


_WEIGHTED: dict[str, Callable[..., Any]] = {
    "bias": lambda c, x, w: x + _wide(w, x),
    "gain": lambda c, x, w: x * _wide(w, x),
    "decay": lambda c, x, w: x * jnp.exp(-jnp.exp(_wide(w, x))),
    "prelu": lambda c, x, w: jnp.where(x > 0, x, _wide(w, x) * x),
    "shifted_spike": lambda c, x, w: spike(x - _wide(w, x)) + 0.3 * x,
    "learned_pow": lambda c, x, w: (1.1 + x * x) ** jnp.tanh(_wide(w, x)),
}


def _broadcast(w, x):
    return jnp.broadcast_to(_wide(w, x), x.shape)


def _unary(fun: Callable[[Any], Any], **options: Any) -> Operation:
    return Operation("elementwise", lambda c, x: fun(x), **options)


def _constant(c, x):
    """Some constants of a shape, some of them zero."""
    return np.round(np.cos(np.arange(x.size) * (c + 1.0)), 1).reshape(x.shape)


ELEMENTWISE: dict[str, Operation] = {
    **{name: _unary(fun) for name, fun in _UNARY.items()},
    **{n: Operation("elementwise", f, 2, same) for n, f in _BINARY.items()},
    **{n: Operation("elementwise", f, weight=_whole) for n, f in _WEIGHTED.items()},
    "stopped": Operation(
        "elementwise", _BINARY["stopped"], 2, same, marked=_stopped_marked
    ),
    "select_by": Operation(
        "elementwise", _select_by, 2, same, marked=_select_by_marked
    ),
    "cond": Operation("elementwise", _cond, 2, same, index=True, marked=_cond_marked),
    "switch": Operation("elementwise", _switch, index=True),
    "constant_gain": Operation("elementwise", lambda c, x: x * _constant(c, x)),
    "constant_bias": Operation("elementwise", lambda c, x: x + _constant(c, x)),
    "single": _unary(lambda x: x.astype(jnp.float32).astype(x.dtype), single=True),
    "lerp": Operation("elementwise", _lerp, 2, same, weight=_pair_whole),
    "substeps": Operation(
        "elementwise",
        _substeps_of_weight,
        weight=_whole,
        marked=_substeps_of_weight_marked,
    ),
    "cond_weight": Operation("elementwise", _cond_weight, index=True, weight=_whole),
    "threshold": Operation(
        "elementwise",
        lambda c, x, w: soft_threshold(x, _broadcast(w, x)),
        weight=_whole,
    ),
    "custom_gain": Operation(
        "elementwise", lambda c, x, w: times(x, _broadcast(w, x)), weight=_whole
    ),
    "on_scalar": Operation(
        "elementwise",
        lambda c, x, y: x * y,
        2,
        lambda x, y: y == () and x != (),
    ),
    "on_row": Operation(
        "elementwise",
        lambda c, x, y: x + 0.5 * y[None],
        2,
        lambda x, y: len(x) == 2 and y == x[1:],
        marked=lambda t, c, x, y: t.e(
            lambda x, y: x + 0.5 * y, x, t.x(lambda y: y[None], y)
        ),
    ),
}
