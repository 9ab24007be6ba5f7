"""Which elements of a step depend on which of some sources, by whatever paths."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from .ir import Edge, Equation, Var
from .operations import NOTHING, Operations
from .primitive import Kind, Zeros

Flags = dict[Var, np.ndarray]


class Dependence:
    """Carries `size` flags through the program, from values and from edges.

    `by_zeros`: nothing passes where a factor is zero by construction.
    """

    def __init__(
        self,
        operations: Operations,
        at_values: Flags,
        at_edges: Mapping[Edge, np.ndarray],
        size: int,
        by_zeros: bool = True,
    ):
        self.operations = operations
        self.flags = dict(at_values)
        self.at_edges = at_edges
        self.size = size
        self.by_zeros = by_zeros
        self.present: Flags = {}

    def run(self) -> Flags:
        for i, equation in enumerate(self.operations.program.equations):
            kind = self.operations.kinds[i]
            operands = [self._read((i, j), v) for j, v in enumerate(equation.inputs)]
            present = []
            if self.by_zeros:
                present = [self._present(v) for v in equation.inputs]
                if equation.outputs:
                    self._mark(equation, i, present)
            if kind is Kind.STOP or all(o is None for o in operands):
                continue
            found = self._through(equation, i, operands, present)
            for v, flags in zip(equation.outputs, found, strict=True):
                if v.inexact and v not in self.flags:
                    self.flags[v] = flags
        return self.flags

    def _read(self, edge: Edge, var: Var) -> np.ndarray | None:
        flags, more = self.flags.get(var), self.at_edges.get(edge)
        if more is None or flags is None:
            return flags if more is None else more
        return flags | more

    def _through(self, equation, i, operands, present) -> list[np.ndarray]:
        if self.by_zeros and equation.primitive.zeros is Zeros.PRODUCT:
            # Linear in each operand: what passes is what it makes of zeros and ones.
            parts = []
            for j, flags in enumerate(operands):
                if flags is not None:
                    values = [*present[:j], flags, *present[j + 1 :]]
                    parts.append(_applied(equation, values, j))
            return [functools.reduce(np.logical_or, parts)]
        found = self.operations.arriving(
            i, operands, False, self._mixed, more=(self.size,)
        )
        return [functools.reduce(np.logical_or, parts) for parts in found]

    def _mixed(self, edge: Edge, flags: np.ndarray) -> list[np.ndarray]:
        """What an operand reaches through a mixing operation."""
        blocks = self.operations.blocks(edge)
        operand = self.operations.program.operand(edge)
        rows = np.broadcast_to(flags, (*operand.shape, self.size))
        rows = rows.reshape(operand.size, self.size)
        if blocks is None:
            outputs, every = (
                self.operations.program.equations[edge[0]].outputs,
                rows.any(axis=0),
            )
            return [np.broadcast_to(every, (*v.shape, self.size)) for v in outputs]
        reached = np.zeros((blocks.count, self.size), bool)
        np.logical_or.at(reached, blocks.operand.reshape(-1), rows)
        return blocks.to_results(reached)

    # ------------------------------------------------------------ what is zero for sure

    def _present(self, var: Var) -> np.ndarray:
        """Where a value may be anything but zero."""
        if var not in self.present:
            known = self.operations.known(var)
            here = np.ones(var.shape, bool) if known is None else known != 0
            self.present[var] = np.asarray(here)
        return self.present[var]

    def _mark(self, equation: Equation, i: int, present: list[np.ndarray]) -> None:
        (out, *others), zeros = equation.outputs, equation.primitive.zeros
        if all(x.all() for x in present) or self.operations.known(out) is not None:
            return
        if zeros is Zeros.PRODUCT:
            self.present[out] = _applied(equation, present, None)
        elif zeros is Zeros.ALL:
            self.present[out] = np.broadcast_to(present[0] | present[1], out.shape)
        elif zeros is Zeros.FIRST:
            self.present[out] = np.broadcast_to(present[0], out.shape)
        elif self.operations.kinds[i] is Kind.MOVEMENT:
            flat = np.concatenate([x.reshape(-1) for x in present])
            for v, source in zip((out, *others), self.operations.sources(i)):
                self.present[v] = (source == NOTHING) | flat[source]


def _applied(equation: Equation, values: list[np.ndarray], moving: int | None):
    """Where the operation gives anything but zero, for zeros and ones."""
    axes = [-1 if j == moving else None for j in range(len(values))]
    with jax.ensure_compile_time_eval():
        dtypes = [v.dtype for v in equation.inputs]
        arrays = [jnp.asarray(x, d) for x, d in zip(values, dtypes, strict=True)]
        fun = lambda *xs: equation.fun(*xs)[0]  # noqa: E731
        result = fun(*arrays) if moving is None else jax.vmap(fun, axes, -1)(*arrays)
        return np.asarray(result != 0)
