"""Pictures of what a network does and of how it learns, on matplotlib axes.

Every function draws on the axes it is given, or on new ones, and returns them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._analysis import Report
from ._verify import GradientCheck

__all__ = [
    "alignment",
    "credit",
    "gradient_check",
    "memory",
    "over_time",
    "raster",
    "trace",
]


def raster(spikes: Any, axes: Any = None, *, dt: float = 1.0) -> Any:
    """The spikes of a population, a row for each neuron.

    **Arguments:**

    - `spikes`: `[time, neurons]`; whatever is not zero is a spike.
    - `dt`: the length of a step, for the time axis.
    """
    found = _two_axes("spikes", spikes, "[time, neurons]")
    (axes,) = _new(axes)
    time, neuron = np.nonzero(found)
    axes.scatter(time * dt, neuron, s=4, marker="|", color="black", linewidths=1)
    axes.set(xlim=(0, len(found) * dt), ylim=(-0.5, found.shape[1] - 0.5))
    axes.set(xlabel=_time(dt), ylabel="neuron")
    return axes


def over_time(
    values: Any, axes: Any = None, *, dt: float = 1.0, label: str = ""
) -> Any:
    """Membranes, adaptations or traces of a few neurons, one below the other.

    **Arguments:**

    - `values`: `[time, neurons]`.
    - `dt`: the length of a step, for the time axis.
    - `label`: of what is drawn.
    """
    found = _two_axes("values", values, "[time, neurons]").astype(float)
    (axes,) = _new(axes)
    height = 1.1 * max(np.ptp(found, axis=0).max(initial=0), 1e-30)
    times = dt * np.arange(len(found))
    for n, course in enumerate(found.T):
        axes.plot(times, course - course.mean() + n * height, linewidth=0.8)
    axes.set(xlabel=_time(dt), ylabel=f"{label}, a row for each neuron".lstrip(", "))
    axes.set_yticks([])
    return axes


def trace(values: Any, axes: Any = None, *, label: str = "eligibility") -> Any:
    """The eligibility trace of one weight matrix as a picture.

    **Arguments:**

    - `values`: `[outputs, inputs]`: one component and one example of an array of
        `Trace.data`.
    """
    found = _two_axes("values", values, "[outputs, inputs]").astype(float)
    (axes,) = _new(axes)
    largest = np.abs(found).max(initial=0) or 1.0
    options = dict(cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    image = axes.imshow(found, interpolation="nearest", **options)
    axes.figure.colorbar(image, ax=axes, label=label)
    axes.set(xlabel="input", ylabel="neuron")
    return axes


def alignment(check: GradientCheck, axes: Any = None) -> Any:
    """How well the gradient of each parameter is aligned with the exact one.

    **Arguments:**

    - `check`: from [`etrace.check_gradients`][].
    """
    (axes,) = _new(axes)
    names = [p.name for p in check.parameters][::-1]
    cosines = [p.comparison.cosine for p in check.parameters][::-1]
    bars = axes.barh(names, cosines, color="tab:blue")
    ratios = [p.comparison.ratio for p in check.parameters][::-1]
    labels = [f"{cosine:.2f}, norms {r:.2f}" for cosine, r in zip(cosines, ratios)]
    axes.bar_label(bars, labels, padding=3, fontsize="small")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlim=(min(0, *cosines) * 1.1, 1.6), xticks=[0, 0.5, 1])
    axes.set(xlabel="cosine with BPTT", title=check.name)
    return axes


def credit(check: GradientCheck, axes: Any = None) -> Any:
    """How far back credit goes, and how right it is there.

    Bars are the norm of the exact credit for the last loss, lines the cosine of the
    rule's credit with it.

    **Arguments:**

    - `check`: from [`etrace.check_gradients`][].
    """
    (axes,) = _new(axes)
    lags = check.lags
    names = [_span(lag.first, lag.last) for lag in lags]
    shares = [lag.share for lag in lags]
    axes.bar(names, shares, color="lightgray", label="share of the exact credit")
    cosines = [lag.comparison.cosine for lag in lags]
    axes.plot(names, cosines, "o-", color="tab:blue", label="cosine with BPTT")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="steps back", ylim=(min(0, *cosines) * 1.1, 1.3))
    axes.tick_params(axis="x", rotation=45)
    axes.legend(loc="upper right", fontsize="small", ncols=2, frameon=False)
    return axes


def gradient_check(check: GradientCheck, axes: Any = None) -> Any:
    """[`etrace.plot.alignment`][] and [`etrace.plot.credit`][], side by side.

    **Arguments:**

    - `check`: from [`etrace.check_gradients`][].
    - `axes`: two of them.
    """
    first, second = _new(axes, 2)
    return alignment(check, first), credit(check, second)


def memory(report: Report, axes: Any = None) -> Any:
    """The bytes of the traces, by parameter.

    **Arguments:**

    - `report`: from `algorithm.graph(*inputs)`.
    """
    (axes,) = _new(axes)
    total: dict[str, int] = {}
    for row in report.rows:
        total[row.parameter] = total.get(row.parameter, 0) + row.nbytes
    axes.barh(list(total)[::-1], [n / 1e6 for n in total.values()][::-1])
    axes.set(xlabel=f"MB of traces, batch {report.batch}", title=report.name)
    return axes


def _new(axes: Any, number: int = 1) -> Sequence[Any]:
    """The given axes, or new ones side by side."""
    if axes is not None:
        found = np.asarray(axes, object).reshape(-1)
        if len(found) != number:
            raise ValueError(f"axes are {len(found)}; expected {number}.")
        return list(found)
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "etrace.plot draws with matplotlib, which is not installed: "
            "pip install 'etrace-jax[plot]'"
        ) from error
    size = (5.0 * number, 3.2)
    _, found = plt.subplots(
        1, number, figsize=size, squeeze=False, layout="constrained"
    )
    return list(found[0])


def _two_axes(name: str, values: Any, expected: str) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 2:
        raise ValueError(
            f"{name} has shape {found.shape}; expected {expected}. Choose one example "
            "of a batch first."
        )
    return found


def _time(dt: float) -> str:
    return "step" if dt == 1.0 else "time"


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}–{last}"
