"""The step as a list of equations: what each operation does, and what flows where."""

from .evaluate import (
    Env as Env,
    Value as Value,
    run as run,
    stopped as stopped,
    take as take,
)
from .ir import Edge as Edge, Var as Var
