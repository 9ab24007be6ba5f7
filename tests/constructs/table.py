"""The constructs as a table in Markdown."""

from pathlib import Path

from . import CONSTRUCTS, Construct

PATH = Path(__file__).parents[2] / "docs" / "pages" / "constructs" / "table.md"


def table() -> str:
    """What `test_constructs.py` holds every construct to."""
    parts = []
    for section, constructs in CONSTRUCTS.items():
        parts.append(f"## {section}\n")
        parts.append("| construct | single-step | multi-step |")
        parts.append("|---|---|---|")
        for name, construct in constructs.items():
            parts.append(f"| {name} | {_single(construct)} | exact |")
        parts.append("")
    return "\n".join(parts)


def _single(construct: Construct) -> str:
    if not construct.now:
        return "exact"
    weights = len(construct.weights) - ("a" in construct.weights)
    some = "" if len(construct.now) == weights else f"{', '.join(construct.now)}: "
    return f"{some}now, reported"
