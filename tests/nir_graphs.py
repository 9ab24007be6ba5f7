"""Graphs and layers to exchange."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import nir
import numpy as np

DT = 1e-3
KEYS = jax.random.split(jax.random.key(0), 8)


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def hard(**options: Any) -> dict[str, Any]:
    return dict(reset="hard", v_reset=-0.1, threshold=0.15) | options


def linear(inputs: int, size: int, **options: Any) -> eqx.nn.Linear:
    return eqx.nn.Linear(inputs, size, key=KEYS[inputs % 8], **options)


def graph_of(*chain: Any, type_check: bool = True) -> nir.NIRGraph:
    """A chain of nodes; of a pair, the second is the feedback of the first."""
    nodes: dict[str, nir.NIRNode] = {}
    edges, last = [], None
    for i, link in enumerate(chain):
        node, feedback = link if isinstance(link, tuple) else (link, None)
        name = f"{type(node).__name__.lower()}{i}"
        nodes[name] = node
        if last is not None:
            edges.append((last, name))
        if feedback is not None:
            nodes[f"feedback{i}"] = feedback
            edges += [(name, f"feedback{i}"), (f"feedback{i}", name)]
        last = name
    return nir.NIRGraph(nodes, edges, type_check=type_check)


def input_of(*shape: int) -> nir.Input:
    return nir.Input({"input": np.array(shape)})


def output_of(*shape: int) -> nir.Output:
    return nir.Output({"output": np.array(shape)})


def parameters(kind: type, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Numbers in the range of a network's, none of them one or zero."""
    ranges = dict(
        tau=(3e-3, 2e-2),
        tau_mem=(3e-3, 2e-2),
        tau_syn=(2e-3, 1e-2),
        r=(0.5, 3.0) if kind is not nir.IF else (100.0, 500.0),
        w_in=(0.5, 2.0),
        v_leak=(-0.2, 0.2),
        v_threshold=(0.3, 0.5),
        v_reset=(-0.3, 0.1),
    )
    names = {field.name for field in dataclasses.fields(kind)}
    return {
        name: uniform(*bounds, *shape, seed=i)
        for i, (name, bounds) in enumerate(ranges.items())
        if name in names
    }
