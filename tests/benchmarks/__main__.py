"""Measures, and writes docs/pages/benchmarks/: results.json, table.md and plots.

python -m tests.benchmarks            # everything, a quarter of an hour on 2 cores
python -m tests.benchmarks --quick    # the main cases, less than three minutes
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

import etrace

from . import peer, report
from .measure import copy_speed, interleaved
from .methods import Method, Problem, bptt, online, vmapped

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "pages" / "benchmarks"

Choice = Callable[[Problem], Method]


def windows(*sizes: int) -> dict[str, Choice]:
    return {f"window {w}": lambda p, w=w: online(p, w) for w in sizes}


REFERENCE: dict[str, Choice] = {"BPTT": bptt}
WHOLE: dict[str, Choice] = {
    "one window, no trace kept": lambda p: online(p, p.steps, carry=False)
}
EVERYTHING: dict[str, Choice] = {
    **REFERENCE,
    "BPTT, checkpointed": lambda p: bptt(p, checkpoint=True),
    **WHOLE,
    **windows(100, 25, 10, 1),
    "window 25, bfloat16": lambda p: online(p, 25, dtype=jnp.bfloat16),
    "window 1, bfloat16": lambda p: online(p, 1, dtype=jnp.bfloat16),
    "window 25, multi-step": lambda p: online(p, 25, vjp_method="multi-step"),
}
FACTORED: dict[str, Choice] = {
    f"ESDRTRL, window {w}": lambda p, w=w: online(p, w, rule=etrace.ESDRTRL)
    for w in (100, 1)
}
VMAPPED: dict[str, Choice] = {"window 1, jax.vmap(update)": vmapped}
PEER: dict[str, Choice] = {
    "braintrace D_RTRL": lambda p: peer_method(p, multi_step=False),
    "braintrace D_RTRL, multi-step 10": lambda p: peer_method(p, multi_step=True),
    "braintrace pp_prop": lambda p: peer_method(
        p, multi_step=False, rule="pp_prop", decay_or_rank=0.99
    ),
}


def peer_method(problem: Problem, *, multi_step: bool, **options: Any) -> Method:
    network = problem.network()
    run = peer.online(
        problem.kind, network, problem.batch, multi_step=multi_step, **options
    )
    inputs, targets = problem.sequence()
    return Method(lambda: run(inputs, targets))


def quick() -> list[tuple[Problem, dict[str, Choice]]]:
    chosen = {**REFERENCE, **WHOLE, **windows(100, 25, 1)}
    return [(Problem(k, 64, 256, 32, 100), chosen) for k in ("gru", "lif")]


def full() -> list[tuple[Problem, dict[str, Choice]]]:
    other = PEER if peer.available() else {}
    few = {**REFERENCE, **WHOLE, **windows(100, 25, 1)}
    cases = []
    for kind, hidden in (("gru", 128), ("gru", 256), ("gru", 512)):
        more = VMAPPED if hidden == 128 else {}
        problem = Problem(kind, 64, hidden, 32, 100)
        cases.append((problem, {**EVERYTHING, **FACTORED, **more, **other}))
    for kind in ("lstm", "lif", "alif"):
        problem = Problem(kind, 64, 256, 32, 100)
        cases.append((problem, {**EVERYTHING, **FACTORED, **other}))
    cases += [(Problem(kind, 64, 256, 1, 100), few) for kind in ("gru", "lif")]
    cases.append((Problem("gru", 64, 256, 32, 1000), {**REFERENCE, **windows(100, 25)}))
    return cases


def compare(methods: Mapping[str, Method]) -> dict[str, float]:
    """Relative differences between gradients that are equal by definition.

    **Raises:** AssertionError if they are not.
    """
    result, first = {}, None
    for name, method in methods.items():
        single = name.startswith(("one window", "window")) and "multi" not in name
        if not single or "bfloat16" in name:
            continue
        _, grads = method.gradient()
        flat = jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(grads)])
        first = flat if first is None else first
        result[name] = float(jnp.linalg.norm(flat - first) / jnp.linalg.norm(first))
    assert all(d <= 1e-5 for d in result.values()), result
    return result


def compare_peer(problem: Problem, methods: Mapping[str, Method]) -> dict[str, float]:
    """How far the peer's gradients are from ours, for the weights it traces."""
    name = "braintrace D_RTRL"
    if name not in methods:
        return {}
    _, theirs = methods[name].gradient()
    _, ours = online(problem, problem.steps, carry=False).gradient()
    named = jax.tree_util.tree_leaves_with_path(ours)
    paths = {jax.tree_util.keystr(path): leaf for path, leaf in named}
    distance = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))  # noqa: E731
    return {path: distance(g, paths[path]) for path, g in theirs.items()}


def measured(
    problem: Problem, choices: dict[str, Choice], repeats: int
) -> dict[str, Any]:
    methods = {name: choice(problem) for name, choice in choices.items()}
    differences = compare(methods)
    to_peer = compare_peer(problem, methods)
    calls = {name: m.gradient for name, m in methods.items()}
    times = dict(interleaved(calls, repeats, at_most=6.0))
    rows = []
    for name, method in methods.items():
        row: dict[str, Any] = {"method": name, **dataclasses.asdict(times[name])}
        if method.program is not None:
            cost = method.program()
            row.update(compile=cost.seconds, bytes=cost.total, trace=method.trace_bytes)
        if name == "window 1":
            moved = 2 * method.trace_bytes * problem.steps / times[name].median
            row.update(copy=moved / copy_speed(method.trace_bytes))
        rows.append(row)
    case = dict(problem=dataclasses.asdict(problem), title=str(problem), rows=rows)
    return {**case, "differences": differences, "to peer": to_peer}


def growth(steps: list[int]) -> list[dict[str, Any]]:
    """Bytes and seconds against the length of the sequence."""
    chosen = {**REFERENCE, **windows(100, 25, 1)}
    chosen["BPTT, checkpointed"] = EVERYTHING["BPTT, checkpointed"]
    rows = []
    for length in tqdm(steps, desc="length of the sequence"):
        problem = Problem("gru", 64, 256, 32, length)
        for name, choice in chosen.items():
            method = choice(problem)
            assert method.program is not None
            rows.append(dict(method=name, steps=length, bytes=method.program().total))
            if length <= 1000:
                calls = {name: method.gradient}
                ((_, times),) = interleaved(calls, 3, at_most=10.0)
                rows[-1].update(dataclasses.asdict(times))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main cases only")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    options = parser.parse_args()
    cases = quick() if options.quick else full()
    repeats = 7 if options.quick else 9
    results: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "etrace": importlib.metadata.version("etrace-jax"),
        "cases": [measured(*case, repeats) for case in tqdm(cases, desc="networks")],
    }
    if not options.quick:
        results["growth"] = growth([100, 316, 1000, 3162, 10000])
    print(report.table(results))
    if not options.quick:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "results.json").write_text(json.dumps(results, indent=1))
        (options.folder / "table.md").write_text(report.table(results))
        report.plot(results, options.folder)


if __name__ == "__main__":
    main()
