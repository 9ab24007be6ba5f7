"""The hidden state in real numbers, each leaf with one number of every position.

A complex leaf is two real ones. A leaf with axes inside its positions is one leaf for
each place along them.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._model import Spec


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """How hidden leaves are taken apart, and put together again.

    `inner`: per leaf, the axes that lie inside its positions, in order.
    """

    hidden: Spec
    inner: tuple[tuple[int, ...], ...]

    def split(self, leaves: Sequence[Array]) -> list[Array]:
        """Leaves `[..., *shape]`, any axes in front, as real ones of one number."""
        result: list[Array] = []
        for x, like, axes in zip(leaves, self.hidden.leaves, self.inner, strict=True):
            parts = [jnp.real(x), jnp.imag(x)] if _is_complex(like) else [x]
            for part in parts:
                result += _taken_apart(part, len(like.shape), axes)
        return result

    def join(self, reals: Iterable[Array]) -> list[Array]:
        """Undoes `split`."""
        remaining = iter(reals)
        result = []
        for like, axes in zip(self.hidden.leaves, self.inner, strict=True):
            parts = []
            for _ in range(1 + _is_complex(like)):
                numbers = math.prod(like.shape[a] for a in axes)
                parts.append(
                    _together(
                        list(itertools.islice(remaining, numbers)), like.shape, axes
                    )
                )
            result.append(jax.lax.complex(*parts) if len(parts) == 2 else parts[0])
        return result

    @property
    def leaves(self) -> list[jax.ShapeDtypeStruct]:
        """The real leaves of one example."""
        return jax.eval_shape(self.split, list(self.hidden.leaves))

    def numbers(self) -> list[int]:
        """Of the real leaves: how many numbers of a position their own leaf has."""
        result = []
        for like, axes in zip(self.hidden.leaves, self.inner, strict=True):
            count = math.prod(like.shape[a] for a in axes)
            result += [count] * (count * (1 + _is_complex(like)))
        return result

    def names(self) -> list[str]:
        """Of the real leaves."""
        result = []
        pairs = zip(self.hidden.names(), self.hidden.leaves, self.inner, strict=True)
        for name, like, axes in pairs:
            sizes = [like.shape[a] for a in axes]
            for part in ("re ", "im ") if _is_complex(like) else ("",):
                for place in np.ndindex(*sizes):
                    at = [":"] * len(like.shape)
                    for a, n in zip(axes, place):
                        at[a] = str(n)
                    index = f"[{', '.join(at)}]" if axes else ""
                    result.append(f"{part}{name or 'state'}{index}")
        return result

    def with_inner(self, axes: Mapping[int, set[int]]) -> "Coordinates":
        """With further axes inside, by real leaf."""
        inner, n = [], 0
        for like, own in zip(self.hidden.leaves, self.inner, strict=True):
            outer = [d for d in range(len(like.shape)) if d not in own]
            count = (1 + _is_complex(like)) * math.prod(like.shape[a] for a in own)
            more = {outer[d] for k in range(n, n + count) for d in axes.get(k, ())}
            inner.append(tuple(sorted({*own, *more})))
            n += count
        return Coordinates(self.hidden, tuple(inner))


def _taken_apart(x: Array, rank: int, axes: tuple[int, ...]) -> list[Array]:
    if not axes:
        return [x]
    x = jnp.moveaxis(x, [a - rank for a in axes], range(len(axes)))
    return list(x.reshape(-1, *x.shape[len(axes) :]))


def _together(parts: list[Array], shape: tuple[int, ...], axes: tuple[int, ...]):
    if not axes:
        return parts[0]
    x = jnp.stack(parts)
    x = x.reshape(*(shape[a] for a in axes), *x.shape[1:])
    return jnp.moveaxis(x, range(len(axes)), [a - len(shape) for a in axes])


def _is_complex(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.complexfloating)
