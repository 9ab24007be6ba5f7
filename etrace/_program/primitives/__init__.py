"""The registry: what is known of each primitive, in one place.

To add one, write its entry in the file of its family, and add it to the fuzz.
"""

import functools

from ..primitive import Primitive
from .control import (
    BARRIER as BARRIER,
    CALLS as CALLS,
    COND as COND,
    CONTROL,
    CUSTOM_VJP as CUSTOM_VJP,
    SCAN as SCAN,
    SOLVE as SOLVE,
    STOP as STOP,
    WHILE as WHILE,
    WRAP_KEY as WRAP_KEY,
    draws as draws,
)
from .elementwise import (
    AND as AND,
    CLAMP as CLAMP,
    COPY as COPY,
    ELEMENTWISE,
    SELECT as SELECT,
)
from .indexing import INDEXING, SCATTER_ADD as SCATTER_ADD
from .movement import (
    BROADCAST as BROADCAST,
    CONCATENATE as CONCATENATE,
    MOVEMENT,
    RESHAPE as RESHAPE,
    SQUEEZE as SQUEEZE,
)
from .products import DOT as DOT, PRODUCTS, SPARSE_DOT as SPARSE_DOT
from .reductions import MAXIMUM as MAXIMUM, REDUCTIONS

REGISTRY: dict[str, Primitive] = {
    p.name: p
    for family in (ELEMENTWISE, MOVEMENT, PRODUCTS, INDEXING, REDUCTIONS, CONTROL)
    for p in family
}


def entry(name: str) -> Primitive:
    """The entry of a primitive; of an unknown one, that it mixes."""
    return REGISTRY[name] if name in REGISTRY else _unknown(name)


@functools.lru_cache(maxsize=1024)
def _unknown(name: str) -> Primitive:
    return Primitive(name)
