"""The documentation lists every mistake that the tests make."""

import re

from .error_table import PATH, heard


def test_every_mistake_is_in_the_documentation():
    rows = re.findall(r"^\| ([^|]+) \| (\w+): (.+) \|$", PATH.read_text(), re.M)
    found = [(name, type(e).__name__) for part in heard().values() for name, e in part]
    assert [row[:2] for row in rows] == found, "python -m tests.error_table"
    assert len(found) >= 60
    # What was wrong is said in the library's words, whatever JAX adds.
    assert all("expected" in text or "." in text for *_, text in rows)
