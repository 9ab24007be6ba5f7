"""Functions in pytrees, pickled by their names.

`jax.nn.relu` and `jnp.tanh` are no plain functions: pickle looks for what is inside of
them, and does not find it; cloudpickle copies it, and a copy is another function to
`jax.jit`. What a module holds is best known by where it is.
"""

import dataclasses
import functools
import importlib
import types
from typing import Any

import jax
from jaxtyping import PyTree

_PLAIN = (type, types.FunctionType, types.BuiltinFunctionType)


@dataclasses.dataclass(frozen=True)
class _Name:
    """Where a function is."""

    module: str
    name: str

    def function(self) -> Any:
        path = self.name.split(".")
        return functools.reduce(getattr, path, importlib.import_module(self.module))


def by_name(tree: PyTree) -> PyTree:
    """The tree, its functions replaced by names where pickle itself would not do so."""
    return jax.tree.map(_name_of, tree)


def by_value(tree: PyTree) -> PyTree:
    """The inverse of `by_name`."""
    return jax.tree.map(lambda x: x.function() if isinstance(x, _Name) else x, tree)


def _name_of(x: Any) -> Any:
    # What is in a script has another name, or none, in other processes.
    module, name = (getattr(x, f"__{a}__", None) for a in ("module", "qualname"))
    if not callable(x) or isinstance(x, _PLAIN) or module == "__main__":
        return x
    if not (isinstance(module, str) and isinstance(name, str)):
        return x
    found = _Name(module, name)
    try:
        return found if found.function() is x else x
    except (AttributeError, ImportError):
        return x
