"""Random steps of such operations, and values at which definitions matter."""

import dataclasses
import itertools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .operations import OPERATIONS, SIZE

DTYPES = ("float64", "float32", "float16", "bfloat16")

#: What elements are drawn from, beside ordinary numbers.
SPECIAL = (0.0, -0.0, 1.0, 1.0, -1.0, 0.5, -1e9, 1e9, 20.0, -20.0, 90.0, 1e-8)
ENDS = ("-inf", "inf", "nan", "min", "max", "tiny", "subnormal")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A step, as data: operations on numbered values, the state, the input, results.

    - `steps`: the operation, and the numbers of its operands that are data.
    - `special`: how many in ten elements are not ordinary.
    """

    steps: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: str
    seed: int
    special: int

    def numbers(self, *shape: int, salt: int, ends: bool = True) -> Array:
        rng = np.random.default_rng((self.seed, salt))
        found = rng.normal(size=shape)
        if ends:
            info = jnp.finfo(self.dtype)
            named = {"min": info.min, "max": info.max, "tiny": info.tiny}
            named["subnormal"] = info.smallest_subnormal
            pool = [*SPECIAL, *(float(named.get(e, e)) for e in ENDS)]
            # Some twice: ties.
            drawn = np.where(
                rng.random(shape) < 0.5, rng.choice(pool[:4]), rng.choice(pool, shape)
            )
            found = np.where(rng.random(shape) < self.special / 10, drawn, found)
        with np.errstate(over="ignore"):  # 1e9 is infinite in half precision
            return jnp.asarray(found.astype(self.dtype))

    @property
    def weights(self) -> list[tuple[int, ...]]:
        kinds = [OPERATIONS[name][1] for name, _ in self.steps]
        shapes = {"w": (SIZE,), "W": (SIZE, SIZE)}
        return [shapes[k] for k in itertools.chain(*kinds) if k in shapes]


def spec_of(seed: int) -> Spec:
    """One to three operations, each on what came before."""
    rng = np.random.default_rng(seed)
    names, steps = sorted(OPERATIONS), []
    for n in range(int(rng.integers(1, 4))):
        name = names[rng.integers(len(names))]
        # The last results are read more often than the first.
        operands = rng.integers(0, n + 2, (2, OPERATIONS[name][1].count("x"))).max(0)
        steps.append((name, tuple(map(int, operands))))
    dtype, special = DTYPES[rng.integers(len(DTYPES))], rng.choice([0, 2, 4, 7])
    return Spec(tuple(steps), dtype, seed, int(special))


class Net(eqx.Module):
    """The step as a model: outputs are the last result and the state."""

    weights: list[Array]
    keep: Array
    spec: Spec = eqx.field(static=True)

    def init_state(self) -> Array:
        return jnp.zeros(SIZE, self.spec.dtype)

    def __call__(self, h: Array, x: Array) -> tuple[Any, Array]:
        values, weights = [h, x], iter(self.weights)
        for name, operands in self.spec.steps:
            fun, kinds = OPERATIONS[name]
            data = iter(operands)
            values.append(
                fun(*(values[next(data)] if k == "x" else next(weights) for k in kinds))
            )
        new = self.keep * h + values[-1]
        return (values[2:], new), new


def make(spec: Spec) -> Net:
    weights = [spec.numbers(*s, salt=10 + n) for n, s in enumerate(spec.weights)]
    return Net(weights, spec.numbers(SIZE, salt=9, ends=False), spec)
