"""What jaxprs say of themselves, and an equation of one as a function."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.extend as jex

from .ir import Loop
from .primitive import Primitive
from .primitives import CALLS, SCAN, WHILE, entry


def entry_of(eqn) -> Primitive:
    """What is known of the primitive of an equation."""
    return entry(eqn.primitive.name)


def is_call(eqn) -> bool:
    """Whether it calls a function whose equations may as well stand in its place."""
    return entry_of(eqn) in CALLS


def is_effect(effect: Any) -> bool:
    """Whether something happens; to name an axis of a batch is not that."""
    return type(effect).__name__ != "NamedAxisEffect"


def acts(closed) -> bool:
    """Whether a jaxpr does more than compute, such as printing or raising."""
    for eqn in closed.jaxpr.eqns:
        if any(map(is_effect, eqn.effects)) or "callback" in eqn.primitive.name:
            return True
        if any(map(acts, inner_jaxprs(eqn.params.values()))):
            return True
    return False


def named_axes(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The named axes, of a batch, that an equation with these parameters acts over."""
    found: list[str] = []
    for key in ("axes", "axis_name"):
        names = params.get(key)
        several = names if isinstance(names, tuple | list) else [names]
        found += [n for n in several if isinstance(n, str)]
    for inner in inner_jaxprs(params.values()):
        for eqn in inner.jaxpr.eqns:
            found += named_axes(eqn.params)
    return tuple(dict.fromkeys(found))


def has_while(closed) -> bool:
    """Whether there is a loop of unknown length in a jaxpr."""
    return any(
        entry_of(eqn) is WHILE
        or any(has_while(x) for x in inner_jaxprs(eqn.params.values()))
        for eqn in closed.jaxpr.eqns
    )


def inner_jaxprs(params: Iterable[Any]) -> list[Any]:
    """The jaxprs among parameters of an equation, closed."""
    found = []
    for x in params:
        if hasattr(x, "eqns") and not hasattr(x, "consts"):  # open, on older JAX
            x = jex.core.ClosedJaxpr(x, [])
        if hasattr(x, "jaxpr"):
            found.append(x)
        elif isinstance(x, tuple | list):
            found += inner_jaxprs(x)
    return found


def is_opaque(eqn) -> bool:
    """Whether a `cond` has branches that must not be run if they are not taken: they do
    more than compute, or might not come to an end."""
    return any(acts(b) or has_while(b) for b in eqn.params["branches"])


def inner_jaxpr(eqn):
    """The one inner jaxpr of a call equation, closed."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            inner = eqn.params[key]
            if not hasattr(inner, "consts"):  # open jaxpr (remat, on older JAX)
                inner = jex.core.ClosedJaxpr(inner, [])
            return inner
    raise TypeError(f"no inner jaxpr in the call primitive {eqn.primitive.name!r}")


def linear_solve(
    params: Mapping[str, Any],
) -> tuple[Callable, Callable, tuple[int, int, int, int]]:
    """Of a `custom_linear_solve`: the product with the matrix and its solution, each as
    a function of constants and a right-hand side; and of how many operands they are:
    the product, its transpose, the solution, and its transpose."""
    inner, n = params["jaxprs"], params["const_lengths"]
    product, solution = inner_jaxprs([inner.matvec, inner.solve])
    numbers = n.matvec, n.vecmat, n.solve, n.transpose_solve
    return jex.core.jaxpr_as_fun(product), jex.core.jaxpr_as_fun(solution), numbers


def callable_of(jaxpr, eqn) -> Callable[..., Sequence[Any]]:
    """The equation as a function of its operands, each of them its own argument.

    Going through a one-equation jaxpr leaves the binding of parameters, which
    changes between releases, to JAX.
    """
    operands = _operands(tuple((v.aval.shape, v.aval.dtype) for v in eqn.invars))
    single = jaxpr.replace(
        constvars=[],
        invars=operands,
        outvars=list(eqn.outvars),
        eqns=[eqn.replace(invars=operands)],
    )
    return jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(single, []))


@functools.lru_cache(maxsize=4096)
def _operands(like: tuple[tuple[Any, Any], ...]) -> list[Any]:
    """Variables of a jaxpr, of some shapes and dtypes."""
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in like]
    return list(jax.make_jaxpr(lambda *xs: xs)(*structs).jaxpr.invars)


def body_of(eqn, read: Sequence[Any]) -> tuple[Any, Loop | None]:
    """The inner jaxpr of a loop or of a function with a derivative of its own, and
    which loop it is."""
    primitive, params = entry_of(eqn), eqn.params
    if primitive.has_own_derivative:
        return inner_jaxpr(eqn), None
    if primitive is SCAN:
        return params["jaxpr"], scan_of(eqn, read)
    if primitive is WHILE:
        numbers = params["cond_nconsts"], params["body_nconsts"]
        return params["body_jaxpr"], Loop(*numbers, len(eqn.outvars))
    return _implementation(eqn), None


def _implementation(eqn):
    """What a primitive that is not JAX's computes, if that is written in JAX."""
    impl = getattr(eqn.primitive, "impl", None)
    if not inspect.isfunction(impl) or impl.__module__.split(".")[0] in _OF_JAX:
        return None
    values = lambda *operands: impl(*operands, **eqn.params)  # noqa: E731
    like = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    try:
        found = jax.make_jaxpr(values)(*like)
    except Exception:  # it needs values, or is no Python
        return None
    own = any(inner.primitive is eqn.primitive for inner in found.jaxpr.eqns)
    return None if own or len(found.out_avals) != len(eqn.outvars) else found


_OF_JAX = ("jax", "jaxlib")


def scan_of(eqn, read: Sequence[Any]) -> Loop:
    """Which of its operands, `read` (with shapes), are what."""
    # The operands are (constants, carry, xs), the results (carry, ys); xs and ys are
    # those that lose their leading axis inside.
    body = eqn.params["jaxpr"]
    n_xs = sum(v.shape != a.shape for v, a in zip(read, body.in_avals))
    n_carry = sum(v.aval.shape == a.shape for v, a in zip(eqn.outvars, body.out_avals))
    return Loop(0, len(read) - n_xs - n_carry, n_carry)
