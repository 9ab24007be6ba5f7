"""Stacks of recurrent layers with a read-out, described by plain data, marked and
grouped by hand."""

import dataclasses
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PyTree

from ._cells import CELLS, AbstractCell, Recipe, Wiring
from ._groups import StateGroup
from ._marks import mixing_input, new_state, site
from ._parts import DENSE_FORMS, Projection, Random, normal_arrays
from ._readouts import Readout

_SPACE = {"conv1d": (4,), "conv2d": (3, 3)}
_KERNEL = {"conv1d": 3, "conv2d": 2}
_VOCABULARY = 4


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One recurrent layer.

    - `kind`: one of `etrace.testing.CELLS`.
    - `size`: neurons, or channels of a convolutional layer.
    - `form`, `expression`: how the input projection is applied, one of `FORMS`, and
        what its weight is an expression of, one of `EXPRESSIONS`. A recurrent
        projection takes the same ones where it can.
    - `recurrent`: whether a cell that may do without recurrent weights has them.
    - `decay`, `shared_decay`: how a decay is parametrised, and whether it is one number
        for all neurons.
    - `norm`: a layer norm without parameters between the projections and the state. The
        projections are not traced then.
    - `gain`: a trainable gain after each projection.
    - `delayed`: the layer reads the lower layer's state of the step before, not its
        output of this step.
    - `padding`, `stride`: of a convolution; one whose kernel does not fit is padded.
    """

    kind: str = "gru"
    size: int = 3
    form: str = "wx"
    expression: str = "plain"
    recurrent: bool = True
    decay: str = "sigmoid"
    shared_decay: bool = False
    norm: bool = False
    gain: bool = False
    delayed: bool = False
    padding: str = "SAME"
    stride: int = 1

    @property
    def has_recurrence(self) -> bool:
        rule = CELLS[self.kind].recurrence
        return rule == "always" or (rule == "optional" and self.recurrent)


@dataclasses.dataclass(frozen=True)
class NetSpec:
    """A stack of layers, a read-out, and what else the model does.

    - `inputs`: features of the input, or its channels.
    - `readout`: one of `etrace.testing.READOUTS`.
    - `encoder`: a dense layer before the first recurrent one; only traced if nothing
        mixes between it and the state.
    - `tied`: one recurrent weight for all layers; they must be equal in kind, size and
        form.
    - `feedback`: the first layer also reads the last layer's state of the step before.
    - `counter`: the state holds an integer that counts the steps and scales the
        outputs.
    - `second_input`: the model takes a second input, which multiplies the first.
    - `initial`: what the initial state is: "zeros", or learnt: "tanh" of a parameter
        for every number, or a "matrix" for every leaf times two parameters for all.
    """

    layers: tuple[LayerSpec, ...] = (LayerSpec(),)
    inputs: int = 2
    readout: str = "linear"
    encoder: bool = False
    tied: bool = False
    feedback: bool = False
    counter: bool = False
    second_input: bool = False
    initial: Literal["zeros", "tanh", "matrix"] = "zeros"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one step's input; `()` stands for an integer token below 4."""
        first = self.layers[0]
        if first.form == "embed":
            return ()
        if first.form == "elementwise":
            return (first.size,)
        return (self.inputs, *_SPACE.get(first.form, ()))

    @property
    def untraced_encoder(self) -> bool:
        return self.encoder and (
            self.layers[0].form != "elementwise" or self.layers[0].norm
        )

    @property
    def exact(self) -> bool:
        """Whether D-RTRL is BPTT: one layer without recurrent weights, every weight
        before the state traced."""
        (first, *others) = self.layers
        whole = not (first.norm or self.untraced_encoder)
        return not others and not first.has_recurrence and whole and not self.feedback

    def check(self) -> None:
        """Raises a ValueError where the options do not fit together."""
        first, *others = self.layers
        if first.form in ("embed", *_SPACE) and (self.encoder or self.feedback):
            raise ValueError(
                "An encoder or feedback needs a dense or elementwise first layer."
            )
        if self.feedback and any(
            layer.form in ("elementwise", *_SPACE) for layer in self.layers
        ):
            raise ValueError("Feedback needs dense layers.")
        if first.form == "embed" and self.second_input:
            raise ValueError(
                "A second input multiplies the first, which must not be a token."
            )
        if any(layer.form in ("embed", "elementwise", "conv2d") for layer in others):
            raise ValueError(
                "Embeddings, elementwise inputs and 2-D convolutions only fit the "
                "first layer."
            )
        same = {
            (s.kind, s.size, s.form, s.expression, s.gain, s.has_recurrence)
            for s in self.layers
        }
        plain = first.form in DENSE_FORMS and first.has_recurrence
        if self.tied and (
            len(same) > 1 or not plain or any(s.norm for s in self.layers)
        ):
            raise ValueError(
                "Tied layers must be equal, dense, recurrent and without norm."
            )
        if self.readout == "tied" and self.layers[-1].form not in ("wx", "einsum"):
            raise ValueError(
                'A "tied" read-out needs a last layer of the form "wx" or "einsum".'
            )


class RandomNet(eqx.Module):
    """The model that a [`etrace.testing.NetSpec`][] describes.

    The state is `{"cells": (a state for every layer, ...)}`, with `"count"` if there is
    a counter.
    """

    encoder: Float[Array, "inputs inputs"] | None
    cells: tuple[AbstractCell, ...]
    readout: Readout
    h0: tuple[Float[Array, "..."] | Complex[Array, "..."], ...]
    spec: NetSpec = eqx.field(static=True)

    def __init__(self, spec: NetSpec, *, seed: int = 0, dtype: Any = None) -> None:
        """**Arguments:** `dtype` of all parameters is JAX's default float unless
        given."""
        spec.check()
        random = normal_arrays(seed, jnp.zeros(0).dtype if dtype is None else dtype)
        shape = spec.input_shape
        self.spec = spec
        self.encoder = random((*shape, *shape)) if spec.encoder else None
        cells = []
        for index, layer in enumerate(spec.layers):
            extra = spec.layers[-1].size if spec.feedback and index == 0 else 0
            fan_in = (shape[0] + extra, *shape[1:]) if shape else (_VOCABULARY,)
            cells.append(_cell(layer, fan_in, spec.tied and index > 0, random))
            shape = cells[-1].wiring.shape
        self.cells = tuple(cells)
        self.readout = Readout(
            spec.readout,
            [cell.wiring.shape for cell in cells],
            spec.input_shape,
            random,
        )
        self.h0 = _initial_parameters(spec.initial, self._zeros(), random)

    def _zeros(self) -> tuple[PyTree, ...]:
        return tuple(cell.init_state() for cell in self.cells)

    def init_state(self) -> dict[str, Any]:
        leaves, treedef = jax.tree.flatten(self._zeros())
        if self.spec.initial == "tanh":
            leaves = list(map(jnp.tanh, self.h0))
        elif self.spec.initial == "matrix":
            two, *matrices = self.h0
            pairs = zip(matrices, leaves, strict=True)
            leaves = [(m @ two).reshape(x.shape).astype(x.dtype) for m, x in pairs]
        state: dict[str, Any] = {"cells": treedef.unflatten(leaves)}
        return (
            {**state, "count": jnp.zeros((), jnp.int32)} if self.spec.counter else state
        )

    def feeds(self, layer: int) -> tuple[int, ...]:
        """The groups that layer's operations reach within a step: its own, and those of
        the layers that read its output."""
        reached = [layer]
        for above in range(layer + 1, len(self.cells)):
            if self.spec.layers[above].delayed:
                break
            reached.append(above)
        return tuple(reached)

    def __call__(
        self, state: dict[str, Any], *inputs: Array
    ) -> tuple[PyTree, dict[str, Any]]:
        x = first = inputs[0] * inputs[1] if self.spec.second_input else inputs[0]
        if self.encoder is not None:
            x = jnp.tanh(site(jnp.matmul, self.encoder, x))
        old, new, outputs = state["cells"], [], []
        last = len(self.cells) - 1
        if self.spec.feedback:
            top = self.cells[-1].visible(old[-1])
            x = jnp.concatenate([x, mixing_input(top, self.feeds(0), of=last)])
        for index, (cell, layer) in enumerate(
            zip(self.cells, self.spec.layers, strict=True)
        ):
            if index > 0:
                below = self.cells[index - 1]
                x = below.visible(old[index - 1]) if layer.delayed else outputs[-1]
                x = mixing_input(x, self.feeds(index), of=index - 1)
                x = x.reshape(cell.wiring.inp.in_shape)
            if self.spec.tied and index > 0:
                cell = eqx.tree_at(
                    lambda c: c.wiring.rec,
                    cell,
                    self.cells[0].wiring.rec,
                    is_leaf=lambda n: n is None,
                )
            output, cell_state = cell(old[index], x, self.feeds(index))
            if output is cell_state:
                output = cell_state = new_state(output, index)
            outputs.append(output)
            new.append(cell_state)
        y = self.readout(
            outputs, self.cells[-1].visible(old[-1]), first, self.cells[-1].wiring.inp
        )
        if not self.spec.counter:
            return y, {"cells": tuple(new)}
        scale = 1 + 0.1 * state["count"].astype(outputs[-1].dtype)
        y = jax.tree.map(lambda leaf: scale * leaf, y)
        return y, {"cells": tuple(new), "count": state["count"] + 1}

    @property
    def groups(self) -> tuple[StateGroup, ...]:
        """One group a layer."""
        ends = np.cumsum([cell.leaves for cell in self.cells])
        starts = [0, *ends[:-1]]
        return tuple(
            StateGroup(tuple(range(a, b))) for a, b in zip(starts, ends, strict=True)
        )

    @property
    def exact(self) -> bool:
        """Whether D-RTRL equals BPTT for this model."""
        return self.spec.exact

    def untraced(self) -> PyTree[bool]:
        """The parameters that get no trace, since something mixes between them and the
        state: a filter specification."""
        spec: PyTree[bool] = jax.tree.map(lambda _: False, self)

        def chosen(net: Any) -> list[Any]:
            nodes = [net.encoder] if self.spec.untraced_encoder else []
            for cell, layer in zip(net.cells, self.spec.layers, strict=True):
                for projection in (cell.wiring.inp, cell.wiring.rec):
                    if projection is not None and layer.norm:
                        nodes.append(projection)
            return nodes

        if not chosen(self):
            return spec
        return eqx.tree_at(
            chosen, spec, replace_fn=lambda node: jax.tree.map(lambda _: True, node)
        )


def _initial_parameters(kind: str, zeros: PyTree, random: Random) -> tuple[Array, ...]:
    """What the initial state is made of, for a state like `zeros`."""
    leaves = jax.tree.leaves(zeros)
    if kind == "tanh":
        return tuple(
            jax.lax.complex(random(x.shape), random(x.shape))
            if jnp.iscomplexobj(x)
            else random(x.shape)
            for x in leaves
        )
    if kind == "matrix":
        return (random((2,)), *(random((x.size, 2), 0.5) for x in leaves))
    return ()


def _cell(
    layer: LayerSpec, in_shape: tuple[int, ...], tied: bool, random: Random
) -> AbstractCell:
    """A layer for inputs of `in_shape`; a tied one borrows the first layer's recurrent
    projection."""
    make = CELLS[layer.kind]
    options: dict[str, Any] = {"expression": layer.expression, "gain": layer.gain}
    convolutional = layer.form in _SPACE
    if convolutional and len(in_shape) != 1 + len(_SPACE[layer.form]):
        in_shape = (1, math.prod(in_shape))
    fits = convolutional and min(in_shape[1:]) >= _KERNEL[layer.form]
    padding = layer.padding if fits else "SAME"
    space = _space(layer, padding, in_shape) if convolutional else ()
    shape, gates = (layer.size, *space), make.gates * layer.size
    inp = Projection(
        layer.form,
        in_shape,
        (gates, *space),
        random,
        scale=1.5,
        bias=True,
        padding=padding,
        stride=layer.stride,
        **options,
    )
    rec = None
    if layer.has_recurrence and not tied:
        form = "wx" if layer.form in ("embed", "elementwise") else layer.form
        rec = Projection(form, shape, (gates, *space), random, **options)
    wiring = Wiring(inp, rec, layer.norm, shape)
    return make(wiring, Recipe(layer.decay, layer.shared_decay, random))


def _space(
    layer: LayerSpec, padding: str, in_shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The positions that a convolution leaves of those of its input."""
    lost = 0 if padding == "SAME" else _KERNEL[layer.form] - 1
    return tuple(-(-(n - lost) // layer.stride) for n in in_shape[1:])
