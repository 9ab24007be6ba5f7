"""Every learning rule: a new one joins all contract tests by one line in `RULES`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import etrace
import etrace.testing as et
from etrace.testing import rules as references

from .toy_rule import LeakyReference, LeakyTrace

BOTH = ("single-step", "multi-step")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule with its options.

    - `make`: the algorithm, from a model and the keywords of every rule.
    - `reference`: what it must equal, one of `etrace.testing.rules`.
    - `methods`: its `vjp_method`s.
    - `single`: whether it needs one number a neuron.
    - `modulated`: whether it is given a modulator.
    - `real`: whether it is written for real numbers alone.
    """

    make: Callable[..., etrace.ETraceVjpAlgorithm]
    reference: Any = None
    methods: tuple[str, ...] = BOTH
    single: bool = False
    modulated: bool = False
    real: bool = False

    def fits(self, spec: et.NetSpec) -> bool:
        kinds = [layer.kind for layer in spec.layers]
        if self.real and "complex_lru" in kinds:
            return False
        return not self.single or all(map(is_single, kinds))


def is_single(kind: str) -> bool:
    """Whether a neuron of this kind has one real number."""
    return et.CELLS[kind].leaves == 1 and kind != "complex_lru"


class NoSynthesis(eqx.Module):
    """A synthesiser as it is before it is trained."""

    def __call__(self, hidden: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, hidden)


_part = functools.partial
_now = ("single-step",)
KEY = jax.random.key(7)

RULES: dict[str, Rule] = {
    "DRTRL": Rule(etrace.DRTRL, references.DRTRL()),
    "ESDRTRL": Rule(
        _part(etrace.ESDRTRL, decay=(0.7, 0.8)), references.ESDRTRL((0.7, 0.8))
    ),
    "HybridDRTRL": Rule(
        _part(etrace.HybridDRTRL, decay=0.8, factored=lambda m: m.cells[0]),
        references.ESDRTRL(0.8, factored=lambda m: m.cells[0]),
    ),
    "EProp": Rule(_part(etrace.EProp, kappa=0.7), references.EProp(0.7), _now),
    "OSTL": Rule(etrace.OSTL, references.OSTL()),
    "OTTT": Rule(_part(etrace.OTTT, leak=0.7), references.OTTT(0.7), _now),
    "OTPE": Rule(_part(etrace.OTPE, leak=0.7), references.OTPE(0.7), _now),
    "OTPE, factored": Rule(
        _part(etrace.OTPE, leak=0.7, factored=True), references.FactoredOTPE(0.7), _now
    ),
    "RFLO": Rule(
        _part(etrace.RFLO, leak=0.7, feedback="symmetric"),
        references.RFLO(0.7),
        _now,
        single=True,
    ),
    "RTRL": Rule(etrace.RTRL),
    "UORO": Rule(_part(etrace.UORO, key=KEY)),
    "KFRTRL": Rule(_part(etrace.KFRTRL, key=KEY)),
    "SnAp": Rule(_part(etrace.SnAp, n=2), references.SnAp(2)),
    "ThreeFactor": Rule(
        etrace.ThreeFactor,
        references.ThreeFactor(references.DRTRL()),
        _now,
        modulated=True,
    ),
    "ThreeFactor of ESDRTRL": Rule(
        _part(etrace.ThreeFactor, rule=_part(etrace.ESDRTRL, decay=0.8)),
        references.ThreeFactor(references.ESDRTRL(0.8)),
        _now,
        modulated=True,
    ),
    "DNI": Rule(_part(etrace.DNI, synthesiser=NoSynthesis()), references.DRTRL()),
    "a toy": Rule(LeakyTrace, LeakyReference(), real=True),
    "EProp, random feedback": Rule(
        _part(etrace.EProp, kappa=0.7, feedback="random"), None, _now
    ),
}

#: One rule of each family, which store and move their traces in ways of their own: per
#: parameter, factored, with a filter of what a layer emits, of the state as a whole,
#: exact and by random signs, around another rule, and written by a user.
FAMILIES = ("DRTRL", "ESDRTRL", "OTPE", "SnAp", "UORO", "ThreeFactor", "a toy")
