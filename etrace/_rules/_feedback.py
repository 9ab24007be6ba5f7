r"""Where the learning signal at a neuron comes from.

By the chain rule, what a loss says about a value that others read is λ = Wᵀ ∂L/∂y with
the weights W they read it by: *symmetric* feedback. *Random* feedback replaces Wᵀ by
fixed random weights B from the output error, for any width of the read-out (Lillicrap
et al. 2016; Nøkland 2016). *Adaptive* feedback moves B by what moves the read-out,
B = B_0 + (W - W_0)ᵀ, so that the two align (Kolen & Pollack 1994; Bellec et al. 2020).
"""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .._analysis import Graph, exits_of
from .._backward import LearningSignals
from .._model import split_model
from .._program import Edge
from .._window import Window
from ._options import check_key

Feedback = Literal["symmetric", "random", "adaptive"]


class FeedbackWeights(eqx.Module):
    """What replaces the way back from the output error to the exits.

    - `kind`: `"symmetric"`, `"random"` or `"adaptive"`.
    - `key`: what random weights are drawn from.
    - `start`: the model that an adaptive B_0 belongs to.
    """

    kind: Feedback = eqx.field(static=True)
    key: PRNGKeyArray
    start: eqx.Module | None

    def __init__(self, kind: Feedback, key: PRNGKeyArray | None, model: eqx.Module):
        kinds = ("symmetric", "random", "adaptive")
        if kind not in kinds:
            raise ValueError(f"feedback must be one of {kinds}, got {kind!r}.")
        self.kind = kind
        self.key = jax.random.key(0) if key is None else check_key(key)
        self.start = model if kind == "adaptive" else None

    def signals(self, window: Window, signals: LearningSignals) -> LearningSignals:
        """With other signals at exits. What is itself an output keeps its own."""
        if self.kind == "symmetric":
            return signals
        error = _flat(signals.outputs, window)
        self._check(window.graph, error.shape[1])
        result = []
        for n, edge in enumerate(window.graph.exits.open):
            own = signals.spatial[n]
            if window.graph.leaves_by_mixing(edge):
                weights = self._weights(window, n, edge, error.shape[1], own)
                own = (error.astype(own.dtype) @ weights.T).reshape(own.shape)
            result.append(own)
        return signals.replaced(result)

    def hears(self, graph: Graph, group: int) -> bool:
        """Whether the error is sent to an exit of a group, whatever it leads to."""
        exits = exits_of(graph, group)
        return self.kind != "symmetric" and any(map(graph.leaves_by_mixing, exits))

    def _check(self, graph: Graph, width: int) -> None:
        """An adaptive one needs a read-out to follow."""
        exits = filter(graph.leaves_by_mixing, graph.exits.open)
        shapes = [graph.read_out_shape(edge) for edge in exits]
        if self.start is not None and not any(s and s[0] == width for s in shapes):
            raise ValueError(
                'feedback is "adaptive", but no weight of the model takes the state '
                f"to its {width} outputs in one product. Give the model a linear "
                'read-out, or use feedback="random".'
            )

    def _weights(
        self, window: Window, n: int, edge: Edge, width: int, like: Array
    ) -> Array:
        """B, [elements of the exit, outputs], as large as read-out weights usually."""
        size = like[0].size
        key = jax.random.fold_in(self.key, n)
        weights = jax.random.normal(key, (size, width), like.dtype) / size**0.5
        if self.start is None:
            return weights
        if window.graph.read_out_shape(edge) != (width, size):
            return weights
        now = window.graph.read_out(edge, window.params, window.consts)
        then = window.graph.read_out(edge, *split_model(self.start)[:2])
        return weights + jax.lax.stop_gradient(now - then).T


def _flat(outputs: Sequence[Array], window: Window) -> Array:
    """The output error, [time * batch, outputs]."""
    k, batch = window.size
    for x in outputs:
        if jnp.iscomplexobj(x):
            raise TypeError(
                "Random and adaptive feedback send back the error of real outputs; the "
                f"model has a complex one of dtype {x.dtype}. Return its real and "
                'imaginary part, or use feedback="symmetric".'
            )
    flat = [x.reshape(k * batch, -1) for x in outputs]
    dtype = jnp.result_type(*flat)
    return jnp.concatenate([x.astype(dtype) for x in flat], axis=1)
