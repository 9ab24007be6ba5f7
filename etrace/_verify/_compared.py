"""Two gradients, compared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A rule's gradient g and the exact one e.

    - `norm`: |e|.
    - `cosine`: of the angle between them.
    - `error`: |g - e| / |e|.
    - `ratio`: |g| / |e|.
    - `signs`: the fraction of numbers with the same sign, of those larger than the
        rounding errors of e.

    Of two gradients that both vanish the cosine, the ratio and the signs are 1.
    """

    norm: float
    cosine: float
    error: float
    ratio: float
    signs: float


def compared(found: PyTree, exact: PyTree) -> Comparison:
    """Compares all numbers of two gradients of the same structure."""
    g, e = _numbers(found), _numbers(exact)
    size, norm = np.linalg.norm(g), np.linalg.norm(e)
    if not size and not norm:
        return Comparison(0.0, 1.0, 0.0, 1.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (g @ e) / (size * norm) if size and norm else 0.0
        error, ratio = np.linalg.norm(g - e) / norm, size / norm
    large = np.abs(e) > _rounding(exact) * np.abs(e).max(initial=0)
    signs = (np.sign(g) == np.sign(e))[large].mean() if large.any() else 1.0
    return Comparison(*map(float, (norm, cosine, error, ratio, signs)))


def _numbers(tree: PyTree) -> np.ndarray:
    """All numbers; a complex one is two."""
    parts = [np.asarray(x).reshape(-1) for x in jax.tree.leaves(tree)]
    parts = [part for x in parts for part in (np.real(x), np.imag(x))]
    return np.concatenate([np.zeros(0), *(part.astype(float) for part in parts)])


def _rounding(tree: PyTree) -> float:
    leaves = jax.tree.leaves(tree)
    return 10 * max((float(jnp.finfo(x.dtype).eps) for x in leaves), default=0.0)
