"""The example notebook runs from its first cell to its last."""

import nbclient
import nbformat
from conftest import ROOT


def test_the_sampler_notebook_runs():
    folder = ROOT / "python/examples"
    notebook = nbformat.read(folder / "sampler.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    shown = [kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert "image/png" in shown and "text/html" in shown
    assert all(output.output_type != "error" for cell in notebook.cells for output in cell.get("outputs", []))
