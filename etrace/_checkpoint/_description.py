"""What a pytree is, apart from its numbers: text that is the same in every process.

A checkpoint holds it beside the numbers, so that they are never put into something
else than they were taken from.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._analysis import Graph
from .._model import Spec, is_array, kind_of

_SHOWN = 5  # differences in a message


def describe(tree: PyTree) -> dict[str, str]:
    """What a pytree of training is, apart from its numbers.

    Two trees of the same description differ in numbers alone: what was saved of one can
    be restored into the other. The description is the same in every process; it is what
    [`etrace.save`][] writes in front of the numbers, to be saved with them by other
    libraries.

    **Arguments:**

    - `tree`: any pytree, with arrays or `jax.ShapeDtypeStruct`s.

    **Returns:** a text for every part, by its path, to be written as JSON. Of arrays
    the dtype and shape, of Python numbers the type; of everything else the class and
    the values of static fields. Functions and classes go by their name. For the graph
    of a trace: the model and the inputs it was made for, and what it traces.
    """
    return dict(_described(tree, "", False))


def check_description(description: Any, like: PyTree) -> None:
    """Raises unless `like` is what `description` was made of, apart from its numbers.

    **Arguments:**

    - `description`: the dict that `etrace.describe` made of the tree that was saved.
    - `like`: the tree that shall take its numbers.

    **Raises:** ValueError, naming what differs.
    """
    if not isinstance(description, Mapping):
        raise TypeError(
            f"description is {kind_of(description)}; expected the dict that "
            "etrace.describe(tree) made of the tree that was saved."
        )
    own = describe(like)
    differences = [
        f"  like{path}: saved was {description.get(path, 'nothing')}, "
        f"like has {own.get(path, 'nothing')}"
        for path in {**own, **description}
        if own.get(path) != description.get(path)
    ]
    if differences:
        more = len(differences) - _SHOWN
        shown = differences[:_SHOWN] + [f"  and {more} more"] * (more > 0)
        raise ValueError(
            "like is something else than what was saved:\n"
            + "\n".join(shown)
            + "\nMake like with the model, rule, options and shapes that were saved, "
            "or train afresh."
        )


def is_data(x: Any) -> bool:
    """Whether a leaf is a number or an array, or stands for one."""
    return (
        is_array(x)
        or isinstance(x, jax.ShapeDtypeStruct)
        or type(x) in (bool, int, float, complex)
    )


def is_key(x: Any) -> bool:
    """Whether an array is one of typed PRNG keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _described(x: Any, path: str, by_value: bool) -> Iterator[tuple[str, str]]:
    """(path, text) of every part of `x`; of numbers the values if `by_value`."""
    x = x.tree() if isinstance(x, Spec) else x
    if is_data(x):
        yield path, _data(x, by_value)
    elif by_value and type(x) in (tuple, list) and all(map(_is_short, x)):
        yield path, repr(x)
    elif jax.tree_util.all_leaves([x]):
        yield from _constant(x, path)
    else:
        yield from _node(x, path, by_value)


def _node(x: Any, path: str, by_value: bool) -> Iterator[tuple[str, str]]:
    """A node of a pytree: its class, what is static, and its children."""
    children, treedef = jax.tree_util.tree_flatten_with_path(
        x, is_leaf=lambda y: y is not x
    )
    node = treedef.node_data()
    static: dict[str, Any] = {}
    if isinstance(x, eqx.Module):
        fields = [f for f in dataclasses.fields(x) if f.metadata.get("static")]
        static = {f".{f.name}": getattr(x, f.name, None) for f in fields}
    elif node is not None and not isinstance(x, list | tuple | dict | None):
        static = {"<static>": node[1]}
    if any(part is x for part in static.values()):  # as `register_static` makes it
        yield from _constant(x, path)
        return
    yield path, "None" if x is None else _name(type(x))
    for name, part in static.items():
        yield from _described(part, path + name, True)
    for keys, child in children:
        yield from _described(child, path + jax.tree_util.keystr(keys), by_value)


def _constant(x: Any, path: str) -> Iterator[tuple[str, str]]:
    """A value that is no pytree: its parts where they are known, or one text."""
    parts: dict[str, Any] = {}
    if isinstance(x, Graph):
        parts = _of_graph(x)
    elif isinstance(x, functools.partial):
        parts = {"func": x.func, "args": x.args, "keywords": x.keywords}
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        parts = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
    yield path, _name(type(x)) if parts else _text(x)
    for name, part in parts.items():
        yield from _described(part, f"{path}.{name}", True)


def _of_graph(graph: Graph) -> dict[str, Any]:
    """What the numbers in a trace depend on."""
    call, names = graph.call, graph.call.params.names()
    trees = call.params.tree(), call.consts.tree(), call.static.tree()
    meetings = [
        f"{o.status} {' '.join(names[p] for p in o.parameters)}, site {o.site}"
        for o in graph.occurrences
    ]
    return {
        "model": eqx.combine(*trees),
        "hidden": call.hidden,
        "other": call.other,
        "inputs": call.inputs,
        "options": graph.options,
        "constants": list(graph.constants),
        "groups": graph.positions.groups,
        "couplings": graph.couplings,
        "meetings": dict(enumerate(meetings)),
        "traces": graph.traces,
        "shapes": {t: graph.trace_shape(t) for t in range(len(graph.traces))},
    }


def _is_short(x: Any) -> bool:
    return x is None or type(x) in (bool, int, float, complex, str)


def _data(x: Any, by_value: bool) -> str:
    if not hasattr(x, "dtype"):
        return repr(x) if by_value else type(x).__name__
    text = f"{x.dtype.name}{list(x.shape)}"
    if not by_value or isinstance(x, jax.ShapeDtypeStruct):
        return text
    numbers = np.asarray(jax.random.key_data(x) if is_key(x) else x)
    return f"{text} sha256:{hashlib.sha256(numbers.tobytes()).hexdigest()[:16]}"


def _text(x: Any) -> str:
    """The same in every process: no address, no order of a hash table."""
    if isinstance(x, set | frozenset):
        return f"{{{', '.join(sorted(map(_text, x)))}}}"
    if hasattr(x, "__qualname__"):
        return _name(x)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(x))


def _name(x: Any) -> str:
    """Of a class or function, without the private modules, which may be rearranged."""
    package, *modules = (getattr(x, "__module__", None) or "builtins").split(".")
    if package == "builtins":
        return x.__qualname__
    public = [m for m in modules if not m.startswith("_")]
    return ".".join([package, *public, x.__qualname__])
