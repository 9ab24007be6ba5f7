"""The table of faults is kept up with the library: `python -m tests.mutants`."""

import ast
from pathlib import Path

import pytest

from .mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_fault_can_be_put_in(mutant: Mutant):
    text = (ROOT / "etrace" / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    ast.parse(text.replace(mutant.old, mutant.new))
    assert all((ROOT / name).exists() for name in mutant.first)
