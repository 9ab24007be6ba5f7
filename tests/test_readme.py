"""The README is short, and its Python runs from top to bottom as one program."""

import re
import warnings
from pathlib import Path

import jax

README = Path(__file__).parent.parent / "README.md"


def test_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 90


def test_examples_run():
    text = README.read_text(encoding="utf-8")
    fence = re.compile(r"^```python[^\n]*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    blocks = list(fence.finditer(text))
    assert blocks, "README.md has no python block"
    namespace = {"__name__": "__main__"}
    with (
        warnings.catch_warnings(),
        # What JAX does unless told otherwise.
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("error")
        for block in blocks:
            # Tracebacks show the lines of the README.
            above = "\n" * text.count("\n", 0, block.start(1))
            exec(compile(above + block[1], str(README), "exec"), namespace)
