"""Tables to print."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns; columns that are empty throughout are left out."""
    kept = [c for c in range(len(head)) if any(row[c] for row in rows)]
    grid = [[line[c] for c in kept] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*grid)]
    lines = [
        "  ".join(x.ljust(w) for x, w in zip(line, widths)).rstrip() for line in grid
    ]
    return [f"  {lines[0]}", f"  {'-' * max(map(len, lines))}"] + [
        f"  {line}" for line in lines[1:]
    ]


def human_bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
