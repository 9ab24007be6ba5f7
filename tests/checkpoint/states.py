"""States of training, and what they are compared by."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import etrace
import etrace.testing as et

from ..rules import RULES
from . import worker
from .worker import Net, training

ROOT = Path(__file__).parent.parent.parent
X = jnp.zeros(3)


def bits(x: Any) -> tuple:
    """All there is to know about a leaf."""
    if not hasattr(x, "dtype"):
        return type(x), repr(x)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x.dtype, str(jax.random.key_impl(x)), bits(jax.random.key_data(x))
    weak = getattr(x, "weak_type", None)
    return type(x), x.dtype, weak, x.shape, np.asarray(x).tobytes()


def same(a: Any, b: Any) -> bool:
    leaves = [list(map(bits, jax.tree.leaves(tree))) for tree in (a, b)]
    return leaves[0] == leaves[1] and jax.tree.structure(a) == jax.tree.structure(b)


def full(algorithm: Any = None, x: jax.Array = X, **changes: Any) -> dict[str, Any]:
    """A state of training with everything in it."""
    return {
        **training(etrace.DRTRL(Net()) if algorithm is None else algorithm, x),
        "average": jnp.zeros(2, jnp.bfloat16),
        "log": np.zeros((2, 3)),
        "loss": worker.loss,
        "mode": "fast",
    } | changes


def example_of(rule: str) -> tuple[etrace.ETraceVjpAlgorithm, jax.Array]:
    kind = "tanh" if RULES[rule].single else "gru"
    problem = et.make_problem(et.NetSpec((et.LayerSpec(kind, 2),)), length=1)
    return RULES[rule].make(problem.model), problem.inputs[0]


def start(code: str, **environment: str) -> subprocess.Popen:
    """A process of Python, of the same precision."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_X64": "1"} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
