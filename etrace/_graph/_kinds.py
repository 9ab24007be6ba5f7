"""What a primitive does to positions: acts element by element, moves, or mixes.

* An *elementwise* equation computes each element of its output from the same element
  of every operand (scalars and axes of length one are broadcast).
* A *movement* copies elements of its operands to other places.
* Everything else *mixes*: positions talk to each other there.

Anything unknown mixes, which costs credit but never correctness.
"""

import enum


class Kind(enum.Enum):
    ELEMENTWISE = "elementwise"
    MOVEMENT = "movement"
    MIXING = "mixing"
    # A value whose derivative is zero by declaration.
    STOP = "stop"
