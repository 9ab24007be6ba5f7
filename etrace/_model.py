"""The model protocol, and a model's call as a function of plain pytrees.

A model is any `equinox.Module` with

    init_state() -> state                          a pytree of arrays
    __call__(state, *inputs) -> (outputs, state)   one step of one example
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._by_name import by_name, by_value


@dataclasses.dataclass(frozen=True)
class Spec:
    """Structure, shapes and dtypes of a pytree of arrays; hashable."""

    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @staticmethod
    def of(tree: PyTree, drop: int = 0) -> "Spec":
        """The spec of `tree`, with `drop` leading axes taken off every array."""
        leaves, treedef = jax.tree.flatten(tree)
        return Spec(treedef, tuple(_struct(x, drop) for x in leaves))

    def tree(self, lead: tuple[int, ...] = ()) -> PyTree:
        """Shapes and dtypes, with further leading axes."""
        leaves = [jax.ShapeDtypeStruct(lead + x.shape, x.dtype) for x in self.leaves]
        return self.treedef.unflatten(leaves)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by its treedef: pickle takes those of JAX's own containers alone.
        return Spec.of, (self.tree(),)

    def __str__(self) -> str:
        return eqx.tree_pformat(self.tree(), width=200, struct_as_array=True)

    def names(self) -> list[str]:
        paths, _ = jax.tree_util.tree_flatten_with_path(self.tree())
        return [jax.tree_util.keystr(path) for path, _ in paths]


def _struct(x: Any, drop: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x)[drop:], jax.dtypes.result_type(x))


@dataclasses.dataclass(frozen=True)
class Static:
    """The part of a model that is neither a parameter nor an array; hashable."""

    leaves: tuple[Any, ...]
    treedef: Any

    @staticmethod
    def of(tree: PyTree) -> "Static":
        leaves, treedef = jax.tree.flatten(tree)
        return Static(tuple(leaves), treedef)

    @staticmethod
    def named(tree: PyTree) -> "Static":
        """From a tree with names for functions."""
        return Static.of(by_value(tree))

    def tree(self) -> PyTree:
        return self.treedef.unflatten(self.leaves)

    def __reduce__(self) -> tuple[Any, ...]:
        return Static.named, (by_name(self.tree()),)


def is_array(x: Any) -> bool:
    """Whether `x` is an array, of JAX or of NumPy."""
    return eqx.is_array(x) or isinstance(x, np.ndarray | np.generic)


def split_model(model: eqx.Module) -> tuple[PyTree, PyTree, PyTree]:
    """Parameters (inexact arrays), constants (other arrays), and the rest."""
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    consts, static = eqx.partition(rest, is_array)
    return params, consts, static


@dataclasses.dataclass(frozen=True)
class Initial:
    """What `init_state` makes of a model's parameters; leaves go by their number.

    - `hidden`: the hidden leaves from which a gradient flows into parameters.
    - `uncredited`: the parameters into which one would flow from the other state.
    - `read`: the parameters that are read at all.
    - `error`: why JAX cannot trace `init_state`, or "".
    """

    hidden: tuple[int, ...] = ()
    uncredited: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    error: str = ""


@dataclasses.dataclass(frozen=True)
class BatchAxis:
    """The axis of a batch by the name that a step knows it by."""

    name: str
    size: int


@dataclasses.dataclass(frozen=True)
class Call:
    """One step of a model as a function of plain pytrees, for one example.

    Everything here is static, so that a `Call` can key a cache.
    """

    static: Static
    params: Spec
    consts: Spec
    hidden: Spec
    other: Spec
    inputs: Spec
    axis: BatchAxis | None = None
    initial: Initial = Initial()

    @staticmethod
    def of(
        model: eqx.Module,
        hidden_filter: Any,
        inputs: PyTree,
        axis: BatchAxis | None = None,
    ) -> "Call":
        """The step of a model with such inputs (arrays or shapes)."""
        params, consts, static = split_model(model)
        hidden, other = initial_state(model, hidden_filter)
        state = (Spec.of(hidden), Spec.of(other))
        arrays = (Spec.of(params), Spec.of(consts))
        return Call(Static.of(static), *arrays, *state, Spec.of(inputs), axis)

    @property
    def specs(self) -> tuple[Spec, ...]:
        """Of the arguments of `step`, in order."""
        return self.params, self.consts, self.hidden, self.other, self.inputs

    @property
    def carried(self) -> Spec:
        """Of what goes from step to step beside the hidden state: the other state, and
        whether no step was taken yet, if the initial state is made of parameters."""
        if not self.initial.hidden:
            return self.other
        first = jax.ShapeDtypeStruct((), jnp.bool_)
        return Spec.of((self.other.tree(), first))

    def step(
        self,
        params: PyTree,
        consts: PyTree,
        hidden: PyTree,
        other: PyTree,
        inputs: tuple[PyTree, ...],
    ) -> tuple[PyTree, PyTree, PyTree]:
        """(outputs, hidden, other) of the next step."""
        model: Any = eqx.combine(params, consts, self.static.tree())
        outputs, state = model(eqx.combine(hidden, other), *inputs)
        is_hidden = self.hidden_mask()
        hidden, other = eqx.partition(state, is_hidden)
        return outputs, hidden, other

    def initial_state(self, params: PyTree, consts: PyTree) -> tuple[PyTree, PyTree]:
        """(hidden, other) before the first step, as a function of the arrays."""
        model: Any = eqx.combine(params, consts, self.static.tree())
        return initial_state(model, self.hidden_mask())

    def hidden_mask(self) -> PyTree:
        """A tree of bools in the structure of the state."""
        missing = lambda x: x is None  # noqa: E731
        return jax.tree.map(
            lambda h: h is not None, self.hidden.tree(), is_leaf=missing
        )

    def check(self) -> None:
        """Raises if the model's step does not fit the protocol."""
        try:
            result = eqx.filter_eval_shape(
                self._whole_step,
                self.params.tree(),
                self.consts.tree(),
                eqx.combine(self.hidden.tree(), self.other.tree()),
                self.inputs.tree(),
            )
        except TypeError as error:
            raise TypeError(self._failed(error)) from error
        except ValueError as error:
            raise ValueError(self._failed(error)) from error
        except NameError as error:
            if "axis name" not in str(error):
                raise
            raise ValueError(nameless(str(error))) from error
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "model(state, *inputs) must return a pair (outputs, state); it "
                f"returned {kind_of(result)}."
            )
        for leaf in jax.tree.leaves(result):
            if not isinstance(leaf, jax.ShapeDtypeStruct):
                raise TypeError(
                    f"model(state, *inputs) returned {leaf!r}, {kind_of(leaf)}; "
                    "expected outputs and state to be pytrees of arrays. Leave out "
                    "what is not an array."
                )
        old, new = eqx.combine(self.hidden.tree(), self.other.tree()), result[1]
        self._check_state(Spec.of(old), Spec.of(new))

    def _whole_step(self, params, consts, state, inputs):
        model: Any = eqx.combine(params, consts, self.static.tree())
        return model(state, *inputs)

    def _failed(self, error: Exception) -> str:
        return (
            "model(state, *inputs) failed for one step of one example, with the inputs "
            f"{self.inputs}: {str(error).rstrip('.')}. The model is written per "
            "example: check the number and the shapes of the inputs. A leading batch "
            "axis is taken off only with batched=True, a leading time axis only from "
            "MultiStepData and by the drivers."
        )

    def _check_state(self, old: Spec, new: Spec) -> None:
        if old.treedef != new.treedef:
            raise ValueError(
                "model(state, *inputs) changed the structure of the state: "
                f"init_state() gave {old}, the step returned {new}. A step must return "
                "a state like the one it was given."
            )
        for name, a, b in zip(old.names(), old.leaves, new.leaves, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(
                    f"model(state, *inputs) changed the state leaf {name or 'state'}: "
                    f"it was {shape_of(a)}, the step returned {shape_of(b)}. A step "
                    "must keep shapes and dtypes; fix init_state() or cast inside the "
                    "step."
                )


def nameless(which: str) -> str:
    """A message about an operation over an axis that is not there."""
    return (
        f"model(state, *inputs) has an operation over a named axis: {which}. For one "
        "over the batch, as in eqx.nn.BatchNorm, give its name: batched=True, "
        "axis_name=.... For another, map the whole call: jax.vmap(..., axis_name=...)."
    )


def kind_of(x: Any) -> str:
    """What a value is, in the words of a message."""
    if x is None:
        return "None"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if isinstance(x, tuple):
        return f"a tuple of {len(x)}"
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"an array {shape_of(x)}"
    return f"a {type(x).__name__}"


def shape_of(x: Any) -> str:
    return f"{jax.dtypes.result_type(x).name}{list(jnp.shape(x))}"


def check_model(model: Any) -> None:
    """Raises unless `model` follows the protocol, as far as can be told uncalled."""
    if not isinstance(model, eqx.Module):
        raise TypeError(
            f"model is {kind_of(model)}; expected an instance of an equinox.Module "
            "with init_state() and __call__(state, *inputs)."
        )
    if not callable(getattr(model, "init_state", None)):
        raise TypeError(
            f"model, a {type(model).__name__}, has no method init_state(). Define "
            "init_state(self) to return the state before the first step, for one "
            "example."
        )
    if not callable(model):
        raise TypeError(
            f"model, a {type(model).__name__}, is not callable. Define "
            "__call__(self, state, *inputs) -> (outputs, state)."
        )
    params, consts, _ = split_model(model)
    if not jax.tree.leaves(params):
        integers = [shape_of(x) for x in jax.tree.leaves(consts)]
        found = f"only {', '.join(integers)}" if integers else "no array at all"
        raise TypeError(
            f"model, a {type(model).__name__}, has no parameter to learn: expected "
            f"floating-point or complex arrays, found {found}. Integer arrays are "
            "constants; cast weights to a float dtype."
        )


def initial_state(model: Any, hidden_filter: Any) -> tuple[PyTree, PyTree]:
    """(hidden, other) of the model's initial state for one example."""
    try:
        state = model.init_state()
    except TypeError as error:
        raise TypeError(
            f"model.init_state() failed: {error}. It takes no argument and returns the "
            "state of one example before the first step."
        ) from error
    state = jax.tree_util.tree_map_with_path(_state_leaf, state)
    try:
        hidden, other = eqx.partition(state, hidden_filter)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"hidden_filter does not fit the state {Spec.of(state)} of init_state(): "
            f"{error} Expected True, False or a function of a leaf, or a pytree of "
            "these that is structured like the state or its upper part."
        ) from error
    _check_hidden(hidden, state)
    return hidden, other


def _state_leaf(path: tuple[Any, ...], x: Any) -> jax.Array:
    """A leaf of the state as an array, of a dtype that a step can keep."""
    try:
        x = jnp.asarray(x)
    except TypeError as error:
        raise TypeError(
            f"model.init_state() returned {x!r}, {kind_of(x)}, at state"
            f"{jax.tree_util.keystr(path)}; expected a pytree of arrays. Make it a "
            "field of the model."
        ) from error
    # A Python number is weakly typed, what a step makes of it is not.
    weak = getattr(x, "weak_type", False)
    return jax.lax.convert_element_type(x, x.dtype) if weak else x


def _check_hidden(hidden: PyTree, state: PyTree) -> None:
    if not jax.tree.leaves(hidden) and any(
        map(eqx.is_inexact_array, jax.tree.leaves(state))
    ):
        raise ValueError(
            f"hidden_filter selects nothing from the state {Spec.of(state)} of "
            "init_state(): expected at least one of its floating-point or complex "
            "arrays, through which credit is assigned. Return one, or select it."
        )
    for x in jax.tree.leaves(hidden):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(
                f"hidden_filter selects a state leaf of type {shape_of(x)} as hidden; "
                "expected floating-point or complex leaves only, through which credit "
                "is assigned. Leave it out of the filter: it will be carried along."
            )
