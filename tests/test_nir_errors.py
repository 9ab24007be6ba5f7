"""What cannot be exchanged exactly is refused, by name."""

import dataclasses
import importlib
import sys
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import nir
import numpy as np
import pytest

import etrace.nir
import etrace.nn as nn

from .mistakes import as_a_user
from .nir_graphs import (
    DT,
    KEYS,
    graph_of,
    hard,
    input_of,
    linear,
    normal,
    output_of,
    parameters,
)

LIF_OF_3: Any = nn.LIF(3, **hard())
SUPPORTED_LAYERS = "no counterpart in NIR. Supported are etrace.nn.RNN, Recurrent, IF"

NOT_EXPORTED = {
    "soft reset": (
        [nn.LIF(3)],
        r"cells\[0\], LIF: reset is 'soft'; expected 'hard'. NIR's neurons are set",
    ),
    "no reset": ([nn.IF(3, reset="none")], r"IF: reset is 'none'; expected 'hard'"),
    "late reset": (
        [nn.CurrentLIF(3, **hard(reset_delay=True))],
        "CurrentLIF: reset_delay is True; expected False",
    ),
    "refractory": (
        [LIF_OF_3, nn.RNN([nn.LIF(3, **hard(refractory=2))])],
        r"cells\[1\].cells\[0\], LIF: refractory is 2; expected 0",
    ),
    "adaptive": ([nn.ALIF(3, **hard())], "ALIF: ALIF has no counterpart in NIR"),
    "a synapse with IF": (
        [nn.Synaptic(nn.Exponential(3), nn.IF(3, **hard()))],
        "Synaptic: IF behind etrace.nn.Exponential has no counterpart",
    ),
    "two synapses": (
        [nn.Synaptic(nn.Exponential(3), nn.CurrentLIF(3, **hard()))],
        "CurrentLIF behind etrace.nn.Exponential has no counterpart",
    ),
    "another synapse": (
        [nn.Synaptic(nn.Alpha(3), LIF_OF_3)],
        "its synapse is Alpha; supported are one etrace.nn.Exponential",
    ),
    "a bias": (
        [nn.Synaptic(etrace.nir.Scale(3, 2.0, 1.0), LIF_OF_3)],
        "its Scale has a bias; expected none outside of etrace.nn.Recurrent",
    ),
    "a bias behind a synapse": (
        [
            nn.Synaptic(
                nn.Delta(3), nn.Synaptic(etrace.nir.Scale(3, 2.0, 1.0), LIF_OF_3)
            )
        ],
        "etrace.nir.Scale, with a bias only where it comes first",
    ),
    "a scale with a bias": (
        [etrace.nir.Scale(3, 2.0, 1.0)],
        "Scale: it has no counterpart .* etrace.nir.Scale without a bias",
    ),
    "state space": (
        [nn.LRU(3, 4, key=KEYS[0])],
        rf"cells\[0\], LRU: it has {SUPPORTED_LAYERS}",
    ),
    "plasticity": ([nn.ShortTermPlasticity(3)], f"ShortTerm.*{SUPPORTED_LAYERS}"),
    "a gated cell": ([eqx.nn.GRUCell(3, 4, key=KEYS[0])], SUPPORTED_LAYERS),
    "a function": ([LIF_OF_3, jnp.tanh], rf"cells\[1\], tanh: .*{SUPPORTED_LAYERS}"),
    "input": ([nn.LIF(4, **hard())], r"its input is of shape \(3,\); expected \(4,\)"),
    "sizes": (
        [linear(3, 4), linear(5, 4)],
        r"cells\[1\], Linear: its input is of shape \(4,\); expected \(5,\)",
    ),
    "channels": (
        [eqx.nn.Conv1d(2, 2, 1, key=KEYS[0])],
        r"its input has the shape \(3,\); expected 2 channels and 1 more axes",
    ),
    "padding": (
        [eqx.nn.Conv1d(3, 2, 2, padding=[(1, 0)], key=KEYS[0])],
        r"padding is \(\(1, 0\),\).*the same padding on both sides",
    ),
    "padding with a stride": (
        [eqx.nn.Conv1d(3, 2, 2, stride=2, padding="SAME", key=KEYS[0])],
        r"padding is 'SAME' and stride \(2,\)",
    ),
    "padding mode": (
        [eqx.nn.Conv1d(3, 2, 2, padding_mode="CIRCULAR", key=KEYS[0])],
        "padding_mode 'CIRCULAR'; expected one or two axes",
    ),
    "a scalar": (
        [eqx.nn.Linear(3, "scalar", key=KEYS[0])],
        "Linear: it takes or gives scalars; expected vectors",
    ),
    "volumes": ([eqx.nn.Conv3d(3, 2, 2, key=KEYS[0])], "it has 3 axes"),
}


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_what_is_not_exported(name: str):
    cells, message = NOT_EXPORTED[name]
    shape = (3, 9) if "padding" in name else (3,)
    with as_a_user(), pytest.raises(ValueError, match=message):
        etrace.nir.export(nn.RNN(cells), jnp.ones(shape), dt=DT)


LIF, IF = (kind(**parameters(kind, (3,))) for kind in (nir.LIF, nir.IF))
SQUARE = nir.Linear(normal(3, 3))
IN, OUT = input_of(3), output_of(3)


def chained(*nodes: Any, shape: tuple[int, ...] = (3,)) -> nir.NIRGraph:
    return graph_of(input_of(*shape), *nodes, output_of(3), type_check=False)


def changed(node: Any, **values: Any) -> nir.NIRGraph:
    return chained(dataclasses.replace(node, **values))


def wired(*edges: tuple[str, str], **nodes: nir.NIRNode) -> nir.NIRGraph:
    return nir.NIRGraph(dict(nodes), list(edges), type_check=False)


def conv(**options: Any) -> nir.NIRGraph:
    given: Any = dict(stride=1, padding=0, dilation=1, groups=1, bias=np.zeros(2))
    shape = options.pop("shape", (3, 5))
    return chained(
        nir.Conv1d(**given | dict(input_shape=5, weight=normal(2, 3, 2)) | options),
        shape=shape,
    )


CHAINS = "Supported are chains of layers from one Input to one Output"
NOT_LOADED = {
    "delay": (
        lambda: chained(LIF, nir.Delay(np.ones(3))),
        r"node 'delay2', Delay: it has no counterpart in etrace.nn. Supported are Lin",
    ),
    "threshold": (lambda: chained(nir.Threshold(np.ones(3))), "Threshold: it has no"),
    "integrator": (lambda: chained(nir.I(np.ones(3))), "'i1', I: it has no counter"),
    "sum": (
        lambda: chained(nir.SumPool2d(2, 2, 0)),
        "SumPool2d: it has no counterpart",
    ),
    "average": (
        lambda: chained(nir.AvgPool2d(2, 2, 0)),
        "AvgPool2d: it has no counter",
    ),
    "no input": (lambda: wired(("a", "b"), a=LIF, b=OUT), "has 0 Input nodes"),
    "no output": (lambda: wired(("a", "b"), a=IN, b=LIF), "has 0 Output nodes"),
    "two inputs": (
        lambda: wired(("a", "c"), ("b", "c"), ("c", "d"), a=IN, b=IN, c=LIF, d=OUT),
        rf"the graph has 2 Input nodes, \['a', 'b'\]; expected one. {CHAINS}",
    ),
    "a branch": (
        lambda: wired(
            *[("a", "b"), ("b", "c"), ("b", "d"), ("c", "d"), ("d", "e")],
            **dict(a=IN, b=SQUARE, c=LIF, d=SQUARE, e=OUT),
        ),
        rf"node '[bd]' of the graph has the inputs .*; expected 1 and 1. {CHAINS}",
    ),
    "an island": (
        lambda: wired(
            *[("a", "b"), ("b", "c"), ("d", "d")], a=IN, b=LIF, c=OUT, d=SQUARE
        ),
        r"nodes \['d'\] of the graph are not on the way from Input to Output",
    ),
    "two loops": (
        lambda: wired(
            *[("a", "b"), ("b", "c"), ("d", "e"), ("e", "d")],
            **dict(a=IN, b=LIF, c=OUT, d=SQUARE, e=SQUARE),
        ),
        r"nodes \['d', 'e'\] of the graph are not on the way",
    ),
    "feedback through neurons": (
        lambda: wired(
            *[("a", "w"), ("w", "b"), ("b", "c"), ("b", "d"), ("d", "b")],
            **dict(a=IN, w=SQUARE, b=LIF, c=OUT, d=IF),
        ),
        r"node 'b' of the graph has the inputs \['w', 'd'\]",
    ),
    "feedback around weights": (
        lambda: wired(
            *[("a", "w"), ("w", "b"), ("b", "c"), ("w", "d"), ("d", "w")],
            **dict(a=IN, w=SQUARE, b=LIF, c=OUT, d=SQUARE),
        ),
        r"node 'w' of the graph has the inputs \['a', 'd'\]",
    ),
    "an edge to nowhere": (
        lambda: wired(("a", "b"), ("b", "x"), a=IN, b=OUT),
        r"the graph has an edge from 'b' to 'x'; expected names of its nodes, \['a',",
    ),
    "in a subgraph": (
        lambda: chained(wired(("a", "b"), a=IN, b=LIF)),
        "the subgraph 'nirgraph1' has 0 Output nodes",
    ),
    "a node of a subgraph": (
        lambda: chained(graph_of(IN, nir.Delay(np.ones(3)), OUT)),
        "node 'nirgraph1.delay1', Delay: it has no counterpart",
    ),
    "nothing": (lambda: chained(), "cells is empty"),
    "feedback without input weights": (
        lambda: chained((LIF, SQUARE)),
        "node 'lif1', LIF: it has feedback; expected its input weights before it",
    ),
    "the shape of feedback": (
        lambda: chained(SQUARE, (LIF, nir.Linear(normal(3, 4)))),
        r"weight has the shape \(3, 4\); expected \(3, 3\)",
    ),
    "the shape of neurons": (
        lambda: chained(nir.LIF(**parameters(nir.LIF, (4,)))),
        r"r has the shape \(4,\); expected one number, or \(3,\)",
    ),
    "weights": (
        lambda: chained(nir.Linear(normal(3, 4))),
        r"'linear1', Linear: weight has the shape \(3, 4\); expected \(any, 3\)",
    ),
    "weights of several axes": (
        lambda: chained(nir.Linear(normal(2, 3, 3))),
        r"weight has the shape \(2, 3, 3\); expected \(any, 3\)",
    ),
    "weights of a grid": (
        lambda: chained(SQUARE, shape=(3, 3)),
        r"its input has the shape \(3, 3\); expected one axis",
    ),
    "bias": (
        lambda: chained(nir.Affine(normal(3, 3), np.ones(2))),
        r"bias has the shape \(2,\); expected \(3,\)",
    ),
    "output": (
        lambda: chained(nir.Linear(normal(2, 3))),
        r"node 'output2', Output: its shape is \(3,\); expected \(2,\)",
    ),
    "no shape": (
        lambda: wired(("a", "b"), a=nir.Input(None), b=OUT),
        "node 'a', Input: its shape is None; expected a shape",
    ),
    "time constants": (
        lambda: changed(LIF, tau=np.array([DT, 1.0, 1.0])),
        r"'lif1', LIF: tau is .*above dt, 0.001: Euler's method needs",
    ),
    "flatten": (
        lambda: chained(nir.Flatten(None), shape=(1, 3)),
        r"it joins the axes 1 to 1 of \(1, 3\); expected all",
    ),
    "what is flattened": (
        lambda: chained(nir.Flatten({"input": np.array([2, 2])}, start_dim=0)),
        r"input_type is \[2 2\]; its input has \(3,\)",
    ),
    "axes": (lambda: conv(shape=(3,)), r"shape \(3,\); expected channels, in 1 equal"),
    "groups": (lambda: conv(groups=2), r"shape \(3, 5\); .* in 2 equal groups"),
    "declared": (
        lambda: conv(input_shape=6),
        r"input_shape is 6; its input has \(5,\)",
    ),
    "kernel": (
        lambda: conv(weight=normal(2, 4, 2)),
        r"weight has the shape \(2, 4, 2\); expected \(any, 3, any\)",
    ),
    "padding": (lambda: conv(padding="same", stride=2), r'"same" and stride \(2,\)'),
}


@pytest.mark.parametrize("name", NOT_LOADED)
def test_what_is_not_loaded(name: str):
    make, message = NOT_LOADED[name]
    with as_a_user(), pytest.raises(ValueError, match=message):
        etrace.nir.load(make(), dt=DT)


MISTAKES = {
    "no graph": (
        lambda: etrace.nir.load(LIF, dt=DT),
        TypeError,
        "graph is a LIF; expected a nir.NIRGraph, or the path of a file",
    ),
    "dt": (
        lambda: etrace.nir.load(chained(LIF), dt=0),
        ValueError,
        "dt is 0; expected",
    ),
    "method": (
        lambda: etrace.nir.export(LIF_OF_3, jnp.ones(3), dt=DT, method="midpoint"),
        ValueError,
        'method is \'midpoint\'; expected one of "euler", "exponential"',
    ),
    "a negative time constant": (
        lambda: etrace.nir.load(
            changed(LIF, tau=np.array([1.0, -1.0, 1.0])), dt=DT, method="exponential"
        ),
        ValueError,
        r"tau is \[ 1. -1.  1.\]; expected it to be above 0",
    ),
    "example": (
        lambda: etrace.nir.export(LIF_OF_3, [1, 2, 3], dt=DT),
        TypeError,
        "example is a list; expected an array",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str):
    make, kind, message = MISTAKES[name]
    with as_a_user(), pytest.raises(kind, match=message):
        make()


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    monkeypatch.delitem(sys.modules, "etrace.nir")
    with pytest.raises(ImportError, match=r"pip install 'etrace-jax\[nir\]'"):
        importlib.import_module("etrace.nir")
