"""Read-outs, from the layers' outputs of a step to the model's outputs."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._marks import local_output, mixing_input
from ._parts import Projection, Random

READOUTS = (
    "linear",
    "mlp",
    "identity",
    "direct",
    "previous",
    "all",
    "skip",
    "mean",
    "tied",
)
_OUTPUTS = 2


class Readout(eqx.Module):
    """What the outputs are, by `form`:

    - `"linear"`: V out + b, of the last layer's output.
    - `"mlp"`: two dense layers.
    - `"identity"`: `{"y": gain * out}`, nothing mixes.
    - `"direct"`: `{"y": V out, "parameter": sin(p)}`, a parameter that goes nowhere
        else.
    - `"previous"`: V out + U (the last layer's state of the step before).
    - `"all"`: V [outputs of all layers].
    - `"skip"`: V out + U (the model's input), or V out for a token.
    - `"mean"`: the mean over neurons, a scalar.
    - `"tied"`: out @ W with W the first rows of the last layer's input weight.
    """

    weights: tuple[Float[Array, "..."], ...]
    form: str = eqx.field(static=True)

    def __init__(
        self,
        form: str,
        shapes: Sequence[tuple[int, ...]],
        inputs: tuple[int, ...],
        random: Random,
    ) -> None:
        sizes, last = [math.prod(shape) for shape in shapes], shapes[-1]
        dense = (_OUTPUTS, sizes[-1])
        made = {
            "linear": [dense, (_OUTPUTS,)],
            "mlp": [(3, sizes[-1]), (3,), (_OUTPUTS, 3)],
            "identity": [last],
            "direct": [dense, (_OUTPUTS,)],
            "previous": [dense, dense],
            "all": [(_OUTPUTS, sum(sizes))],
            "skip": [dense, (_OUTPUTS, math.prod(inputs))],
            "mean": [(), ()],
            "tied": [],
        }
        if form not in made:
            raise ValueError(f"readout must be one of {tuple(made)}, got {form!r}.")
        self.form = form
        self.weights = tuple(random(shape) for shape in made[form])

    def __call__(
        self, outputs: Sequence[Array], previous: Array, x: Array, inp: Projection
    ) -> PyTree[Array]:
        """**Arguments:** the layers' outputs, the last layer's previous state, the
        model's input, the last layer's projection."""
        last = len(outputs) - 1
        if self.form == "identity":
            return {"y": local_output(self.weights[0] * outputs[-1], last)}
        used = range(last + 1) if self.form == "all" else [last]
        parts = [mixing_input(outputs[k].reshape(-1), of=k) for k in used]
        out = jnp.concatenate(parts)
        if self.form == "mean":
            return self.weights[0] * jnp.mean(out) + self.weights[1]
        if self.form == "tied":
            return out @ inp.weight()[: out.size]
        y = self.weights[0] @ out
        if self.form == "linear":
            return y + self.weights[1]
        if self.form == "mlp":
            return self.weights[2] @ jnp.tanh(y + self.weights[1])
        if self.form == "direct":
            return {"y": y, "parameter": jnp.sin(self.weights[1])}
        if self.form == "previous":
            return y + self.weights[1] @ mixing_input(previous.reshape(-1), of=last)
        if self.form == "skip" and jnp.issubdtype(x.dtype, jnp.inexact):
            return y + self.weights[1] @ x.reshape(-1)
        return y
