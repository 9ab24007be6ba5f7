"""A step as a list of nodes, each with a kind that its author gave it by hand.

A model runs an operation by calling JAX. The oracle runs the same operation as nodes,
cut as finely as its definition asks: a softmax is an exponential, a sum that mixes, and
a quotient.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Kind = Literal["elementwise", "movement", "mixing", "stop"]


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value of the step, by number.

    - `data`: whether it depends on the state or the inputs.
    - `params`: the parameters it depends on.
    """

    number: int
    shape: tuple[int, ...]
    dtype: Any
    data: bool
    params: frozenset[int]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))

    @property
    def inexact(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.inexact)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One step of an operation.

    - `key`: equal for nodes that compute the same.
    - `whole`: of a mixing node that the library takes to keep nothing apart.
    - `product`: whether it is a plain product with a weight.
    """

    kind: Kind
    fun: Callable[..., Any]
    inputs: tuple[Value, ...]
    output: Value
    key: tuple[Hashable, ...]
    whole: bool = False
    product: bool = False

    @property
    def meets(self) -> tuple[int, ...]:
        """The operands that are weights, if the others are data."""
        if not self.output.data or self.kind == "stop":
            return ()
        pairs = enumerate(self.inputs)
        return tuple(j for j, v in pairs if v.params and not v.data and v.inexact)


class Tape:
    """Notes down nodes. Its methods are what an operation is made of."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.values: list[Value] = []
        #: What the coming nodes belong to, and whether they mix all there is.
        self.operation: Hashable = None
        self.whole = self.product = False

    def value(self, like: Any, data: bool, params: frozenset[int]) -> Value:
        shape = tuple(like.shape)
        value = Value(len(self.values), shape, np.dtype(like.dtype), data, params)
        self.values.append(value)
        return value

    def node(self, kind: Kind, fun: Callable[..., Any], *inputs: Value) -> Value:
        structs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs]
        data = any(v.data for v in inputs)
        moving = [v.params for v in inputs if kind != "stop"]
        out = jax.eval_shape(fun, *structs)
        output = self.value(out, data, frozenset().union(*moving))
        mine = sum(n.key[0] == self.operation for n in self.nodes[-9:])
        key = self.operation, mine, tuple(v.shape for v in inputs)
        self.nodes.append(
            Node(kind, fun, inputs, output, key, self.whole, self.product)
        )
        return output

    def e(self, fun: Callable[..., Any], *inputs: Value) -> Value:
        """Each element of the result from the same element of every operand; shapes are
        broadcast as in NumPy."""
        return self.node("elementwise", fun, *inputs)

    def x(self, fun: Callable[..., Any], *inputs: Value) -> Value:
        """Moves elements to other places. Zeros in the result come from no operand."""
        return self.node("movement", fun, *inputs)

    def m(self, fun: Callable[..., Any], *inputs: Value) -> Value:
        """Mixes."""
        return self.node("mixing", fun, *inputs)

    def stop(self, value: Value) -> Value:
        """Ends all derivatives."""
        return self.node("stop", jax.lax.stop_gradient, value)


def sources(node: Node) -> np.ndarray:
    """Where a movement takes its elements from: places in its operands, laid end to
    end; -1 for those that come from nowhere."""
    ids, start = [], 1
    for v in node.inputs:
        ids.append(np.arange(start, start + v.size, dtype=float).reshape(v.shape))
        start += v.size
    moved = node.fun(*map(jnp.asarray, ids))
    return np.asarray(moved).astype(int).reshape(-1) - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Stops:
    """Where gradients stop.

    - `at`: at which elements of which operands of mixing nodes, if data enter there: an
        array, or one truth value for all.
    - `cuts`: at which elements of which operands of elementwise nodes.
    - `held`: where weights meet data, the elements of the result that are not to depend
        on the weights; of a movement, the elements of its operands, laid end to end.
    - `chains`: operands that count as weights there.
    """

    at: Callable[[Node, int], Any]
    cuts: Mapping[tuple[Node, int], np.ndarray] = dataclasses.field(
        default_factory=dict
    )
    held: Mapping[Node, np.ndarray] = dataclasses.field(default_factory=dict)
    chains: Set[tuple[Node, int]] = frozenset()


def run(nodes: Sequence[Node], env: dict[int, Any], stops: Stops) -> None:
    """Computes all nodes, in `env`, by the numbers of the values."""
    for node in nodes:
        operands = [env[v.number] for v in node.inputs]
        for j, v in enumerate(node.inputs):
            mask = stops.cuts.get((node, j), np.zeros((), bool))
            if node.kind == "mixing" and v.data and v.inexact:
                mask = np.asarray(stops.at(node, j))
            if mask.any():
                shape = node.output.shape if node.kind == "elementwise" else v.shape
                wide = jnp.broadcast_to(operands[j], shape)
                operands[j] = jnp.where(mask, lax.stop_gradient(wide), wide)
        held = stops.held.get(node, np.zeros(()))
        weights = [*node.meets, *(j for n, j in stops.chains if n is node)]
        held = _held(node, operands, held, weights) if held.any() else None
        result = node.fun(*operands) if held is None else held
        env[node.output.number] = result


def _held(
    node: Node, operands: list[Any], mask: np.ndarray, weights: Sequence[int]
) -> Any:
    fixed, start = list(operands), 0
    for j, v in enumerate(node.inputs):
        if j in weights:
            fixed[j] = lax.stop_gradient(operands[j])
            if node.kind == "movement":
                own = mask[start : start + v.size].reshape(v.shape)
                fixed[j] = jnp.where(own, fixed[j], operands[j])
        start += v.size
    if node.kind == "movement":
        return node.fun(*fixed)
    return jnp.where(mask, node.fun(*fixed), node.fun(*operands))
