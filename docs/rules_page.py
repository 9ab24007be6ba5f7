"""Run notebooks/comparing_rules.ipynb in full, and keep its figures for the page.

    make rules-page

The notebook's code runs in this process, with `quick` off. The numbers in the text of
docs/pages/rules.md are not rewritten: compare them with docs/pages/rules/results.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

ROOT = Path(__file__).parent.parent


def main() -> None:
    matplotlib.use("svg")
    folder = ROOT / "docs" / "pages" / "rules"
    folder.mkdir(exist_ok=True)
    notebook = ROOT / "notebooks" / "comparing_rules.ipynb"
    sys.path.insert(0, str(notebook.parent))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {"quick": False, "folder": folder}


if __name__ == "__main__":
    main()
