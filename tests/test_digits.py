"""The demo runs, prints its table, draws its curves, and learns something."""

import os
import re
import subprocess
import sys
from pathlib import Path

from .helpers import quick_to_compile

ROOT = Path(__file__).parent.parent


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    # As a user would run it, not with this test suite's settings of JAX; but at these
    # sizes optimising a program takes longer than running it.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    env |= {"PYTHONPATH": str(ROOT)} | quick_to_compile()
    script = ROOT / "notebooks" / "digits.py"
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )


def _accuracies(table: str) -> dict[tuple[str, ...], float]:
    rows = re.findall(r"^(\w+) +(\w+) +(\w+) +([\d.]+)%", table, flags=re.MULTILINE)
    return {tuple(names): float(accuracy) for *names, accuracy in rows}


def _is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_rows(tmp_path):
    sizes = ["--epochs", "2", "--hidden", "16", "--batch", "16"]
    result = _run("--task", "rows", *sizes, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    accuracies = _accuracies(result.stdout)
    models, rules = ["gru", "lif"], ["drtrl", "bptt"]
    assert set(accuracies) == {("rows", m, r) for m in models for r in rules}
    assert min(accuracies.values()) > 30, accuracies  # guessing: 10
    assert _is_png(tmp_path / "digits.png")


def test_one_rule_in_windows(tmp_path):
    chosen = ["--task", "pixels", "--model", "gru", "--rule", "drtrl", "--seed", "1"]
    sizes = ["--epochs", "1", "--hidden", "4", "--batch", "128", "--window", "16"]
    result = _run(*chosen, *sizes, "--output", "curves.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert list(_accuracies(result.stdout)) == [("pixels", "gru", "drtrl")]
    assert _is_png(tmp_path / "curves.png")


def test_sizes_are_checked(tmp_path):
    result = _run("--window", "0", cwd=tmp_path)
    assert result.returncode == 2
    assert "--window: expected at least 1, got 0" in result.stderr
