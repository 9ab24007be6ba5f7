"""How good a rule's gradient is, on one's own model and data."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._algorithm import ETraceVjpAlgorithm
from .._analysis import Graph, Row, table
from .._check_sequence import Sequence, check_window
from .._loss import Loss, LossFn, Reduction
from .._mask import finite_inputs
from .._rules import RTRL
from .._sequence import begun, starting, value_and_grad
from ._compared import Comparison, compared
from ._lags import Lag, by_lag
from ._locality import locality
from ._moves import Losses, Missed, missed, slopes
from ._reference import bptt

# RTRL is asked as well if its influence matrix has at most so many numbers.
_AFFORDABLE = 2**22

_REMEDY = (
    "Use the spike as the surrogate gives it, in products rather than comparisons; or "
    "widen the surrogate. If it is meant to be held: frozen=(its name,)."
)


@dataclasses.dataclass(frozen=True)
class CheckedParameter:
    """One parameter of a `GradientCheck`.

    - `name`: where it is in the model, such as `.cell.weight_hh`.
    - `status`: as in a [`etrace.Report`][]; of several, the one that leaves out most.
    - `reason`: what the report says is left out of its gradient.
    - `comparison`: of the rule's gradient with that of backpropagation through time.
    - `rtrl`: |r - e| / |e| of the gradient r of RTRL and that of backpropagation, None
        if RTRL was not affordable.
    - `slope`: the same for the slope of the loss along one random direction, by
        differences of losses; their rounding errors are not counted.
    - `missed`: numbers whose gradient by backpropagation is exactly zero, though the
        loss moves with them: how many, by how much, and where derivatives end; else
        None.
    """

    name: str
    status: str
    reason: str
    comparison: Comparison
    rtrl: float | None
    slope: float
    missed: Missed | None


@dataclasses.dataclass(frozen=True, eq=False)
class GradientCheck:
    """What [`etrace.check_gradients`][] found. Print it, plot it, assert it.

    - `name`: of the algorithm.
    - `parameters`: of each its `name`, its `status` as in a [`etrace.Report`][] (of
        several, the one that leaves out most) with the `reason` given there, a
        `comparison` of the rule's gradient g with that of backpropagation e, and two
        tests of the latter: `rtrl` and `slope`, the relative difference from the
        gradient of RTRL (None if that is not affordable), and of the slope along a
        random direction from differences of losses. `missed` tells of numbers whose
        gradient is exactly zero though the loss moves with them, else it is None.
    - `total`: the comparison of all parameters as one vector. A comparison has the
        `norm` |e|, the `cosine` of the angle between g and e, the `error`
        |g - e| / |e|, the `ratio` |g| / |e|, and the fraction of numbers whose `signs`
        agree.
    - `lags`: the credit for the loss of the last step, by how far it goes back: from
        `first` to `last` steps, its `share` of the norm, and a `comparison`.
    - `locality`: the largest relative difference between what signals at all positions
        say at a site together, and each alone. Rounding errors, or the analysis of the
        model is wrong.
    - `own_derivatives`: whether the model has derivatives of its own (`custom_jvp`,
        `custom_vjp`), such as surrogate gradients. Differences of losses need not agree
        with these.
    - `gradient`, `exact`: the rule's gradient, and that of backpropagation.
    """

    name: str
    parameters: tuple[CheckedParameter, ...]
    total: Comparison
    lags: tuple[Lag, ...]
    locality: float
    own_derivatives: bool
    gradient: PyTree
    exact: PyTree

    def __str__(self) -> str:
        head = ["parameter", "status", "cosine", "error", "norms", "signs"]
        head += ["BPTT - RTRL", "BPTT - slope", "note"]
        rows = [[*_row(p), _note(p)] for p in self.parameters]
        rows.append(["all", "", *_shown(self.total), "", "", ""])
        lags = [
            [_steps(lag), f"{lag.share:.2f}", *_shown(lag.comparison)]
            for lag in self.lags
        ]
        names = ["steps back", "share", "cosine", "error", "norms", "signs"]
        parts = [f"{self.name}: its gradient and that of BPTT", *table(head, rows)]
        parts += ["", "Credit for the last loss, by lag", *table(names, lags)]
        parts += ["", f"Locality of the analysis: off by {self.locality:.0e}"]
        if self.own_derivatives:
            parts += [
                "The model has derivatives of its own (surrogate gradients, say): "
                "slopes by differences of losses need not agree."
            ]
        return "\n".join(parts)

    __repr__ = __str__

    def assert_close(
        self,
        rtol: float | None = None,
        *,
        cosine: float | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        """Raises an AssertionError that names the parameters whose gradient is not that
        of backpropagation.

        **Arguments:**

        - `rtol`: the largest relative error |g - e| / |e|; the square root of the
            precision if neither is given.
        - `cosine`: the smallest cosine, for rules that approximate.
        - `frozen`: names of parameters that are held on purpose, such as `.mask`: they
            may move the loss without a gradient.

        Whichever is given, the analysis must be local, RTRL agree with BPTT, and no
        number whose gradient is exactly zero move the loss: smoothly, or in jumps, as
        the spikes change.

        **Raises:** AssertionError; ValueError if `frozen` names no parameter.
        """
        _check_frozen(frozen, [p.name for p in self.parameters])
        precision = math.sqrt(_precision(self.exact))
        wrong = [
            f"{p.name}: BPTT and RTRL differ by {p.rtrl:.1e}"
            for p in self.parameters
            if p.rtrl is not None and not p.rtrl <= precision
        ]
        if not self.locality <= precision:
            wrong.append(f"the analysis of the model is off by {self.locality:.1e}")
        moved = (p for p in self.parameters if p.missed and p.name not in frozen)
        wrong += [f"{p.name}: {p.missed}. {_REMEDY}" for p in moved]
        if rtol is None and cosine is None:
            rtol = precision
        for p in self.parameters:
            found = p.comparison
            if rtol is not None and not found.error <= rtol:
                wrong.append(f"{p.name}: error {found.error:.1e} > rtol = {rtol:.1e}")
            if cosine is not None and not found.cosine >= cosine:
                wrong.append(f"{p.name}: cosine {found.cosine:.3f} < {cosine}")
        if wrong:
            raise AssertionError("\n  ".join([f"{self.name}:", *wrong]) + f"\n{self}")

    def plot(self, axes: Any = None) -> Any:
        """Draws it with matplotlib, see [`etrace.plot.gradient_check`][]."""
        from ..plot import gradient_check

        return gradient_check(self, axes)


def check_gradients(
    algorithm: ETraceVjpAlgorithm,
    loss_fn: LossFn,
    inputs: PyTree,
    targets: PyTree,
    mask: Any = None,
    modulator: Any = None,
    *,
    window: int = 1,
    reduction: Reduction = "mean",
) -> GradientCheck:
    """Compares a rule's gradient with the exact one, on a model and a sequence.

    It takes much longer than training on the sequence, as nothing is left unasked: use
    a short one, of a few examples. In float32 expect errors of 1e-6 to 1e-3; with
    `jax.config.update("jax_enable_x64", True)` exact rules agree to 1e-9.

    - By parameter: the rule, against backpropagation through time (BPTT).
    - BPTT itself, against differences of losses and, where affordable, RTRL.
    - Numbers whose gradient is exactly zero: whether the loss moves with them. Then
        credit is lost in the model, behind a comparison of spikes, say.
    - By lag: how far back the credit for the last loss goes, and how right it is there.
    - The analysis of the model, by random signals on the real values.

    ```python
    check = etrace.check_gradients(algorithm, loss_fn, inputs, targets)
    print(check)  # tables
    check.plot()  # the same as a picture
    check.assert_close(cosine=0.9)  # in a test
    ```

    **Arguments:** as for [`etrace.value_and_grad`][] and the function it returns. The
    sequence begins with the model's initial state.

    **Returns:** a [`etrace.GradientCheck`][].

    **Raises:** ValueError or TypeError as [`etrace.value_and_grad`][] does.
    """
    check_window(window, reduction)
    loss = Loss(loss_fn, window, reduction, has_aux=False, carry=False)
    data = (inputs, targets, mask, modulator)
    sequence, graph = loss.prepare(algorithm, None, *data)
    loss.check(sequence, graph)
    state = begun(algorithm, *starting(algorithm, graph, None, sequence), sequence)
    sequence = finite_inputs(sequence)
    driver = value_and_grad(loss_fn, window=window, reduction=reduction, carry=False)
    _, gradient = driver(algorithm, None, *data)
    never = jnp.zeros(sequence.length, bool)
    _, exact = bptt(loss, algorithm, state, sequence, never)
    leaves = [jax.tree.leaves(tree) for tree in (gradient, exact)]
    by_rtrl = _distances(RTRL, graph, algorithm, driver, state, data, leaves[1])
    losses = Losses(loss, algorithm, state, sequence)
    params = jax.tree.leaves(eqx.filter(algorithm.model, eqx.is_inexact_array))
    by_slope = slopes(losses, params, leaves[1])
    blind = missed(losses, params, leaves[1], graph)
    found = zip(*leaves, by_rtrl, by_slope, blind, strict=True)
    return GradientCheck(
        algorithm.name,
        _checked(graph, _said(algorithm, sequence), found),
        compared(gradient, exact),
        by_lag(loss, algorithm, state, sequence),
        float(locality(algorithm, state, sequence)),
        graph.has_own_derivatives,
        gradient,
        exact,
    )


def _checked(
    graph: Graph, said: Mapping[str, tuple[str, str]], found: Iterable[tuple]
) -> tuple[CheckedParameter, ...]:
    """Of every parameter, from (gradient, exact one, distance of RTRL, slope, what is
    missed)."""
    names = graph.call.params.names()
    return tuple(
        CheckedParameter(
            name, *said[name], compared(g, e), by_rtrl, _relative(*slope), blind
        )
        for name, (g, e, by_rtrl, slope, blind) in zip(names, found, strict=True)
    )


def _distances(
    rule: Callable[..., ETraceVjpAlgorithm],
    graph: Graph,
    algorithm,
    driver,
    state,
    data,
    exact: list,
) -> list[float | None]:
    """Of each parameter, the distance of a rule's gradient, if it is affordable and
    examples do not depend on each other."""
    size = sum(x.size for x in jax.tree.leaves(state[0]))
    if graph.across or size * sum(x.size for x in exact) > _AFFORDABLE:
        return [None] * len(exact)
    exact_rule = rule(
        algorithm.model,
        batched=algorithm.batched,
        axis_name=algorithm.axis_name,
        hidden_filter=algorithm.hidden_filter,
    )
    inputs, targets, mask, _ = data
    _, found = driver(exact_rule, None, inputs, targets, mask)
    return [compared(r, e).error for r, e in zip(jax.tree.leaves(found), exact)]


def _said(
    algorithm: ETraceVjpAlgorithm, sequence: Sequence
) -> dict[str, tuple[str, str]]:
    """By parameter, (status, reasons) of the report."""
    first = jax.tree.map(lambda x: x[0], sequence.inputs)
    order = ("unused", "output", "traced", "partly", "now")
    found: dict[str, list[Row]] = {}
    for row in algorithm.graph(*first).rows:
        found.setdefault(row.parameter, []).append(row)
    return {
        name: (
            max((row.status for row in rows), key=order.index),
            "; ".join(dict.fromkeys(row.reason for row in rows if row.reason)),
        )
        for name, rows in found.items()
    }


def _row(p: CheckedParameter) -> list[str]:
    return [p.name, p.status, *_shown(p.comparison), _small(p.rtrl), _small(p.slope)]


def _relative(found: float, expected: float, rounding: float) -> float:
    scale = max(abs(found), abs(expected))
    return max(0.0, abs(found - expected) - rounding) / (scale or 1.0)


def _note(p: CheckedParameter) -> str:
    return "; ".join(filter(None, (p.reason, str(p.missed or ""))))


def _check_frozen(frozen: Collection[str], names: list[str]) -> None:
    unknown = [f for f in frozen if f not in names]
    if isinstance(frozen, str) or unknown:
        raise ValueError(
            f"frozen is {frozen!r}; expected a collection of names of parameters, of "
            f"{', '.join(names)}."
        )


def _precision(tree: PyTree) -> float:
    return max(
        (float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(tree)), default=0
    )


def _steps(lag: Lag) -> str:
    return f"{lag.first}" if lag.first == lag.last else f"{lag.first} to {lag.last}"


def _shown(found: Comparison) -> list[str]:
    return [
        f"{found.cosine:.3f}",
        _small(found.error),
        f"{found.ratio:.2f}",
        f"{100 * found.signs:.0f} %",
    ]


def _small(x: float | None) -> str:
    return "-" if x is None else f"{x:.0e}" if x < 0.01 else f"{x:.2f}"
