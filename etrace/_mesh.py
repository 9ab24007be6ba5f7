"""Meshes of devices that the library does not take."""

from typing import Any

import jax
from jax.sharding import AxisType
from jaxtyping import PyTree


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
