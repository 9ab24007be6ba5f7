"""Every notebook runs from top to bottom, and is stored without outputs."""

import os
import warnings
from pathlib import Path

import pytest

from .helpers import quick_to_compile

with warnings.catch_warnings():
    # What the Jupyter packages deprecate among themselves is not ours to repair.
    warnings.simplefilter("ignore", DeprecationWarning)
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from traitlets import default

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_JUPYTER = r"(jupyter_client|jupyter_core|nbclient|nbformat|traitlets|zmq)(\.|$)"


class _ThisPython(AsyncKernelManager):
    """Starts the interpreter of the tests, whatever kernels the user has installed."""

    @default("kernel_spec_manager")
    def _no_installed_kernels(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One Python for all notebooks, each of which begins without names: what they
    import takes a third of their time. Its environment is that of a user, not of this
    test suite with its settings of JAX; but at the reduced sizes optimising a program
    takes longer than running it."""
    path = str(tmp_path_factory.mktemp("notebooks"))
    left_out = ("JAX_", "XLA_", "MPLBACKEND")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    # Jupyter, too, finds the modules beside a notebook.
    modules = os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])
    own = {"IPYTHONDIR": path, "PYTHONPATH": modules} | quick_to_compile()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", path)
        client = NotebookClient(
            nbformat.v4.new_notebook(),
            kernel_name="python3",
            kernel_manager_class=_ThisPython,
            resources={"metadata": {"path": path}},
            timeout=300,  # seconds, for one cell, on a busy machine
        )
        with client.setup_kernel(env=kept | own):
            yield client


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.filterwarnings(f"ignore::DeprecationWarning:{_JUPYTER}")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs(path, kernel):
    kernel.nb = nbformat.read(path, as_version=4)
    kernel.nb.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    for number, cell in enumerate(kernel.nb.cells):
        kernel.execute_cell(cell, number)  # raises if the cell does
    outputs = [o for cell in kernel.nb.cells for o in cell.get("outputs", ())]
    errors = [o.text for o in outputs if o.get("name") == "stderr"]
    assert not any("Warning:" in text for text in errors), errors
    assert any("image/png" in o.get("data", {}) for o in outputs)
