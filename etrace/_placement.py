"""Where the state lies when the model or the inputs lie on several devices.

Nothing here divides work: XLA does. A trace should lie where its weight and its
examples do, and XLA knows where that is, whatever a rule stores: it leaves the state of
one step there. So the state begins where one step would leave it.
"""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
from jax.core import Tracer
from jax.sharding import AxisType
from jaxtyping import PyTree

from ._model import Static, is_array
from ._start import Start, with_trace
from ._trace import Trace

if TYPE_CHECKING:
    from ._algorithm import ETraceVjpAlgorithm


def is_spread(tree: PyTree) -> bool:
    """Whether any array lies on several devices. Inside a transformation none does:
    there it is not known."""
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    known = [x for x in leaves if not isinstance(x, Tracer)]
    return any(len(x.sharding.device_set) > 1 for x in known)


def started(algorithm: "ETraceVjpAlgorithm", inputs: tuple) -> tuple:
    """The state before the first step, each array made where it belongs and nowhere
    else."""
    if not is_spread((algorithm, inputs)):
        return _started(algorithm, inputs)
    arrays, static = eqx.partition((algorithm, inputs), is_array)
    shardings = _shardings(algorithm, inputs)
    jitted = jax.jit(_called, static_argnums=0, out_shardings=shardings)
    return jitted(Static.of((_started, static)), arrays)


def placed(algorithm: "ETraceVjpAlgorithm", inputs: tuple, trace: Trace) -> Trace:
    """Shapes and dtypes of a trace, with where its arrays lie if that is several
    devices."""
    if not is_spread((algorithm, inputs)):
        return trace
    at = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(at, trace, _shardings(algorithm, inputs)[2])


def _started(algorithm: "ETraceVjpAlgorithm", inputs: tuple) -> tuple:
    graph, batch = algorithm._graph(inputs)
    state = Start.of(algorithm, graph).state(batch if algorithm.batched else None)
    return with_trace(algorithm, state)


def _stepped(algorithm: "ETraceVjpAlgorithm", inputs: tuple) -> tuple:
    return algorithm.update(*_started(algorithm, inputs), *inputs)[1:]


def _shardings(algorithm: "ETraceVjpAlgorithm", inputs: tuple) -> PyTree:
    """Where XLA leaves the state after one step, which is not taken."""
    arrays, static = eqx.partition((algorithm, inputs), is_array)
    lowered = _jitted.lower(Static.of((_stepped, static)), arrays)
    return lowered.compile().output_shardings


def _called(static: Static, arrays: PyTree) -> PyTree:
    fun, static_arguments = static.tree()
    return fun(*eqx.combine(arrays, static_arguments))


_jitted = jax.jit(_called, static_argnums=0)


def check_placement(**trees: PyTree) -> None:
    """Raises where JAX keeps shardings in the types of arrays, which the steps of a
    model, once they are analysed, do not have."""
    for name, tree in trees.items():
        for x in jax.tree.leaves(tree):
            if not isinstance(x, jax.Array):
                continue
            aval = jax.typeof(x)
            mesh = aval.sharding.mesh
            if AxisType.Explicit in mesh.axis_types:
                raise ValueError(
                    f"{name} has arrays on a mesh with Explicit axes, "
                    f"{dict(mesh.shape)}; expected Auto axes. Make the mesh with "
                    "jax.sharding.Mesh(devices, names), or with jax.make_mesh(..., "
                    "axis_types=(jax.sharding.AxisType.Auto,) * axes)."
                )
            if _varying(aval):
                raise ValueError(
                    f"{name} has arrays that shard_map follows over the axes "
                    f"{sorted(_varying(aval))}. Pass check_vma=False to jax.shard_map, "
                    "and average gradients and losses by jax.lax.pmean."
                )


def _varying(aval: Any) -> frozenset[str]:
    """Mesh axes over which `jax.shard_map` knows a value to differ."""
    if hasattr(aval, "vma"):
        return aval.vma
    return aval.manual_axis_type.varying
