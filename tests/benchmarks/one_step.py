"""What a call costs when steps are taken one by one from Python, as robots and
environments do: beside the model's own step, compiled.

python -m tests.benchmarks.one_step
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import etrace

from .models import OUTPUTS, make, squared_error

INPUTS, UNITS, CALLS, ROUNDS = 4, 32, 100, 7


def calls() -> Mapping[str, Callable[[], Any]]:
    """Each call takes one step from where the last one ended."""
    model: Any = make("gru", INPUTS, UNITS)
    algorithm, x, target = etrace.DRTRL(model), jnp.ones(INPUTS), jnp.zeros(OUTPUTS)
    step = eqx.filter_jit(lambda model, state, x: model(state, x))
    gradient = etrace.value_and_grad(squared_error)
    optimiser = optax.sgd(1e-3)
    train = etrace.learn(squared_error, optimiser)
    kept: dict[str, Any] = {name: algorithm.init(x) for name in ("update", "gradient")}
    kept["plain"] = model.init_state()
    kept["learn"] = algorithm, None, algorithm.init(x)

    def plain() -> Any:
        output, kept["plain"] = step(model, kept["plain"], x)
        return output

    def update() -> Any:
        output, *kept["update"] = algorithm.update(*kept["update"], x)
        return output

    def value_and_grad() -> Any:
        value, grads, kept["gradient"] = gradient(
            algorithm, kept["gradient"], x[None], target[None]
        )
        return value, grads

    def learn() -> Any:
        *kept["learn"], losses = train(*kept["learn"], x[None], target[None])
        return losses

    return {f.__name__: f for f in (plain, update, value_and_grad, learn)}


def main() -> None:
    found = calls()
    for call in found.values():
        for _ in range(3):
            call()
    best = dict.fromkeys(found, float("inf"))
    for _ in range(ROUNDS):
        for name, call in found.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                jax.block_until_ready(call())
            best[name] = min(best[name], (time.perf_counter() - start) / CALLS)
    print("| call | ms | / plain step |\n|---|--:|--:|")
    for name, seconds in best.items():
        print(f"| `{name}` | {1e3 * seconds:.2f} | {seconds / best['plain']:.1f} |")


if __name__ == "__main__":
    main()
