"""SnAp: the sparse n-step approximation of real-time recurrent learning."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._analysis import Graph, heard, of_graph, positions_of, reach
from .._backward import LearningSignals
from .._window import Window
from ._whole_step import At, WholeStep, WholeStepRule, stored_dtype

Data = tuple[tuple[Array, ...], ...]  # per trace, per block: [batch, m, r, c]


class SnAp(WholeStepRule):
    r"""SnAp-n: the influence of each weight where it arrives within n steps.

    With J_t = ∂h_t/∂h_{t-1} and I_t = ∂h_t/∂w by all paths,

        M_t = mask(J_t M_{t-1} + I_t)

    keeps, of the influence of the weight w[b, o, c] of a site, what falls on the
    positions that z[b, :, o] can reach within n steps: for n = 1 those it flows into,
    with each further step those that the Jacobian leads to. Zeros count that are there
    by construction, as in a weight times a constant mask; so sparse recurrent weights
    make small traces. Once everything is reached, this is RTRL.

    Memory: batch × Σ over columns (b, o) of (numbers reached × c), nothing for what the
    mask leaves out. Weights that enter by no traced site keep their instantaneous
    gradient, see the report.

    **Arguments:** those of [`etrace.ETraceVjpAlgorithm`][], and

    - `n`: the number of steps, at least 1.

    **Raises:** ValueError if `n` is not a positive integer.

    ??? cite "Reference"

        Menick et al., A Practical Sparse Approximation for Real Time Recurrent
        Learning, ICLR (2021), arXiv:2006.07232 (2020).
    """

    n: int = eqx.field(static=True)

    def __init__(self, model: eqx.Module, *args: Any, n: int = 1, **options: Any):
        super().__init__(model, *args, **options)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n is {n!r}; expected the number of steps, at least 1.")
        self.n = n

    def _init_etrace_data(self, graph: Graph, batch: int | None) -> PyTree:
        lead = () if batch is None else (batch,)
        result = []
        for spec, blocks in zip(graph.traces, _blocks(graph, self.n), strict=True):
            site = graph.sites[spec.site]
            dtype = stored_dtype(self.trace_dtype, site.weight.dtype)
            shapes = [(*lead, *x.rows.shape, site.form.sizes[3]) for x in blocks]
            result.append(tuple(jnp.zeros(shape, dtype) for shape in shapes))
        return tuple(result)

    def _solve_weight_gradients(
        self, data: Data, window: Window, signals: LearningSignals
    ) -> PyTree:
        return signals.gradients(self._past(data, window, signals))

    def _hears(self, graph: Graph, group: int) -> bool:
        # Within n steps what a weight did may have reached a group that outputs read.
        known, groups = heard(graph), graph.positions.group_of(positions_of(graph))
        reached = reach(graph, self.n)
        own = {t.site for t in graph.traces if t.group == group}
        at = [groups[reached[s].any(axis=(1, 2))].tolist() for s in own]
        return all(known.intersection(g) for g in at)

    def _signal(self, step: WholeStep, signals: LearningSignals) -> PyTree:
        if self.vjp_method == "multi-step":
            return super()._signal(step, signals)
        size = step.window.size
        return [x.reshape(*size, *x.shape[1:]) for x in signals.spatial]

    def _contract(
        self, data: Data, step: WholeStep, at: At, signal: PyTree
    ) -> list[Array | None]:
        graph, result = step.graph, []
        if self.vjp_method == "single-step":
            signal = jax.vmap(step.from_exits)(at, signal)  # [batch, positions, N]
        for t, blocks in enumerate(_blocks(graph, self.n)):
            b, _, o, c = graph.sites[graph.traces[t].site].form.sizes
            total = None
            for block, m in zip(blocks, data[t], strict=True):
                found = jnp.einsum("Bmr,Bmrc->mc", _at_rows(signal, block, m.dtype), m)
                if total is None:
                    total = jnp.zeros((b * o, c), m.dtype)
                total = total.at[block.columns].set(found)
            result.append(None if total is None else total.reshape(b, o, c))
        return result

    def _advance(self, data: Data, step: WholeStep, at: At) -> Data:
        return jax.vmap(lambda data, at: self._advance_one(data, step, at))(data, at)

    def _advance_one(self, data: Data, step: WholeStep, at: At) -> Data:
        graph, inputs = step.graph, step.local_inputs(at)
        jacobian, at_sites = step.jacobians(at)
        result = []
        for t, blocks in enumerate(_blocks(graph, self.n)):
            s = graph.traces[t].site
            f, x = at_sites[s], inputs[s]
            o, new = f.shape[3], []
            for block, m in zip(blocks, data[t], strict=True):
                rows, b = block.rows, block.columns // o
                now = f[rows, b[:, None], :, (block.columns % o)[:, None]]  # [m, r, p]
                local = x[b].astype(m.dtype)  # [m, p, c]
                now = jnp.einsum("mrp,mpc->mrc", now.astype(m.dtype), local)
                new.append(_moved(jacobian.astype(m.dtype), m, rows) + now)
            result.append(tuple(new))
        return tuple(result)


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    """Columns of a site that reach equally many numbers of the state.

    `columns`, [m], count the pairs (b, o); `rows` are the numbers they reach, [m, r].
    """

    columns: np.ndarray
    rows: np.ndarray
    positions: np.ndarray  # whether a column reaches each position, [m, positions]


@of_graph
def _blocks(graph: Graph, n: int) -> tuple[tuple[_Block, ...], ...]:
    """Per trace; the whole of a site's influence is kept with its first trace."""
    left, position = dict(enumerate(reach(graph, n))), positions_of(graph)
    result = []
    for spec in graph.traces:
        reached = left.pop(spec.site, None)
        blocks = []
        if reached is not None:
            flat = reached.reshape(len(reached), -1).T  # [columns, N]
            sizes = flat.sum(axis=1)
            for size in np.unique(sizes[sizes > 0]):
                columns = np.flatnonzero(sizes == size)
                rows = np.nonzero(flat[columns])[1].reshape(-1, size)
                at_positions = np.zeros((len(columns), position.max() + 1), bool)
                at_positions[np.arange(len(columns))[:, None], position[rows]] = True
                blocks.append(_Block(columns, rows, at_positions))
        result.append(tuple(blocks))
    return tuple(result)


def _at_rows(signal: Array, block: _Block, dtype: Any) -> Array:
    """A signal at what each column reaches, [batch, m, r].

    `signal` is one for all, [batch, N], or one for the exits of every position,
    [batch, positions, N], of which each column is given those of its positions.
    """
    if signal.ndim == 2:
        return signal[:, block.rows].astype(dtype)
    masks = jnp.asarray(block.positions, signal.dtype)
    each = jnp.einsum("mp,Bpn->Bmn", masks, signal)
    columns = np.arange(len(block.rows))[:, None]
    return each[:, columns, block.rows].astype(dtype)


def _moved(jacobian: Array, m: Array, rows: np.ndarray) -> Array:
    """mask(J M) of one block, [m, r, c]."""
    if rows.shape[1] == len(jacobian):
        return jnp.einsum("rq,mqc->mrc", jacobian, m)
    among = jacobian[rows[:, :, None], rows[:, None]]  # [m, r, r]
    return jnp.einsum("mrq,mqc->mrc", among, m)
