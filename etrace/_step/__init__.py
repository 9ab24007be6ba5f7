"""The values and derivatives of a step, for many steps and examples at once."""

from .derivative import Arrived as Arrived, Way as Way
from .diagonal import OwnPropagation as OwnPropagation
from .local import LocalRegion as LocalRegion, added as added
from .propagation import (
    LocalPropagation as LocalPropagation,
    Propagation as Propagation,
)
from .rollout import (
    Rolled as Rolled,
    Steps as Steps,
    inexact as inexact,
    is_inexact as is_inexact,
)
from .values import StepValues as StepValues
