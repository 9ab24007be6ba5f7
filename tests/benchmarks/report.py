"""Tables and plots of what was measured."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def table(results: dict[str, Any]) -> str:
    """Markdown: one table a network."""
    head = (
        f"{results['device']}, {results['cores']} cores; Python {results['python']}, "
        f"JAX {results['jax']}, etrace {results['etrace']}; float32."
    )
    parts = [head]
    for case in results["cases"]:
        parts += [f"\n### {case['title']}\n", _rows(case), *_notes(case)]
    return "\n".join(parts) + "\n"


def _rows(case: dict[str, Any]) -> str:
    reference = case["rows"][0]["median"]
    lines = [
        "| | time / BPTT | ms | quartiles | compile s | MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in case["rows"]:
        spread = f"{1e3 * row['low']:.3g} to {1e3 * row['high']:.3g}"
        size = f"{row['bytes'] / 1e6:.3g}" if "bytes" in row else ""
        compiling = f"{row['compile']:.2g}" if "compile" in row else ""
        lines.append(
            f"| {row['method']} | {row['median'] / reference:.2f} | "
            f"{1e3 * row['median']:.3g} | {spread} | {compiling} | {size} |"
        )
    return "\n".join(lines)


def _notes(case: dict[str, Any]) -> list[str]:
    notes = []
    if case["differences"]:
        worst = max(case["differences"].values())
        notes.append(
            f"Gradients of all windows are equal to {worst:.0e} (relative difference)."
        )
    for row in case["rows"]:
        if "copy" in row:
            notes.append(
                f"One step at a time, the trace ({row['trace'] / 1e6:.3g} MB) is read "
                f"and written at {row['copy']:.0%} of the speed of a copy."
            )
    if case["to peer"]:
        pairs = (f"`{k}` {d:.0e}" for k, d in case["to peer"].items())
        notes.append("Difference to braintrace: " + ", ".join(pairs) + ".")
    return ["", " ".join(notes)] if notes else []


def plot(results: dict[str, Any], folder: pathlib.Path) -> None:
    """Time against the window, and time and memory against the sequence's length."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    _plot_windows(left, results["cases"])
    for axes, value, scale in ((middle, "median", 1.0), (right, "bytes", 1e-6)):
        _plot_growth(axes, results["growth"], value, scale)
    middle.set_ylabel("seconds")
    right.set_ylabel("MB, compiled")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "benchmarks.svg")
    plt.close(figure)


def _plot_windows(axes: Axes, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        problem = case["problem"]
        if problem["batch"] == 1 or problem["steps"] != 100:
            continue
        times = {row["method"]: row["median"] for row in case["rows"]}
        sizes = [w for w in (1, 10, 25, 100) if f"window {w}" in times]
        ratios = [times[f"window {w}"] / times["BPTT"] for w in sizes]
        label = f"{problem['kind'].upper()} {problem['hidden']}"
        axes.plot(sizes, ratios, "o-", label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="window", ylabel="time / BPTT")
    axes.legend(frameon=False, fontsize=8)


def _plot_growth(
    axes: Axes, rows: list[dict[str, Any]], value: str, scale: float
) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        points = [
            (row["steps"], row[value] * scale)
            for row in rows
            if row["method"] == method and value in row
        ]
        dashed = "--" if method.startswith("BPTT") else "-"
        axes.plot(*zip(*points), "o" + dashed, markersize=4, label=method)
    axes.set(xscale="log", yscale="log", xlabel="steps of the sequence")
