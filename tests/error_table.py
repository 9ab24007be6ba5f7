"""What the mistakes of the tests get to hear, as a table of the documentation.

Written by: python -m tests.error_table
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from . import (
    conftest as conftest,  # the settings of JAX that the messages name
    test_driver_errors,
    test_errors,
    test_update_errors,
)
from .mistakes import World, as_a_user

PATH = Path(__file__).parents[1] / "docs" / "pages" / "errors" / "table.md"


def heard() -> dict[str, list[tuple[str, Exception]]]:
    """By section, the mistakes and what they raise."""
    world = World()
    return {
        "The model, its options, and `init`": [
            (name, _raised(make)) for name, (make, *_) in test_errors.MISTAKES.items()
        ],
        "`update`": [
            (name, _raised(lambda make=make: make(world)))
            for name, (make, *_) in test_update_errors.MISTAKES.items()
        ],
        "Whole sequences": [
            (name, _raised(lambda make=make: make(world)))
            for name, (make, *_) in test_driver_errors.MISTAKES.items()
        ],
    }


def table() -> str:
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for section, found in heard().items():
        yield from (f"## {section}\n", "| mistake | what is said |", "|---|---|")
        for name, error in found:
            yield f"| {name} | {type(error).__name__}: {_shown(str(error))} |"
        yield ""


def _raised(make) -> Exception:
    try:
        with as_a_user():
            make()
    except Exception as error:
        return error
    raise AssertionError("nothing was refused")


def _shown(message: str) -> str:
    """On one line of a table."""
    message = re.sub(r" at 0x[0-9a-f]+", "", " ".join(message.split()))
    message = html.escape(message, quote=False)
    return re.sub(r"[\\|*_\[`]", r"\\\g<0>", message)


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(table())
