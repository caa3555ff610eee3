"""The notebook runs from top to bottom."""

import os
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def tour():
    return pytest.importorskip("nbformat").read(EXAMPLES / "tour.ipynb", as_version=4)


def test_the_notebook_is_stored_without_outputs():
    notebook = tour()
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    assert (EXAMPLES / "tour.ipynb").stat().st_size < 20_000


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    client = pytest.importorskip("nbclient").NotebookClient(
        tour(), timeout=900, resources={"metadata": {"path": EXAMPLES}}
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    cells = [cell for cell in client.execute().cells if cell.cell_type == "code"]
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    pictures = [any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells]
    assert pictures == [True, True, True, True, False]
    held = [float(line.split()[2].rstrip("%")) for line in shown[2].splitlines() if line.startswith("threshold")]
    assert held == sorted(held) and held[0] == 0 < held[-1]
    assert "would load" in shown[4]
