"""The hidden state in real numbers, each leaf with one number of every position.

A complex leaf is two real ones. A leaf with axes inside its positions is one leaf for
each place along them, and one that holds several populations a leaf for each.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .._model import Spec


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """How one hidden leaf is taken apart.

    - `inner`: the axes that lie inside its positions, in order.
    - `parts`: which part each element belongs to, along the other axes; None if all
        belong together.
    - `ranks`: how many of the parts may hold numbers of one position.
    """

    like: jax.ShapeDtypeStruct
    inner: tuple[int, ...] = ()
    parts: np.ndarray | None = None
    ranks: int = 1

    @property
    def is_complex(self) -> bool:
        return jnp.issubdtype(self.like.dtype, jnp.complexfloating)

    @property
    def outer(self) -> list[int]:
        """The axes along which positions lie."""
        return [d for d in range(len(self.like.shape)) if d not in self.inner]

    @property
    def numbers(self) -> int:
        """How many of them a position has, of a real array of this shape."""
        return math.prod(self.like.shape[a] for a in self.inner)

    @property
    def count(self) -> int:
        """How many real leaves it becomes."""
        return (1 + self.is_complex) * self.numbers * len(self.places)

    @functools.cached_property
    def along(self) -> int | None:
        """The one of the outer axes along which parts follow each other, if there is
        one; None if parts are lists of positions."""
        assert self.parts is not None
        for d in range(self.parts.ndim):
            first = np.moveaxis(self.parts, d, -1).reshape(-1, self.parts.shape[d])[0]
            side = [-1 if e == d else 1 for e in range(self.parts.ndim)]
            if (self.parts == first.reshape(side)).all():
                return d
        return None

    @functools.cached_property
    def places(self) -> list[np.ndarray]:
        """Of each part: its indices along that axis, or among all positions."""
        if self.parts is None:
            return [np.zeros(0, int)]
        d = self.along
        line = self.parts.reshape(-1)
        if d is not None:
            line = np.moveaxis(self.parts, d, -1).reshape(-1, self.parts.shape[d])[0]
        return [np.flatnonzero(line == p) for p in range(line.max() + 1)]

    def split(self, x: Array) -> Iterator[Array]:
        """An array `[..., *shape]` as real ones of one number and one part."""
        rank = len(self.like.shape)
        for part in (jnp.real(x), jnp.imag(x)) if self.is_complex else (x,):
            numbers = [part]
            if self.inner:
                axes = [a - rank for a in self.inner]
                part = jnp.moveaxis(part, axes, range(len(axes)))
                numbers = list(part.reshape(-1, *part.shape[len(axes) :]))
            for number in numbers:
                yield from self._parted(number)

    def _parted(self, x: Array) -> Iterator[Array]:
        if self.parts is None:
            yield x
            return
        rank, d = self.parts.ndim, self.along
        if d is None:
            x, axis = x.reshape(*x.shape[: x.ndim - rank], -1), x.ndim - rank
        else:
            axis = x.ndim - rank + d
        for place in self.places:
            if place[-1] - place[0] + 1 == len(place):
                yield lax.slice_in_dim(x, place[0], place[-1] + 1, axis=axis)
            else:
                yield jnp.take(x, place, axis, mode="clip")

    def join(self, reals: Iterator[Array]) -> Array:
        """Undoes `split`, of the next real leaves."""
        shape, found = self.like.shape, []
        for _ in range(1 + self.is_complex):
            numbers = [self._whole(reals) for _ in range(self.numbers)]
            if not self.inner:
                found += numbers
                continue
            x = jnp.stack(numbers)
            x = x.reshape(*(shape[a] for a in self.inner), *x.shape[1:])
            axes = [a - len(shape) for a in self.inner]
            found.append(jnp.moveaxis(x, range(len(self.inner)), axes))
        return lax.complex(*found) if self.is_complex else found[0]

    def _whole(self, reals: Iterator[Array]) -> Array:
        if self.parts is None:
            return next(reals)
        pieces = [next(reals) for _ in self.places]
        shape, d = self.parts.shape, self.along
        axis = -1 if d is None else d - len(shape)
        x, order = jnp.concatenate(pieces, axis), np.concatenate(self.places)
        if (np.diff(order) < 0).any():
            x = jnp.take(x, np.argsort(order), axis, mode="clip")
        return x.reshape(*x.shape[:-1], *shape) if d is None else x

    def indices(self) -> Iterator[str]:
        """Of the real leaves of a real array, in numpy's way of writing."""
        sizes = [self.like.shape[a] for a in self.inner]
        for place in np.ndindex(*sizes):
            for n, part in enumerate(self.places):
                at = [":"] * len(self.like.shape)
                for a, k in zip(self.inner, place):
                    at[a] = str(k)
                which = ""
                if self.parts is not None and self.along is None:
                    which = f" (part {n})"
                elif self.parts is not None:
                    at[self.outer[self.along or 0]] = _written(part)
                is_whole = all(x == ":" for x in at)
                yield ("" if is_whole else f"[{', '.join(at)}]") + which

    def refined(self, found: Sequence[np.ndarray | None]) -> "Leaf":
        """With the parts of each real leaf taken apart further."""
        shape = tuple(self.like.shape[d] for d in self.outer)
        rows, remaining = [], iter(found)
        for _ in range((1 + self.is_complex) * self.numbers):
            old = self.parts if self.parts is not None else np.zeros(shape, int)
            new = np.zeros(old.size, int)
            for p in range(len(self.places)):
                part = next(remaining)
                if part is not None:
                    new[(old == p).reshape(-1)] = part.reshape(-1)
            rows += [old.reshape(-1), new]
        kinds, first, parts = np.unique(
            np.stack(rows), axis=1, return_index=True, return_inverse=True
        )
        rank = np.argsort(np.argsort(first))  # in order of appearance
        parts = rank[parts.reshape(-1)].reshape(shape)
        parts = parts if kinds.shape[1] > 1 else None
        most = max((part.max() + 1 for part in found if part is not None), default=1)
        return Leaf(self.like, self.inner, parts, self.ranks * most)


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """How the hidden leaves are taken apart, and put together again."""

    hidden: Spec
    of: tuple[Leaf, ...]

    @staticmethod
    def whole(hidden: Spec) -> "Coordinates":
        return Coordinates(hidden, tuple(map(Leaf, hidden.leaves)))

    def split(self, leaves: Sequence[Array]) -> list[Array]:
        """Leaves `[..., *shape]`, any axes in front, as real ones of one number."""
        pairs = zip(self.of, leaves, strict=True)
        return [part for leaf, x in pairs for part in leaf.split(x)]

    def join(self, reals: Iterable[Array]) -> list[Array]:
        """Undoes `split`."""
        remaining = iter(reals)
        return [leaf.join(remaining) for leaf in self.of]

    @property
    def apart(self) -> bool:
        """Whether a leaf is more than one real one."""
        return any(leaf.count > 1 for leaf in self.of)

    @property
    def leaves(self) -> list[jax.ShapeDtypeStruct]:
        """The real leaves of one example."""
        return jax.eval_shape(self.split, list(self.hidden.leaves))

    def numbers(self) -> list[int]:
        """Of the real leaves: how many numbers of a position their own leaf has."""
        return [x.numbers * x.ranks for x in self.of for _ in range(x.count)]

    def names(self) -> list[str]:
        """Of the real leaves."""
        return [
            f"{part}{name or 'state'}{index}"
            for name, leaf in zip(self.hidden.names(), self.of, strict=True)
            for part in (("re ", "im ") if leaf.is_complex else ("",))
            for index in leaf.indices()
        ]

    def with_inner(self, axes: Mapping[int, set[int]]) -> "Coordinates":
        """With further axes inside, by real leaf. Parts of such leaves are to be found
        anew."""
        result = []
        for leaf, own in self._real():
            more = {leaf.outer[d] for k in own for d in axes.get(k, ())}
            inner = tuple(sorted({*leaf.inner, *more}))
            result.append(Leaf(leaf.like, inner) if more else leaf)
        return Coordinates(self.hidden, tuple(result))

    def with_parts(self, parts: Mapping[int, np.ndarray]) -> "Coordinates":
        """Taken apart further, by real leaf: the part of each of its elements."""
        ranks = [leaf.ranks for leaf in self.of]
        found = [
            dataclasses.replace(x, ranks=n)
            for x, n in zip(self.with_ranks(parts).of, ranks)
        ]
        return Coordinates(self.hidden, tuple(found))

    def with_ranks(self, parts: Mapping[int, np.ndarray]) -> "Coordinates":
        """The same, where parts hold numbers of one position."""
        found = [
            leaf.refined([parts.get(k) for k in own]) for leaf, own in self._real()
        ]
        return Coordinates(self.hidden, tuple(found))

    def _real(self) -> Iterator[tuple[Leaf, range]]:
        """The hidden leaves, with the numbers of their real ones."""
        n = 0
        for leaf in self.of:
            yield leaf, range(n, n + leaf.count)
            n += leaf.count


def _written(part: np.ndarray) -> str:
    if len(part) == 1:
        return str(part[0])
    step = np.unique(np.diff(part))
    if len(step) > 1:
        return "..."
    by = f":{step[0]}" if step[0] > 1 else ""
    return f"{part[0]}:{part[-1] + 1}{by}"
