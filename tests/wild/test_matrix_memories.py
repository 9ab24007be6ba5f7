"""Memories that are matrices: one gate for many numbers, keys and values along two
axes."""

import jax
import jax.numpy as jnp
import pytest

import etrace
import etrace.testing as et

from .program import (
    IN,
    INPUTS,
    STEPS,
    Program,
    Weights,
    check,
    differentiated,
    errors,
    loss,
    normal,
)

HEADS, D = 2, 5


def weights(rows: int = HEADS, size: int = HEADS * D) -> Weights:
    sizes = {"q": size, "k": size, "v": size, "i": rows, "f": rows}
    return {name: normal(n, IN, seed=k) for k, (name, n) in enumerate(sizes.items())}


def mlstm(w: Weights, state, x):
    """xLSTM's, with a normaliser and a stabiliser."""
    c, n, m = state
    q, k, v = ((w[name] @ x).reshape(n.shape) for name in "qkv")
    i, f = w["i"] @ x, jax.nn.log_sigmoid(w["f"] @ x)
    top = jnp.maximum(f + m, i)
    i, f = jnp.exp(i - top), jnp.exp(f + m - top)
    c = f[:, None, None] * c + i[:, None, None] * v[:, :, None] * k[:, None, :]
    n = f[:, None] * n + i[:, None] * k
    scale = jnp.maximum(jnp.abs((n * q).sum(-1)), jnp.exp(-top))
    return jnp.einsum("hvk,hk->hv", c, q) / scale[:, None], (c, n, top)


def memory(rows: int = HEADS, d: int = D) -> tuple[jax.Array, ...]:
    return jnp.zeros((rows, d, d)), jnp.zeros((rows, d)), jnp.zeros(rows)


def test_a_matrix_memory():
    check(Program(mlstm, weights(1, 2), lambda: memory(1, 2), exact=False))


def test_the_gates_of_an_mlstm_are_followed():
    # A position of all numbers of a head: none is left out.
    check(Program(mlstm, weights(), memory, exact=False))


def test_a_gate_has_a_copy_for_each_number_of_the_memory():
    program = Program(mlstm, weights(), memory)
    options = {"position_size": D - 1}  # heads of more numbers than a position holds
    report = etrace.DRTRL(program.model(), **options).graph(program.inputs[0])
    for gate in ("i", "f"):
        rows = [r for r in report.rows if r.parameter == f".weights['{gate}']"]
        assert all(row.status == "traced" for row in rows)
        shapes = [shape for row in rows for shape in row.trace_shapes]
        numbers = sorted(s[0] * s[1] * s[2] for s in shapes)
        assert numbers == [1, D, D * D]


DELTA = {"q": D, "k": D, "v": D, "b": 1, "a": 1}


def gated_delta(w: Weights, s, x):
    """What is stored under a key is replaced, of a memory that fades."""
    q, k, v = (w[name] @ x for name in "qkv")
    k = k / jnp.linalg.norm(k)
    beta, alpha = (jax.nn.sigmoid(w[name] @ x)[:, None] for name in "ba")
    s = alpha * s
    read = et.mixing_input(s, feeds=(0,)) @ k
    s = s - beta * jnp.outer(read, k) + beta * jnp.outer(v, k)
    return s @ q, s


def delta_net() -> Program:
    drawn = {n: normal(s, IN, seed=i) for i, (n, s) in enumerate(DELTA.items())}
    return Program(gated_delta, drawn, lambda: jnp.zeros((D, D)), exact=False)


def test_what_keeps_a_delta_net_from_traces_is_named():
    """Keys are normed and read the memory, and one gate acts before that."""
    model = delta_net().model()
    each = {"position_size": 1}  # every number of the memory is one
    with pytest.warns(etrace.UntracedParameterWarning, match="at reduce_sum in"):
        report = etrace.DRTRL(model, **each).graph(INPUTS[0])
    status = {row.parameter[-3]: row.status for row in report.rows}
    now = dict.fromkeys("ka", "now")
    assert status == {"q": "output", "v": "traced", "b": "traced"} | now
    reasons = {r.parameter[-3]: r.reason for r in report.rows if r.status == "now"}
    assert "dot_general in test_matrix_memories.py" in reasons["a"]
    assert "reduce_sum in test_matrix_memories.py" in reasons["k"]
    assert "dot_general in test_matrix_memories.py" in reasons["k"]
    (loss,) = [x for x in report.losses if x.what == (".weights['k']",)]
    assert loss.primitive == "reduce_sum"
    groups = (et.StateGroup(leaves=(0,)),)
    _, expected = et.dense_reference(
        model,
        et.squared_error,
        INPUTS,
        jnp.zeros((STEPS, D)),
        groups=groups,
        untraced=lambda m: (m.weights["k"], m.weights["a"]),
    )
    run = etrace.value_and_grad(
        et.squared_error, window=1, reduction="sum", carry=False
    )
    algorithm = etrace.DRTRL(model, **each)
    found = run(algorithm, None, INPUTS, jnp.zeros((STEPS, D)))[1]
    wrong = errors(found.weights, expected.weights)
    assert max(wrong.values()) < 1e-9, wrong


@pytest.mark.filterwarnings("ignore::etrace.UntracedParameterWarning")
def test_a_delta_net():
    """A row of the memory meets its own numbers only: what acts on it is exact."""
    check(delta_net())
    run = etrace.value_and_grad(loss, window=1, reduction="sum", carry=False)
    model = delta_net().model()
    found = run(etrace.DRTRL(model), None, INPUTS, jnp.zeros(STEPS))[1].weights
    wrong = errors(found, differentiated(model, INPUTS)[0])
    assert max(wrong[f"['{name}']"] for name in "qvba") < 1e-9, wrong
