"""Random step functions, as data: a spec, its model, and its nodes."""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from .mixing import MIXING
from .movement import MOVEMENT
from .operations import ELEMENTWISE, Operation, Shape, same
from .products import PRODUCTS
from .tape import Node, Tape, Value, sources

FEATURES = 2
LENGTH = 4


def _encoded(choice: int, x: Any, w: Any) -> Any:
    return jnp.tensordot(w, x, 1)


#: What every program ends with: a drive of the state, its memory, a read-out.
CLOSING: dict[str, Operation] = {
    "encode": Operation(
        "mixing",
        _encoded,
        weight=lambda c, s: (*SHAPES[c % len(SHAPES)], *s),
        whole=True,
    ),
    "bring": Operation(
        "mixing",
        lambda c, x, w: jnp.tensordot(w, x, x.ndim),
        weight=lambda c, s: (*SHAPES[c % len(SHAPES)], *s),
        whole=True,
    ),
    "reshape_to": Operation(
        "movement", lambda c, x: x.reshape(SHAPES[c % len(SHAPES)])
    ),
    "leak": Operation(
        "elementwise", lambda c, h, u: 0.6 * h + 0.5 * jnp.tanh(u), 2, same
    ),
    "carry": Operation(
        "elementwise", lambda c, h, u: 0.7 * h * jnp.cos(u) + 0.1, 2, same
    ),
    "write": Operation("elementwise", lambda c, h, u: jnp.tanh(h + u), 2, same),
    "squash": Operation("elementwise", lambda c, u: jnp.tanh(u)),
    "read": Operation(
        "mixing",
        lambda c, x, w: jnp.tensordot(w, x, x.ndim),
        weight=lambda c, s: (2, *s),
        whole=True,
    ),
}
OPERATIONS: dict[str, Operation] = {
    **ELEMENTWISE,
    **MOVEMENT,
    **MIXING,
    **PRODUCTS,
    **CLOSING,
}
#: One plain product of the data with a weight each.
PLAIN_PRODUCTS = frozenset(
    "encode bring read dense dense_rows dense_columns masked_dense low_rank positive "
    "one_hot bilinear vmapped_dense".split()
)
SHAPES: tuple[Shape, ...] = ((3,), (2,), (2, 3), (3, 2), (6,))
STATES: tuple[tuple[Shape, ...], ...] = (
    ((3,),),
    ((3,),),
    ((2, 3),),
    ((3,), (3,)),
    ((3,), (3,)),
    ((3,), (2,)),
    ((2, 3), (3,)),
    ((2, 3), (3, 2)),
    ((6,), (2, 3)),
    ((2, 3), (2, 3)),
    ((3,), (3,), (2,)),
    ((2,), (2,), (2,)),
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A step function, as data.

    Its values are numbered: the state's leaves, the input `[FEATURES]`, the input
    index, the counter (an integer of the state), then the results of `steps`. A step is
    `(name, choice, operands)`; one called "param" makes a parameter, of the shape that
    stands in place of the choice.

    - `leaves`: the shapes of the state's arrays of floats.
    - `new`, `outputs`: the numbers of their next values and of the outputs.
    """

    leaves: tuple[Shape, ...]
    steps: tuple[tuple[str, Any, tuple[int, ...]], ...]
    new: tuple[int, ...]
    outputs: tuple[int, ...]
    seed: int = 0

    @property
    def given(self) -> int:
        """How many values there are before the first step."""
        return len(self.leaves) + 3

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the parameters."""
        return tuple(c for name, c, _ in self.steps if name == "param")

    @property
    def single(self) -> bool:
        return any(n != "param" and OPERATIONS[n].single for n, _, _ in self.steps)

    def numbers(self, *shape: int, salt: int = 0) -> Any:
        """Normal numbers, the same ones for a seed."""
        generator = np.random.default_rng([self.seed, salt])
        return jnp.asarray(0.6 * generator.normal(size=shape))


class Program(eqx.Module):
    """The model of a spec: plain JAX, no marks.

    `number` tells models of one spec apart: the library warns of each model once.
    """

    params: tuple[jax.Array, ...]
    spec: Spec = eqx.field(static=True)
    number: int = eqx.field(static=True)

    def __init__(self, spec: Spec, params: Any = None, number: int = 0) -> None:
        self.spec, self.number = spec, number
        if params is None:
            pairs = enumerate(spec.shapes)
            params = tuple(spec.numbers(*s, salt=10 + n) for n, s in pairs)
        self.params = params

    def init_state(self) -> tuple[Any, ...]:
        pairs = enumerate(self.spec.leaves)
        leaves = [self.spec.numbers(*s, salt=5 + n) for n, s in pairs]
        return (*leaves, jnp.asarray(0, jnp.int32))

    def __call__(self, state: tuple, x: Any, i: Any) -> tuple[Any, Any]:
        spec, params = self.spec, iter(self.params)
        *leaves, counter = state
        env = [*leaves, x, i, counter % 2]
        for name, choice, operands in spec.steps:
            if name == "param":
                env.append(next(params))
            else:
                values = [env[n] for n in operands]
                env.append(OPERATIONS[name].fun(choice, *values))
        new = tuple(env[n] for n in spec.new)
        return tuple(env[n] for n in spec.outputs), (*new, counter + 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of a spec, and the values they begin and end with.

    - `given`: leaves, input, index, counter; `params`; `new`; `outputs`.
    - `numbered`: all values of the spec.
    - `sources`: of each movement, where its elements come from.
    """

    nodes: tuple[Node, ...]
    given: tuple[Value, ...]
    params: tuple[Value, ...]
    new: tuple[Value, ...]
    outputs: tuple[Value, ...]
    numbered: tuple[Value, ...]
    sources: dict[Node, np.ndarray]


def nodes_of(spec: Spec) -> Nodes:
    tape = Tape()

    def given(shape: Shape, dtype: Any, data: bool = True, params: Any = ()) -> Value:
        struct = jax.ShapeDtypeStruct(shape, dtype)
        return tape.value(struct, data, frozenset(params))

    number, index = jnp.zeros(0).dtype, np.dtype("int32")
    env = [given(s, number) for s in (*spec.leaves, (FEATURES,))]
    env += [given((), index), given((), index)]
    first, params = tuple(env), []
    for name, choice, operands in spec.steps:
        if name == "param":
            env.append(given(choice, number, False, [len(params)]))
            params.append(env[-1])
        else:
            values = [env[n] for n in operands]
            tape.operation = name, choice, tuple(v.shape for v in values)
            tape.whole = OPERATIONS[name].whole
            tape.product = name in PLAIN_PRODUCTS
            env.append(OPERATIONS[name].on_tape(tape, choice, *values))
    new, outputs = ([env[n] for n in group] for group in (spec.new, spec.outputs))
    moved = {
        n: sources(n) for n in tape.nodes if n.kind == "movement" and n.output.inexact
    }
    return Nodes(
        tuple(tape.nodes),
        first,
        tuple(params),
        tuple(new),
        tuple(outputs),
        tuple(env),
        moved,
    )


# -------------------------------------------------------------------------- drawing


@functools.cache
def _result(name: str, choice: int, shapes: tuple[Shape, ...]) -> Shape:
    operation = OPERATIONS[name]
    numbers = [jax.ShapeDtypeStruct(s, jnp.zeros(0).dtype) for s in shapes]
    if operation.index:
        numbers.insert(operation.data, jax.ShapeDtypeStruct((), np.int32))
    return jax.eval_shape(lambda *xs: operation.fun(choice, *xs), *numbers).shape


class Draft:
    """A program as it is drawn."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.leaves = generator.choice(STATES)
        self.steps: list[tuple[str, Any, tuple[int, ...]]] = []
        self.shapes: list[Shape | None] = [*self.leaves, (FEATURES,), None, None]
        # By number: what depends on data, on the state, on parameters alone; what
        # nothing has read yet.
        self.data = [*range(len(self.leaves) + 1)]
        self.moving = {*range(len(self.leaves))}
        self.weights: list[int] = []
        self.unread: set[int] = set()

    def append(self, name: str, choice: Any, operands: tuple[int, ...]) -> int:
        if name == "param":
            shape = choice
        else:
            shapes = [self.shapes[n] for n in operands]
            known = tuple(s for s in shapes if s is not None)
            shape = _result(name, choice, known)
        self.steps.append((name, choice, operands))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def weight(self, shape: Shape) -> int:
        """A parameter, a used one, or an expression of it."""
        found = [n for n in self.weights if self.shapes[n] == shape]
        if found and self.random.random() < 0.25:
            return self.random.choice(found)
        self.weights.append(self.append("param", shape, ()))
        if self.random.random() < 0.25:
            names = ["tanh", "sigmoid", "constant_gain", "gelu"]
            names += ["permute"] if len(shape) and min(shape) > 1 else []
            operand = (self.weights[-1],)
            name, choice = self.random.choice(names), self.random.randrange(2)
            self.weights.append(self.append(name, choice, operand))
        return self.weights[-1]

    def apply(self, name: str, choice: int, data: tuple[int, ...]) -> int:
        """An operation of some data, with what else it needs."""
        operation, operands = OPERATIONS[name], list(data)
        if operation.index:
            operands.append(len(self.leaves) + self.random.choice([1, 2]))
        if operation.weight is not None:
            shapes = [self.shapes[n] for n in data]
            operands.append(self.weight(operation.weight(choice, *shapes)))
        result = self.append(name, choice, tuple(operands))
        self.data.append(result)
        self.unread -= {*data}
        self.unread.add(result)
        if self.moving & {*data}:
            self.moving.add(result)
        return result

    def choose(self, tuples: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Values that depend on the state and that nothing has read, mostly."""
        for wanted in (self.moving, self.unread):
            preferred = [t for t in tuples if wanted & {*t}]
            if preferred and self.random.random() < 0.9:
                tuples = preferred
        return self.random.choice(tuples)

    def step(self, name: str) -> None:
        """A random application, if there is any."""
        operation = OPERATIONS[name]
        tuples = itertools.product(self.data, repeat=operation.data)
        fitting = [t for t in tuples if operation.accepts(*(self.shapes[n] for n in t))]
        if fitting:
            self.apply(name, self.random.randrange(6), self.choose(fitting))

    def next_state(self, leaf: int) -> int:
        """A new value for a leaf."""
        shape, chance = self.leaves[leaf], self.random.random
        size = int(np.prod(shape))
        found = [(n,) for n in self.data if self.shapes[n] == shape]
        (value,) = self.choose(found)
        others = [n for n in self.unread - {value} if n in self.data]
        if others and chance() < 0.8:
            other = self.random.choice(sorted(others))
            if int(np.prod(self.shapes[other])) == size and chance() < 0.6:
                brought = self.apply("reshape_to", SHAPES.index(shape), (other,))
            else:
                brought = self.apply("bring", SHAPES.index(shape), (other,))
            name = self.random.choice(["add", "add", "mul", "where2", "lerp"])
            value = self.apply(name, 0, (value, brought))
        if chance() < 0.5:
            drive = self.apply("encode", SHAPES.index(shape), (len(self.leaves),))
            value = self.apply("add", 0, (value, drive))
        how = self.random.choice(["leak", "leak", "carry", "write", "squash", None])
        if how is None:
            return value
        return self.apply(how, 0, (value,) if how == "squash" else (leaf, value))

    def output(self, new: Sequence[int]) -> int:
        value = self.random.choice([*new, *new, *self.data[-6:]])
        if self.random.random() < 0.5:
            return self.apply("read", 0, (value,))
        return value


_TABLES = (ELEMENTWISE, ELEMENTWISE, MOVEMENT, MIXING, PRODUCTS)


def draw_spec(seed: int, excluded: frozenset[str] = frozenset()) -> Spec:
    generator = random.Random(seed)
    while True:
        draft = Draft(generator)
        for _ in range(generator.randint(3, 8)):
            table = generator.choice(_TABLES)
            draft.step(generator.choice([n for n in table if n not in excluded]))
        leaves = draft.leaves
        new = tuple(draft.next_state(leaf) for leaf in range(len(leaves)))
        outputs = tuple(draft.output(new) for _ in range(generator.choice([1, 1, 2])))
        spec = Spec(leaves, tuple(draft.steps), new, outputs, generator.randrange(100))
        if spec.shapes:
            return spec


@st.composite
def specs(draw: Callable[..., int], excluded: frozenset[str] = frozenset()) -> Spec:
    """Random step functions without the operations in `excluded`.

    From one number each: hypothesis would spend its time on variants of the first.
    """
    return draw_spec(draw(st.integers(0, 2**62)), excluded)
