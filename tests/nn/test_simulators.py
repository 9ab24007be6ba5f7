"""Neurons against snnTorch and Norse: recorded membranes, currents and spikes.

`simulators/record.py` made the vectors. Both simulators are told how much of a membrane
is left after a step, ours are told time constants: tau = -dt / log(what is left). Norse
integrates by Euler's method, where 1 - dt/τ is left.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etrace.nn as nn

VECTORS = np.load(pathlib.Path(__file__).parent / "simulators" / "vectors.npz")
CASES = json.loads(str(VECTORS["cases"]))
NEURONS = VECTORS["inputs"].shape[1]
RESETS = {"subtract": "soft", "zero": "hard", "none": "none"}


def tau_of_decay(left: Any) -> Any:
    return -1 / np.log(left)


def tau_of_rate(rate: Any) -> Any:
    """Norse's rates are in 1/s, and its step is 1 ms."""
    return tau_of_decay(1 - 1e-3 * np.asarray(rate))


def snntorch(name: str, p: dict[str, Any]) -> nn.AbstractNeuron:
    options: dict[str, Any] = dict(
        tau=tau_of_decay(p["beta"]),
        threshold=p.get("threshold", 1.0),
        reset=RESETS[p.get("reset_mechanism", "subtract")],
        reset_delay=p.get("reset_delay", True),
    )
    if name == "Leaky":
        return nn.LIF(NEURONS, **options)
    return nn.CurrentLIF(NEURONS, tau_syn=tau_of_decay(p["alpha"]), **options)


def norse(name: str, p: dict[str, Any]) -> nn.AbstractNeuron:
    options: dict[str, Any] = dict(
        tau=tau_of_rate(p["tau_mem_inv"]), v_rest=p.get("v_leak", 0.0), drive="current"
    )
    if name == "li_box":
        return nn.LeakyIntegrator(NEURONS, **options)
    if name == "li":
        synapse = nn.Exponential(NEURONS, tau=tau_of_rate(p["tau_syn_inv"]))
        return nn.Synaptic(synapse, nn.LeakyIntegrator(NEURONS, **options))
    options |= dict(
        threshold=p["v_th"],
        v_reset=p.get("v_reset", 0.0),
        reset=RESETS[p.get("reset", "zero")],
        refractory=int(p.get("rho_reset", 0)),
    )
    if name == "lif_box":
        return nn.LIF(NEURONS, **options)
    return nn.CurrentLIF(NEURONS, tau_syn=tau_of_rate(p["tau_syn_inv"]), **options)


@pytest.mark.parametrize("k", range(len(CASES)))
def test_matches(k: int):
    simulator, name, parameters = CASES[k]
    neuron = {"snntorch": snntorch, "norse": norse}[simulator](name, parameters)

    def step(state, x):
        z, state = neuron(state, x)
        recorded = {"z": z, "v": state.v}
        return state, recorded | ({"i": state.i} if hasattr(state, "i") else {})

    inputs = jnp.asarray(VECTORS["inputs"], jnp.float64)
    _, found = jax.lax.scan(step, neuron.init_state(), inputs)
    expected = {f: VECTORS[f"{k}/{f}"] for f in "vzi" if f"{k}/{f}" in VECTORS}
    assert "v" in expected and (
        "z" in expected or name.startswith("li_") or name == "li"
    )
    for field, values in expected.items():
        if field == "z":
            # Every neuron both fires and does not.
            assert np.all(values.any(0)) and not np.any(values.all(0))
            np.testing.assert_array_equal(found[field], values)
        else:
            np.testing.assert_allclose(found[field], values, rtol=1e-6, atol=1e-6)


def test_vectors_cover_what_was_asked():
    """Several settings of each simulator, hard and soft resets, one value a neuron."""
    spiking = [p for _, name, p in CASES if not name.startswith("li_")]
    assert VECTORS["inputs"].shape[0] == 200
    assert {simulator for simulator, *_ in CASES} == {"snntorch", "norse"}
    assert any(isinstance(p.get("beta"), list) for p in spiking)
    assert {p.get("reset_mechanism", "subtract") for p in spiking} == set(RESETS)
