"""Three-factor learning: an eligibility times a modulator."""

import dataclasses
from typing import Any, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._algorithm import ETraceVjpAlgorithm, updated
from .._axes import examples_in
from .._backward import LearningSignals
from .._check import check_call, guarded
from .._data import as_arrays, untag
from .._forward import Ran
from .._modulation import Modulation, check_modulator
from .._options import Options, VjpMethod
from .._program import take
from .._trace import Trace
from .._window import Window
from ._drtrl import DRTRL
from ._options import check_single_step
from ._wrapping_rule import Rule, WrappingRule, make_inner


class ThreeFactor(WrappingRule):
    r"""Three-factor learning: a modulator in place of the learning signal.

    What a rule's traces hold ready is multiplied with one number for all neurons, or
    one for each: a reward, a temporal-difference error, a neuromodulator,

        dL_t/dθ = m_t · ε_t

    with ε_t the rule's trace at the new state, the step t itself included. The sign is
    that of a gradient, to be descended: give minus the reward to make it grow. A neuron
    of several numbers has the same m for each. Parameters that are not traced keep
    their instantaneous gradient of the loss.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][] (`vjp_method` is
    `"single-step"`), and

    - `rule`: whose traces are used: a rule's class, or a `functools.partial` of one
        with its options.

    The modulator is an argument of every call, `update(hidden, other, trace, *inputs,
    modulator=m)`, and of the drivers, `modulator=`, time-major.

    ??? cite "Reference"

        Frémaux & Gerstner, Neuromodulated spike-timing-dependent plasticity, and theory
        of three-factor learning rules, Front. Neural Circuits 9:85 (2016).
    """

    inner: ETraceVjpAlgorithm

    def __init__(
        self,
        model: eqx.Module,
        name: str | None = None,
        vjp_method: VjpMethod = "single-step",
        *,
        rule: Rule = DRTRL,
        **options: Unpack[Options],
    ):
        check_single_step(type(self), vjp_method)
        super().__init__(model, name, vjp_method, **options)
        self.inner = make_inner(rule, model, vjp_method, **options)

    def update(
        self,
        hidden: PyTree,
        other: PyTree,
        trace: Trace,
        *inputs: PyTree,
        modulator: Any = None,
    ) -> tuple[PyTree, PyTree, PyTree, Trace]:
        """As for any rule, with the modulator of the call.

        **Arguments:**

        - `modulator`: one number, or one per neuron, `[N]`; with `batched=True` a
            number, `[batch]` or `[batch, N]`. Tagged [`etrace.MultiStepData`][] it has
            a time axis in front, otherwise every step has the same. It may be left out
            where no gradient is asked for.
        """
        if modulator is None:
            return super().update(hidden, other, trace, *inputs)
        inputs = as_arrays(inputs)
        check_call(self, hidden, other, trace, inputs)
        plain, multi, _ = untag(inputs)
        several = jax.tree.leaves(multi)
        batch = examples_in(hidden, plain, several) if self.batched else None
        value = check_modulator(modulator, trace.graph, batch, inputs)
        inputs = (*inputs, Modulation(value))
        return updated(guarded(self, trace.graph), hidden, other, trace, inputs)

    def _takes_modulator(self) -> bool:
        return True

    def _run(
        self, params: PyTree, inputs: tuple, state: tuple[PyTree, PyTree], trace: Trace
    ) -> tuple[PyTree, tuple[PyTree, PyTree], Ran]:
        if not isinstance(inputs[-1], Modulation):
            return super()._run(params, inputs, state, trace)
        outputs, state, ran = super()._run(params, inputs[:-1], state, trace)
        value = inputs[-1].of_steps(*ran.window.size, self.batched)
        window = dataclasses.replace(ran.window, modulator=value)
        return outputs, state, dataclasses.replace(ran, window=window)

    def _learning_signals(
        self, window: Window, signals: LearningSignals
    ) -> LearningSignals:
        if window.modulator is None:
            raise ValueError(
                "modulator is missing: ThreeFactor learns from it. Give it to the "
                "call, update(..., modulator=m), or to the driver, modulator=m with a "
                "leading time axis."
            )
        graph = window.graph
        credit = [jnp.zeros_like(x) for x in signals.spatial]
        numbers = {edge: n for n, edge in enumerate(graph.exits.open)}
        for group in graph.positions.groups:
            for s, leaf in enumerate(group.leaves):
                n = numbers.get(graph.new_edge(leaf))
                if n is not None:
                    values = _per_position(window.modulator, group.size)
                    at_leaf = take(values, group.positions[s])
                    credit[n] = at_leaf.reshape(credit[n].shape).astype(credit[n].dtype)
        return signals.replaced(credit)


def _per_position(modulator: Array, size: int) -> Array:
    """[k * batch, P] of [k, batch] or [k, batch, P]."""
    rows = modulator.reshape(-1, *modulator.shape[2:])
    return (
        jnp.broadcast_to(rows[:, None], (len(rows), size)) if rows.ndim == 1 else rows
    )
