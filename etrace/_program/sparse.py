"""Products with sparse matrices, number by number.

`BCOO @ x` is one operation of JAX's. Here it is written out: what each stored number is
multiplied with, and where its product is added.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .jaxprs import entry_of
from .primitives import SPARSE_DOT


def is_sparse_product(eqn: Any) -> bool:
    """Whether an equation multiplies a sparse array, all of whose axes are sparse, with
    a dense one."""
    if entry_of(eqn) is not SPARSE_DOT:
        return False
    data, indices, _ = (v.aval for v in eqn.invars)
    sparse = data.ndim == 1 and indices.shape[-1] == len(eqn.params["lhs_spinfo"].shape)
    return sparse and not any(eqn.params["dimension_numbers"][1])


def sparse_product(eqn: Any) -> Any:
    """The same as a closed jaxpr of gathers, products and a sum."""
    (summed, dense_summed), _ = eqn.params["dimension_numbers"]
    shape = eqn.params["lhs_spinfo"].shape
    free = [d for d in range(len(shape)) if d not in summed]
    out = eqn.outvars[0].aval

    def product(data: Array, indices: Array, dense: Array) -> Array:
        dense = jnp.moveaxis(dense, dense_summed, range(len(summed)))
        read = dense.at[tuple(indices[:, d] for d in summed)].get(
            mode="fill", fill_value=0
        )
        data = data.reshape(-1, *(1,) * (read.ndim - 1))
        products = data.astype(out.dtype) * read.astype(out.dtype)
        places = tuple(indices[:, d] for d in free)
        return jnp.zeros(out.shape, out.dtype).at[places].add(products, mode="drop")

    operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(product)(*operands)
