"""Which line of the user's code something comes from."""

import os
import re
import sys
import warnings

import equinox
import jax
import jax.extend as jex
import jaxtyping


def _folder(file: str | None) -> str:
    return os.path.join(os.path.dirname(file or ""), "")


_ETRACE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
_JAX = _folder(jax.__file__)
# Layers, and what type checkers wrap functions in.
_LAYERS = (
    _folder(equinox.__file__),
    os.path.join(_ETRACE, "nn", ""),
    _folder(jaxtyping.__file__),
    "<@beartype",
)
_MAX_FRAMES = 32


def line_of(eqn) -> str:
    """Where an equation comes from: `path:line:column (function)`.

    A line of the model, where a layer of Equinox or of `etrace.nn` is called, rather
    than a line within that layer.
    """
    frames = jex.source_info_util.summarize(eqn.source_info, _MAX_FRAMES).splitlines()
    for frame in reversed(frames):
        if frame.startswith(_LAYERS):
            continue
        if frame.startswith(_ETRACE):  # what calls the model
            break
        return frame
    return frames[-1] if frames else ""


def is_of_jax(closed) -> bool:
    """Whether a jaxpr is that of a function of JAX, such as `jnp.var`.

    It was traced where it was called first, maybe by another model: its equations do
    not know the line that calls it now.
    """
    written = closed.jaxpr.debug_info.func_src_info or ""
    return f" at {_JAX}" in f" {written}"


def is_of_library(line: str) -> bool:
    """Whether a line is one of this library, none of its layers."""
    return line.startswith(_ETRACE) and not line.startswith(_LAYERS)


def short(line: str) -> str:
    """`file.py:12 (function)` of a line."""
    match = re.match(r"(?P<path>.*?):(?P<line>\d+)(:\d+)?( \((?P<fun>.*)\))?$", line)
    if match is None:
        return line
    name = f"{os.path.basename(match['path'])}:{match['line']}"
    return f"{name} ({match['fun']})" if match["fun"] else name


def warn(message: str, category: type[Warning]) -> None:
    """Warns at the innermost line that is the user's."""
    frame, level = sys._getframe(), 1
    while frame and frame.f_code.co_filename.startswith((*_LAYERS, _ETRACE, _JAX)):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
