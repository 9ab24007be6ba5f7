"""D-RTRL of a random step function, by dense Jacobians."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import etrace.testing as et

from .positions import Facts
from .programs import Nodes, Program
from .tape import Node, Stops, run


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What every step of a sequence shows; T steps, H numbers of the state, n
    parameters.

    - `value`, `outputs`, `states`: loss, outputs, state before each step and at the
        end.
    - `now`, `by_h`, `by_theta`, `full`: ∂L/∂θ `[T, n]`, ∂L/∂h_old `[T, H]`, dh/dθ and
        dh/dh_old, nothing stopped.
    - `boundary`: ∂L/∂h_old with gradients stopped at what feeds the group of the
        element `[T, H]`.
    - `i`: dh/dθ with gradients stopped at mixing operations, but for what these lead to
        one position alone.
    - `d`: dh/dh_old with gradients stopped at cuts, and at mixing operations but for
        those that mix nothing but what one position holds; from a position to itself.
    - `i_traced`: as `i`, without the elements that are not traced where weights meet
        data.
    - `confirmed`: whether the step, evaluated operation by operation, has the same
        `value` and `now`.
    """

    value: np.ndarray
    states: np.ndarray
    now: np.ndarray
    by_h: np.ndarray
    by_theta: np.ndarray
    full: np.ndarray
    boundary: np.ndarray
    i: np.ndarray
    d: np.ndarray
    i_traced: np.ndarray
    confirmed: Callable[[], bool]

    def usable(self) -> bool:
        """Whether all numbers are finite, and none of them large."""
        numbers = [x for x in vars(self).values() if isinstance(x, np.ndarray)]
        return all(np.isfinite(x).all() and abs(x).max() < 1e6 for x in numbers)

    def gradient(self, i: np.ndarray, window: int, multi: bool) -> np.ndarray:
        """The gradient from immediate influences `i`."""
        result, m = self.now.sum(0), np.zeros(i.shape[1:])
        for t in range(len(i)):
            if not multi:
                result = result + self.boundary[t] @ m
            elif t % window == 0:
                start = m  # dh/dθ; within a window nothing is left out
            if multi:
                result = result + self.by_h[t] @ start
                start = self.full[t] @ start + self.by_theta[t]
            m = self.d[t] @ m + i[t]
        return result

    def bptt(self) -> np.ndarray:
        return self.gradient(self.i, len(self.i), True)


class Step:
    """A step as functions of vectors."""

    def __init__(self, model: Program, nodes: Nodes) -> None:
        self.model, self.nodes = model, nodes
        self.shapes = [p.shape for p in model.params]

    def params(self, theta):
        return _split(theta, self.shapes)

    def plain(self, theta, h, counter, x, i, target):
        """(L, new h), by the model itself."""
        model = Program(self.model.spec, self.params(theta))
        leaves = _split(h, self.model.spec.leaves)
        outputs, new = model((*leaves, counter), x, i)
        return et.squared_error(outputs, target), _joined(new[:-1])

    def marked(self, stops: Stops, theta, h, counter, x, i, target):
        """The same, by nodes."""
        nodes = self.nodes
        given = (*_split(h, self.model.spec.leaves), x, i, counter % 2)
        pairs = [*zip(nodes.given, given), *zip(nodes.params, self.params(theta))]
        env = {v.number: a for v, a in pairs}
        run(nodes.nodes, env, stops)
        outputs = tuple(env[v.number] for v in nodes.outputs)
        new = _joined([env[v.number] for v in nodes.new])
        return et.squared_error(outputs, target), new


def _returning(facts: Facts, g: int, node: Node, j: int) -> np.ndarray:
    return facts.returning[g].get((node, j), np.zeros((), bool))


def _leading(leading: dict, node: Node, j: int) -> np.ndarray:
    return ~leading.get((node, j), np.zeros((), bool))


def _split(vector, shapes):
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    starts = [0, *ends[:-1]]
    return tuple(vector[a:b].reshape(s) for a, b, s in zip(starts, ends, shapes))


def _joined(parts):
    return jnp.concatenate([jnp.ravel(p) for p in parts])


def reference(
    model: Program, nodes: Nodes, facts: Facts, data: tuple, partly: bool, multi: bool
) -> Reference:
    """`data`: the inputs and the targets. `partly`, `multi`: whether `i_traced`, and
    what windows of several steps need, are asked for; zeros stand for them if not."""
    step = Step(model, nodes)

    @jax.jit
    def observed(theta, h, *at):
        value, new = step.plain(theta, h, *at)
        by_h, by_theta, full = (jnp.zeros(s) for s in (h.shape, theta.shape, ()))
        if multi:
            found = jax.jacrev(step.plain, (0, 1))(theta, h, *at)
            (now, by_h), (by_theta, full) = found
        else:
            now = jax.grad(lambda theta: step.plain(theta, h, *at)[0])(theta)
        spatial = value, h, now, by_h, by_theta, full
        local = _boundary(step, facts, theta, h, at), *_local(step, facts, theta, h, at)
        traced = _traced(step, facts, theta, h, at) if partly else jnp.zeros(())
        return (*spatial, *local, traced), new

    theta = np.concatenate([np.ravel(p) for p in model.params])
    h = np.concatenate([np.ravel(x) for x in model.init_state()[:-1]])
    steps, at = [], []
    for t in range(len(data[0])):
        now = jax.tree.map(lambda x: np.asarray(x)[t], data)  # noqa: B023
        at.append(jax.tree.map(jnp.asarray, (theta, h, np.int32(t), *now)))
        found, h = observed(*at[-1])
        steps.append(jax.tree.map(np.asarray, found))
    columns = [np.stack(column) for column in zip(*steps, strict=True)]
    columns[1] = np.concatenate([columns[1], np.asarray(h)[None]])
    return Reference(*columns, functools.partial(_confirmed, step, at, columns))


def _confirmed(step: Step, at: list[tuple], columns: list[np.ndarray]) -> bool:
    """Compiled together with its gradient, a step may give something else than without:
    XLA on CPU writes over what it still has to read (JAX 0.10.2, a slice of an array
    written into the same array). Or it seeks a minimum in numbers that it has rounded
    in another way. No oracle, then."""
    rtol = 1e-3 if step.model.spec.single else 1e-7
    for arguments, value, now in zip(at, columns[0], columns[2], strict=True):
        alone = jax.value_and_grad(step.plain, has_aux=True)(*arguments)
        (own, _), gradient = alone
        same = np.allclose(value, own, rtol=rtol, atol=1e-12, equal_nan=True)
        if not (same and np.allclose(now, gradient, rtol=rtol, atol=rtol)):
            return False
    return True


def _boundary(step: Step, facts: Facts, theta, h, at):
    result = jnp.zeros_like(h)
    for g in facts.partition.groups:
        stops = Stops(functools.partial(_returning, facts, g), facts.closed[g])
        signal = jax.grad(lambda h, s=stops: step.marked(s, theta, h, *at)[0])(h)
        result = jnp.where(facts.partition.group == g, signal, result)
    return result


def _local(step: Step, facts: Facts, theta, h, at):
    """(i, d)."""
    same = facts.partition.same().astype(float)
    if not (facts.cuts or facts.inner or any(facts.leading)):  # one way to stop
        stops = Stops(lambda n, j: True)
        both = jax.jacrev(lambda *a: step.marked(stops, *a)[1], (0, 1))
        i, d = both(theta, h, *at)
        return i, d * same
    cuts = {k: label >= 0 for k, label in facts.cuts.items()}
    stops = Stops(lambda n, j: (n, j) not in facts.inner, cuts)
    d = jax.jacrev(lambda h: step.marked(stops, theta, h, *at)[1])(h)
    result, common = jnp.zeros((h.size, theta.size)), None
    for g in facts.partition.groups:
        alone = not facts.leading[g]
        if common is None or not alone:
            stops = Stops(functools.partial(_leading, facts.leading[g]))
            rows = jax.jacrev(lambda th, s=stops: step.marked(s, th, h, *at)[1])(theta)
            common = rows if alone else common
        own = facts.partition.group[:, None] == g
        result = jnp.where(own, common if alone else rows, result)
    return result, d * same


def _traced(step: Step, facts: Facts, theta, h, at):
    result = jnp.zeros((h.size, theta.size))
    for g in facts.partition.groups:
        leads = functools.partial(_leading, facts.leading[g])
        stops = Stops(leads, {}, facts.held[g], facts.chains)
        rows = jax.jacrev(lambda th, s=stops: step.marked(s, th, h, *at)[1])(theta)
        result = jnp.where(facts.partition.group[:, None] == g, rows, result)
    return result
