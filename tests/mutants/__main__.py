"""Puts each fault into a copy of the library and runs the tests there.

    python -m tests.mutants              every fault; writes tests/mutants/results.md
    python -m tests.mutants KF-RTRL      those whose name has this in it
    python -m tests.mutants --quick      asks the tests alone that know of such faults

A run ends at the first test that fails. Tests that know of such faults are asked first,
then all of them.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from .table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results.md"
_AT_ONCE = 2
_LEFT_OUT = shutil.ignore_patterns(".*", "site", "__pycache__", "*.egg-info")


def caught_by(mutant: Mutant, quick: bool) -> str | None:
    """The first test that fails, None if none does."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy"
        shutil.copytree(ROOT, copy, ignore=_LEFT_OUT)
        path = copy / "etrace" / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        found = _failing(copy, mutant.first)
        return found if found or quick else _failing(copy, ["tests"])


def _failing(copy: Path, tests: Sequence[str]) -> str | None:
    # The table does not fit the copy.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--ignore=tests/test_mutants.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    if run.returncode == 0:
        return None
    found = re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(run.stdout[-2000:] + run.stderr[-2000:])
    return found[0]


def _row(mutant: Mutant, quick: bool) -> str:
    start = time.perf_counter()
    test = caught_by(mutant, quick)
    seconds = time.perf_counter() - start
    said = f"`{test.removeprefix('tests/')}`" if test else "**no test**"
    return f"| {mutant.name} | `{mutant.file}` | {said} | {seconds:.0f} s |"


def main(arguments: Sequence[str]) -> None:
    quick = "--quick" in arguments
    asked = [a for a in arguments if a != "--quick"]
    chosen = [m for m in MUTANTS if not asked or any(a in m.name for a in asked)]
    rows = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(functools.partial(_row, quick=quick), chosen)
        for row in tqdm(found, unit="fault", total=len(chosen)):
            rows.append(row)
            tqdm.write(row)
    if not arguments:
        head = ["| fault | in | seen by | after |", "| --- | --- | --- | --- |"]
        RESULTS.write_text("\n".join([*head, *rows, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
