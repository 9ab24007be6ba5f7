"""What a learning rule asks of the analysis."""

import dataclasses
from typing import Literal

MixingTails = Literal["now", "local"]

#: `"cut"`: gradients stop where the state enters an operation that leads back to it.
#: `"diagonal"`: each neuron's own entry is kept, ∂h_p/∂h_p through the recurrence. A
#: number stands for the whole derivative of the state by the state, for groups of one
#: number a position.
Recurrence = Literal["cut", "diagonal"] | float


@dataclasses.dataclass(frozen=True)
class GraphOptions:
    """What a learning rule asks of the analysis.

    - `mixing_tails`: what to do with a weight whose path to the state has a mixing
        operation in it: `"now"` leaves it untraced, `"local"` traces its local part.
    - `remembers_all`: whether traces hold every component they reach, or only those
        that a position-local path reads one step later.
    - `recurrence`: how much of a group's own recurrence local derivatives include.
    - `follows_all`: whether every parameter that reaches the state is credited, by
        whatever path.
    - `position_size`: how many numbers of one leaf may be one position.
    """

    mixing_tails: MixingTails = "now"
    remembers_all: bool = False
    recurrence: Recurrence = "cut"
    follows_all: bool = False
    position_size: int = 16
