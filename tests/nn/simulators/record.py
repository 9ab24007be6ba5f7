"""Records what independent simulators compute, for `tests/nn/test_simulators.py`.

The simulators run on PyTorch, which the tests do not need: they read `vectors.npz`,
which this script writes beside itself. To record anew, in an environment of its own:

    python -m venv /tmp/simulators
    /tmp/simulators/bin/pip install torch snntorch norse
    /tmp/simulators/bin/python tests/nn/simulators/record.py

Everything is computed in double precision and stored in single. `vectors.npz` holds
`inputs`, `[steps, neurons]`, the same for every case; `cases`, a JSON list with the
simulator, the class or function, and its parameters; `versions`; and for each case what
follows its number, `0/v`, `0/z` and `0/i`: membranes, spikes and currents after each
step.
"""

import importlib.metadata
import json
import pathlib
from typing import Any

import numpy as np
import snntorch
import torch
from norse.torch.functional import (
    leaky_integrator as li,
    leaky_integrator_box as li_box,
    lif,
    lif_box,
    lif_refrac,
    reset,
)

Parameters = dict[str, Any]
Steps = list[dict[str, torch.Tensor]]

STEPS, NEURONS = 200, 4
FILE = pathlib.Path(__file__).parent / "vectors.npz"

SEVERAL = [0.6, 0.8, 0.9, 0.97]  # one per neuron
THRESHOLDS = [0.8, 1.0, 1.2, 1.5]
RATES = [40.0, 80.0, 150.0, 300.0]

CASES: list[tuple[str, str, Parameters]] = [
    ("snntorch", "Leaky", dict(beta=0.9)),
    ("snntorch", "Leaky", dict(beta=SEVERAL, threshold=THRESHOLDS)),
    ("snntorch", "Leaky", dict(beta=SEVERAL, reset_delay=False)),
    ("snntorch", "Leaky", dict(beta=SEVERAL, reset_mechanism="zero")),
    (
        "snntorch",
        "Leaky",
        dict(beta=0.8, reset_mechanism="zero", reset_delay=False, threshold=0.9),
    ),
    ("snntorch", "Leaky", dict(beta=SEVERAL, reset_mechanism="none")),
    ("snntorch", "Synaptic", dict(alpha=0.7, beta=0.9, threshold=2.0)),
    (
        "snntorch",
        "Synaptic",
        dict(alpha=SEVERAL[::-1], beta=SEVERAL, reset_delay=False, threshold=9.0),
    ),
    (
        "snntorch",
        "Synaptic",
        dict(alpha=0.5, beta=SEVERAL, reset_mechanism="zero", reset_delay=False),
    ),
    ("norse", "lif", dict(tau_mem_inv=100.0, tau_syn_inv=200.0, v_th=0.4)),
    (
        "norse",
        "lif",
        dict(
            tau_mem_inv=RATES,
            tau_syn_inv=RATES[::-1],
            v_leak=-0.2,
            v_th=0.3,
            v_reset=-0.4,
        ),
    ),
    (
        "norse",
        "lif_refrac",
        dict(tau_mem_inv=RATES, tau_syn_inv=200.0, v_th=0.3, rho_reset=3.0),
    ),
    ("norse", "lif_box", dict(tau_mem_inv=RATES, v_th=0.3, v_reset=-0.1)),
    ("norse", "lif_box", dict(tau_mem_inv=200.0, v_th=0.2, reset="subtract")),
    ("norse", "li", dict(tau_mem_inv=RATES, tau_syn_inv=150.0, v_leak=0.3)),
    ("norse", "li_box", dict(tau_mem_inv=RATES, v_leak=0.3)),
    ("norse", "li_box", dict(tau_mem_inv=50.0)),
]


def doubles(parameters: Parameters) -> Parameters:
    """Numbers as tensors of double precision, everything else as it is."""
    return {
        k: torch.tensor(v, dtype=torch.float64) if isinstance(v, float | list) else v
        for k, v in parameters.items()
    }


def snntorch_run(name: str, parameters: Parameters, inputs: torch.Tensor) -> Steps:
    given = doubles(parameters)
    neuron = getattr(snntorch, name)(**given).double()
    state = [torch.zeros(NEURONS, dtype=torch.float64)] * (1 + (name == "Synaptic"))
    steps = []
    for x in inputs:
        z, *state = neuron(x, *state)
        steps.append({"z": z, "v": state[-1]} | ({"i": state[0]} if state[1:] else {}))
        # Where a membrane is still above threshold after an immediate reset, snnTorch
        # resets it once more, before the next spike.
        delayed = given.get("reset_delay", True)
        assert delayed or bool(torch.all(state[-1] <= neuron.threshold))
    return steps


def norse_run(name: str, parameters: Parameters, inputs: torch.Tensor) -> Steps:
    p = doubles(parameters)
    zeros = torch.zeros(NEURONS, dtype=torch.float64)
    v = zeros + p.get("v_leak", zeros)
    match name:
        case "lif":
            p, state = lif.LIFParameters(**p), lif.LIFFeedForwardState(v, zeros)
            step = lif.lif_feed_forward_step
        case "lif_refrac":
            rho = p.pop("rho_reset")
            p = lif_refrac.LIFRefracParameters(lif.LIFParameters(**p), rho)
            state = lif.LIFFeedForwardState(v, zeros)
            state = lif_refrac.LIFRefracFeedForwardState(state, zeros)
            step = lif_refrac.lif_refrac_feed_forward_step
        case "lif_box":
            if p.pop("reset", None):
                p["reset_method"] = reset.reset_subtract
            p = lif_box.LIFBoxParameters(**p)
            state = lif_box.LIFBoxFeedForwardState(v)
            step = lif_box.lif_box_feed_forward_step
        case "li":
            p, state = li.LIParameters(**p), li.LIState(v, zeros)
            step = li.li_feed_forward_step
        case "li_box":
            p, state = li_box.LIBoxParameters(**p), li_box.LIBoxState(v)
            step = li_box.li_box_feed_forward_step
    steps = []
    for x in inputs:
        z, state = step(x, state, p, dt=0.001)
        found = getattr(state, "lif", state)
        steps.append({"v": found.v} | ({"z": z} if name.startswith("lif") else {}))
    return steps


def main() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-0.3, 0.9, size=(STEPS, NEURONS)).astype(np.float32)
    as_torch = torch.tensor(inputs, dtype=torch.float64)
    names = ("torch", "snntorch", "norse")
    arrays = {
        "inputs": inputs,
        "cases": json.dumps(CASES),
        "versions": json.dumps({n: importlib.metadata.version(n) for n in names}),
    }
    for k, (simulator, name, parameters) in enumerate(CASES):
        run = snntorch_run if simulator == "snntorch" else norse_run
        steps = run(name, parameters, as_torch)
        for field in steps[0]:
            values = torch.stack([step[field] for step in steps]).detach().numpy()
            dtype = bool if field == "z" else np.float32
            arrays[f"{k}/{field}"] = values.astype(dtype)
        spikes = arrays.get(f"{k}/z", np.zeros(1)).sum()
        print(k, simulator, name, parameters, "spikes:", spikes)
    np.savez_compressed(FILE, **arrays)
    print(FILE, FILE.stat().st_size, "bytes,", arrays["versions"])


if __name__ == "__main__":
    main()
