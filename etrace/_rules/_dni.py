"""DNI: decoupled neural interfaces, a learned gradient at the end of a window."""

from typing import Any, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._forward import Ran
from .._options import Options, VjpMethod
from .._trace import Trace
from ._drtrl import DRTRL
from ._wrapping_rule import Rule, WrappingRule, make_inner


class DNI(WrappingRule):
    r"""DNI: a rule that is also told what the future will say.

    A window's loss knows nothing of the losses behind its end. A *synthesiser* ĝ
    estimates them from the state there; its estimate of the future loss's gradient is
    added to the gradient at the window's last state h_k,

        ∂L/∂h_k := ĝ(h_k)

    and goes on from there as the rule has it: into the parameters by the last step and
    its traces, or, with `vjp_method="multi-step"`, by reverse mode through the window.
    With a perfect synthesiser and "multi-step" the gradient is that of BPTT.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][], and

    - `synthesiser`: an `equinox.Module` from the hidden state of one example to a
        pytree like it: the gradient of the sum of all later losses by that state. It
        should give zeros at first; [`etrace.fit_synthesiser`][] trains it.
    - `rule`: whose traces are used, as for [`etrace.ThreeFactor`][].
    - `window`: the length of the windows it was fitted for; None for any.

    **Raises:** ValueError if it is run with windows of another length.

    ??? cite "Reference"

        Jaderberg, Czarnecki, Osindero et al., Decoupled neural interfaces using
        synthetic gradients, ICML 2017, section 2.1.
    """

    synthesiser: eqx.Module
    inner: ETraceVjpAlgorithm
    window: int | None = eqx.field(static=True)
    rule: Rule = eqx.field(static=True)

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        synthesiser: eqx.Module,
        rule: Rule = DRTRL,
        window: int | None = None,
        **options: Unpack[Options],
    ):
        super().__init__(model, name, vjp_method, **options)
        if not callable(synthesiser):
            raise TypeError(
                f"synthesiser is {synthesiser!r}; expected an equinox.Module that "
                "takes the hidden state to a pytree of its structure."
            )
        self.synthesiser = synthesiser
        self.inner = make_inner(rule, model, vjp_method, **options)
        self.window = window
        self.rule = rule

    def fitted(self, synthesiser: eqx.Module, window: int) -> "DNI":
        """The same algorithm with another synthesiser, for windows of this length."""
        return DNI(
            self.model,
            self.name,
            self.vjp_method,
            synthesiser=synthesiser,
            rule=self.rule,
            window=window,
            batched=self.batched,
            axis_name=self.axis_name,
            trace_dtype=self.inner.trace_dtype,
            hidden_filter=self.hidden_filter,
            mixing_tails=self.inner.mixing_tails,
            position_size=self.inner.position_size,
        )

    def _gradients(
        self, trace: Trace, ran: Ran, cotangents: tuple[PyTree, PyTree | None]
    ) -> tuple[PyTree, list[Array]]:
        if self.window not in (None, ran.window.length):
            raise ValueError(
                f"The synthesiser was fitted for windows of {self.window} steps, but "
                f"this one has {ran.window.length}. Run it with window={self.window} "
                "and sequences that this divides, or fit it again."
            )
        outputs, at_end = cotangents
        zeros = jax.tree.map(jnp.zeros_like, ran.last)
        hidden, other = zeros if at_end is None else at_end
        estimate = estimated(self.synthesiser, ran.last[0])
        hidden = jax.tree.map(jnp.add, hidden, estimate)
        return super()._gradients(trace, ran, (outputs, (hidden, other)))


def estimated(synthesiser: Any, hidden: PyTree) -> PyTree:
    """ĝ of the hidden states of a batch."""
    if not jax.tree.leaves(hidden):  # there is nothing to estimate
        return hidden
    found = jax.vmap(synthesiser)(hidden)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
    if shapes(found) != shapes(hidden):
        raise ValueError(
            f"The synthesiser returned arrays of shapes {shapes(found)} for a batch of "
            f"hidden states of shapes {shapes(hidden)}; expected the same."
        )
    return found
