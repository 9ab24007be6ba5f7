"""Time constants of a graph, in continuous time, and of layers, which take steps."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ..nn._parameters import choice, number

#: One number for all neurons, or one for each.
Numbers: TypeAlias = np.ndarray | np.floating
Method: TypeAlias = Literal["euler", "exponential"]


class Clock(NamedTuple):
    """The length of a step in the graph's unit of time, and how a step is taken.

    A layer keeps the share α of a membrane and moves it by 1 - α to where it is driven.
    By Euler's method that is dt / τ, exponentially 1 - exp(-dt / τ).
    """

    dt: float
    method: Method

    def graph_tau(self, steps: Numbers) -> Numbers:
        """The graph's time constant where exp(-1 / steps) is left after a step."""
        if self.method == "euler":
            return self.dt / moved(steps)
        return self.dt * steps

    def layer_tau(self, name: str, tau: Numbers) -> Numbers:
        """The time constant of a layer with this `dt`, for one of the graph."""
        euler = self.method == "euler"
        if not np.all(tau > (self.dt if euler else 0)):
            raise ValueError(
                f"{name} is {tau}; expected it to be above "
                + (
                    f"dt, {self.dt:g}: Euler's method needs steps shorter than every "
                    'time constant. Make dt smaller, or use method="exponential".'
                    if euler
                    else "0."
                )
            )
        return -self.dt / np.log1p(-self.dt / tau) if euler else tau


def clock_of(dt: float, method: str) -> Clock:
    """Checks its arguments."""
    return Clock(number("dt", dt), choice("method", method, ("euler", "exponential")))


def moved(steps: Numbers) -> Numbers:
    """1 - α, how far a membrane moves in a step; its time constant is in steps."""
    return -np.expm1(-1 / steps)
