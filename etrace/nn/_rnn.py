"""Layers one on top of the other, and cells of other libraries as layers."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


class CellLayer(eqx.Module):
    r"""A cell that is called as `cell(x, state) -> state`, as a layer.

    Equinox's own `GRUCell` and `LSTMCell` need none of this: [`etrace.nn.RNN`][] takes
    them as they are. It is for cells of other libraries, and for another initial state
    or output.

    **Arguments:**

    - `cell`: called as `cell(x, state) -> state` for one example.
    - `start`: called as `start() -> state`, the initial state, a pytree of arrays.
    - `output`: called as `output(state)`, what the layer returns beside its new state.
        By default the first array of the state: the h of an LSTM's `(h, c)`.

    **Raises:** TypeError if one of them cannot be called.
    """

    cell: Callable[[Any, PyTree], PyTree]
    start: Callable[[], PyTree]
    output: Callable[[PyTree], Any] | None

    def __init__(
        self,
        cell: Callable[[Any, PyTree], PyTree],
        start: Callable[[], PyTree],
        output: Callable[[PyTree], Any] | None = None,
    ):
        for name, value in [("cell", cell), ("start", start)]:
            if not callable(value):
                raise TypeError(f"{name} is {value!r}; expected a function.")
        if output is not None and not callable(output):
            raise TypeError(f"output is {output!r}; expected a function or None.")
        self.cell, self.start, self.output = cell, start, output

    def init_state(self) -> PyTree:
        return self.start()

    def __call__(self, state: PyTree, x: Any) -> tuple[Any, PyTree]:
        state = self.cell(x, state)
        if self.output is None:
            return jax.tree.leaves(state)[0], state
        return self.output(state), state


class RNN(eqx.Module):
    r"""Layers one on top of the other: each one's output is the next one's input.

    A layer is any of

    - a stateful layer: `init_state() -> state` and `__call__(state, x) -> (output,
        state)`. Everything in `etrace.nn` is one, an `RNN` too;
    - `equinox.nn.GRUCell` and `equinox.nn.LSTMCell`, from a state of zeros, with output
        h. Other cells called as `cell(x, state)`: see [`etrace.nn.CellLayer`][];
    - a function of one argument: `equinox.nn.Linear`, `equinox.nn.LayerNorm`,
        `jax.numpy.tanh`.

    All are written for one example. The state of an `RNN` is a tuple of one state for
    each layer, the read-out among them; that of a function is `()`.

    ```python
    rnn = etrace.nn.RNN(
        [eqx.nn.GRUCell(3, 32, key=k1), jnp.tanh, etrace.nn.LRU(32, 64, key=k2)],
        readout=eqx.nn.Linear(32, 1, key=k3),
    )
    ```

    **Arguments:**

    - `cells`: the layers, from input to output.
    - `readout`: the last layer, or None.

    **Raises:** TypeError if a layer is none of these, ValueError if there is none.
    """

    cells: tuple[Any, ...]
    readout: Any

    def __init__(self, cells: Sequence[Any], readout: Any = None):
        if not isinstance(cells, list | tuple):
            raise TypeError(
                f"cells is {_name(cells)}; expected a list of layers, [layer] for a "
                "single one."
            )
        if not cells:
            raise ValueError("cells is empty; expected one layer or more.")
        for i, layer in enumerate(cells):
            _check(f"cells[{i}]", layer)
        if readout is not None:
            _check("readout", readout)
        self.cells, self.readout = tuple(cells), readout

    def _layers(self) -> list[Any]:
        layers = self.cells if self.readout is None else (*self.cells, self.readout)
        return [_as_stateful(layer) for layer in layers]

    def init_state(self) -> tuple[PyTree, ...]:
        return tuple(layer.init_state() for layer in self._layers())

    def __call__(
        self, state: tuple[PyTree, ...], x: Any
    ) -> tuple[Any, tuple[PyTree, ...]]:
        new = []
        for layer, old in zip(self._layers(), state, strict=True):
            x, old = layer(old, x)
            new.append(old)
        return x, tuple(new)


class _Stateless(eqx.Module):
    """A function as a layer."""

    function: Callable[[Any], Any]

    def init_state(self) -> tuple[()]:
        return ()

    def __call__(self, state: tuple[()], x: Any) -> tuple[Any, tuple[()]]:
        return self.function(x), state


def _as_stateful(layer: Any) -> Any:
    """With `init_state`, and called as `layer(state, x)`."""
    if hasattr(layer, "init_state"):
        return layer
    if isinstance(layer, eqx.nn.GRUCell | eqx.nn.LSTMCell):
        zeros = jnp.zeros(layer.hidden_size, layer.weight_hh.dtype)
        state = zeros if isinstance(layer, eqx.nn.GRUCell) else (zeros, zeros)
        return CellLayer(layer, lambda: state)
    return _Stateless(layer)


def _check(name: str, layer: Any) -> None:
    """Raises unless the object is a layer of one of the three kinds."""
    if isinstance(layer, type):
        raise TypeError(f"{name} is the class {layer.__name__}; expected an instance.")
    if not callable(layer):
        raise TypeError(
            f"{name} is {_name(layer)}, which cannot be called; expected a layer: "
            "init_state() and layer(state, x), an Equinox cell, or a function of one "
            "argument."
        )
    stateful = hasattr(layer, "init_state")
    if isinstance(layer, eqx.nn.GRUCell | eqx.nn.LSTMCell):
        return
    arguments = (None, None) if stateful else (None,)
    try:
        inspect.signature(layer).bind(*arguments)
    except ValueError:
        return  # a function of C, which does not say what its arguments are
    except TypeError:
        expected = "layer(state, x)" if stateful else "layer(x)"
        remedy = (
            ""
            if stateful
            else " A cell called as cell(x, state) needs an initial state: "
            "etrace.nn.CellLayer(cell, start=lambda: state)."
        )
        raise TypeError(
            f"{name} is {_name(layer)}, which cannot be called as {expected}: its "
            f"arguments are {inspect.signature(layer)}.{remedy}"
        ) from None


def _name(value: Any) -> str:
    kind = type(value).__name__
    return f"a {kind}" if isinstance(value, eqx.Module) else f"{value!r}, a {kind}"
