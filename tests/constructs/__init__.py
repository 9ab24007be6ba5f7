"""What people write in a step: constructs of plain JAX, with what becomes of each.

Every construct is a small model whose recurrence is position-local, so that wherever
its weights are traced D-RTRL is BPTT.
"""

from ._construct import IN, OUT, STEPS, Construct, Step, normal
from ._control import CONTROL
from ._positions import POSITIONS
from ._sites import SITES
from ._weights import WEIGHTS

#: By section of the table in the documentation.
CONSTRUCTS: dict[str, dict[str, Construct]] = {
    "Operations": SITES,
    "Expressions of weights": WEIGHTS,
    "Positions and states": POSITIONS,
    "Control flow": CONTROL,
}

__all__ = ["CONSTRUCTS", "Construct", "IN", "OUT", "STEPS", "Step", "normal"]
