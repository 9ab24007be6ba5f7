"""Where the state lies when the model or the inputs lie on several devices.

Nothing here divides work: XLA does. A trace should lie where its weight and its
examples do, and XLA knows where that is, whatever a rule stores: it leaves the state of
one step there. So the state begins where one step would leave it.
"""

import equinox as eqx
import jax
from jax.core import Tracer
from jaxtyping import PyTree

from ._model import Static, is_array
from ._rule import Rule
from ._start import Start, with_trace
from ._trace import Trace


def is_spread(tree: PyTree) -> bool:
    """Whether any array lies on several devices. Inside a transformation none does:
    there it is not known."""
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    known = [x for x in leaves if not isinstance(x, Tracer)]
    return any(len(x.sharding.device_set) > 1 for x in known)


def started(algorithm: Rule, inputs: tuple) -> tuple:
    """The state before the first step, each array made where it belongs and nowhere
    else."""
    if not is_spread((algorithm, inputs)):
        return _started(algorithm, inputs)
    arrays, static = eqx.partition((algorithm, inputs), is_array)
    shardings = _shardings(algorithm, inputs)
    jitted = jax.jit(_called, static_argnums=0, out_shardings=shardings)
    return jitted(Static.of((_started, static)), arrays)


def placed(algorithm: Rule, inputs: tuple, trace: Trace) -> Trace:
    """Shapes and dtypes of a trace, with where its arrays lie if that is several
    devices."""
    if not is_spread((algorithm, inputs)):
        return trace
    at = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(at, trace, _shardings(algorithm, inputs)[2])


def _started(algorithm: Rule, inputs: tuple) -> tuple:
    graph, batch = algorithm._graph(inputs)
    state = Start.of(algorithm, graph).state(batch if algorithm.batched else None)
    return with_trace(algorithm, state)


def _stepped(algorithm: Rule, inputs: tuple) -> tuple:
    return algorithm.update(*_started(algorithm, inputs), *inputs)[1:]


def _shardings(algorithm: Rule, inputs: tuple) -> PyTree:
    """Where XLA leaves the state after one step, which is not taken."""
    arrays, static = eqx.partition((algorithm, inputs), is_array)
    lowered = _jitted.lower(Static.of((_stepped, static)), arrays)
    return lowered.compile().output_shardings


def _called(static: Static, arrays: PyTree) -> PyTree:
    fun, static_arguments = static.tree()
    return fun(*eqx.combine(arrays, static_arguments))


_jitted = jax.jit(_called, static_argnums=0)
