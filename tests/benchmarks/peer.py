"""The networks of `models.py`, trained by the library braintrace.

The equations, the weights and the loss are the same, and so are the gradients, up to
rounding. The layout is one that braintrace (0.2.6) differentiates correctly:

- One matrix product per gate. A product that computes all gates at once is wider than
  the state; braintrace warns that the shapes do not match and leaves it untraced.
- No state is computed from the new value of another. Otherwise "single-step" counts
  the way of the one through the other to the loss twice: for one step of braintrace's
  own `LSTMCell`, the gradients of the gates i and g are twice those of autodiff. So the
  LSTM writes its new cell down twice, and a spiking neuron keeps what its spike is
  computed from: the potential, and the adaptation of one step before.
- The read-out is applied outside the learner. Inside, "single-step" returns zeros for
  the gradients of parameters that it does not trace.

The batch is an axis of states and traces. braintrace's other way, a `vmap` of the
learner, gives the same gradients but has no windows, and a GRU takes 2.5 times as long.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .models import Kind, spike, squared_error

WINDOW = 10
_GATES = {"gru": 3, "lstm": 4, "lif": 1, "alif": 1}
_STATES = {"gru": ("h",), "lstm": ("h", "c"), "lif": ("v",), "alif": ("v", "a")}
_Gradients = dict[str, jax.Array]
_Weights = dict[str, dict[str, jax.Array]]


def available() -> bool:
    """Whether braintrace can be imported."""
    return importlib.util.find_spec("braintrace") is not None


def online(
    kind: Kind,
    net: Any,
    batch: int,
    *,
    multi_step: bool,
    rule: str = "d_rtrl",
    **options: Any,
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, _Gradients]]:
    """A compiled function of inputs and targets, both `[time, batch, ...]`.

    It returns the mean over time of the squared error, and its gradients by the path
    of the parameter in `net`: those that are traced, which is all but the read-out's.
    With `multi_step` it runs in windows of 10 steps, and the number of steps has to be
    a multiple of 10.
    """
    x64 = jax.config.read("jax_enable_x64")
    import brainstate
    import braintrace

    # The first import of brainstate turns 64-bit mode off for the whole process.
    brainstate.environ.set(precision=64 if x64 else 32)
    weights = _weights(kind, net)
    model = _network(kind, weights, net.readout.in_features)
    readout = brainstate.ParamState((net.readout.weight.T, net.readout.bias))
    learner = braintrace.compile(
        model,
        rule,
        jnp.zeros((batch, len(weights["ih0"]["weight"]))),
        batch_size=batch,
        vjp_method="multi-step" if multi_step else "single-step",
        **options,
    )

    def loss(x, y):
        outputs = learner(braintrace.MultiStepData(x) if multi_step else x)
        outputs = outputs @ readout.value[0] + readout.value[1]
        error = jax.vmap(squared_error) if multi_step else squared_error
        return error(outputs, y)

    @brainstate.transform.jit
    def run(inputs, targets):
        brainstate.nn.reset_all_states(model)
        learner.reset_state()
        gradients, value = learner.etrace_grad(
            inputs,
            targets,
            step_fn=loss,
            chunk_size=WINDOW if multi_step else None,
            weights={**learner.param_states, ("readout",): readout},
            loss_output="scalar",
            return_value=True,
        )
        gradients = {path[-1]: gradient for path, gradient in gradients.items()}
        # The read-out's are an output too, lest XLA leave them out.
        return value, _as_in_equinox(kind, gradients), gradients["readout"]

    return lambda inputs, targets: run(inputs, targets)[:2]


def _weights(kind: Kind, net: Any) -> _Weights:
    """The traced parameters: by operator, one per gate, transposed."""
    if kind in ("lif", "alif"):
        return {
            "ih0": {"weight": net.weight.T},
            "hh0": {"weight": net.recurrent.T},
            "leak": {"weight": net.leak},
        }
    weights = {}
    arrays = net.cell.weight_ih, net.cell.weight_hh, net.cell.bias
    gates = zip(*(jnp.split(x, _GATES[kind]) for x in arrays), strict=True)
    for k, (w_ih, w_hh, bias) in enumerate(gates):
        weights[f"ih{k}"] = {"weight": w_ih.T, "bias": bias}
        weights[f"hh{k}"] = {"weight": w_hh.T}
    if kind == "gru":
        weights["hh2"]["bias"] = net.cell.bias_n
    return weights


def _as_in_equinox(kind: Kind, gradients: _Weights) -> _Gradients:
    """The inverse of `_weights`, by the path in the network."""

    def joined(operator, leaf):
        gates = [gradients[f"{operator}{k}"][leaf].T for k in range(_GATES[kind])]
        return jnp.concatenate(gates)

    w_ih, w_hh = joined("ih", "weight"), joined("hh", "weight")
    if kind in ("lif", "alif"):
        leak = gradients["leak"]["weight"]
        return {".weight": w_ih, ".recurrent": w_hh, ".leak": leak}
    found = {".cell.weight_ih": w_ih, ".cell.weight_hh": w_hh}
    found[".cell.bias"] = joined("ih", "bias")
    if kind == "gru":
        found[".cell.bias_n"] = gradients["hh2"]["bias"]
    return found


def _network(kind: Kind, weights: _Weights, hidden: int) -> Any:
    """The network without its read-out, as a module of brainstate."""
    import brainstate
    import braintrace

    class Network(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in weights.items():
                setattr(self, name, brainstate.ParamState(value))

        def init_state(self, batch_size, **kwargs):
            for name in _STATES[kind]:
                zeros = jnp.zeros((batch_size, hidden))
                setattr(self, name, brainstate.HiddenState(zeros))

        def reset_state(self, **kwargs):
            for name in _STATES[kind]:
                state = getattr(self, name)
                state.value = jnp.zeros_like(state.value)

        def traced(self, name, x):
            value = getattr(self, name).value
            return braintrace.matmul(x, value["weight"], value.get("bias"))

        def gates(self, x, h):
            """What the input and the last output give to each gate."""
            count = range(_GATES[kind])
            return [(self.traced(f"ih{k}", x), self.traced(f"hh{k}", h)) for k in count]

        def update(self, x):
            states = [getattr(self, name).value for name in _STATES[kind]]
            output, *states = getattr(self, kind)(x, *states)
            for name, value in zip(_STATES[kind], states, strict=True):
                getattr(self, name).value = value
            return output

        def gru(self, x, h):
            (i_r, h_r), (i_z, h_z), (i_n, h_n) = self.gates(x, h)
            z = jax.nn.sigmoid(i_z + h_z)
            n = jnp.tanh(i_n + jax.nn.sigmoid(i_r + h_r) * h_n)
            h = n + z * (h - n)
            return h, h

        def lstm(self, x, h, c):
            i, f, g, o = (a + b for a, b in self.gates(x, h))
            i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
            g = jnp.tanh(g)
            h = o * jnp.tanh(f * c + i * g)
            return h, h, f * c + i * g

        def lif(self, x, v):
            v = self.potential(x, v, spike(v - 1))
            return spike(v - 1), v

        def alif(self, x, v, a):
            s = spike(v - 1 - 0.2 * a)
            v, a = self.potential(x, v, s), 0.95 * a + s
            return spike(v - 1 - 0.2 * a), v, a

        def potential(self, x, v, s):
            [(i_x, i_s)] = self.gates(x, s)
            leak = braintrace.element_wise(self.leak.value["weight"])
            d = jax.nn.sigmoid(leak)
            return d * v + (1 - d) * (i_x + i_s) - jax.lax.stop_gradient(s)

    return Network()
