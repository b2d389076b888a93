"""The notebooks are clean, and the quick start runs from top to bottom."""

import ast
import json
import os

import pytest

# Enough for every cell to have something to show; the accuracy is the trainer's matter.
STEPS = "12"
ALLOWED_SECONDS = 600  # Per cell; a hung kernel is a failure, not a test without end.


@pytest.fixture(scope="module")
def notebooks(repo_root):
    return {
        path.name: json.loads(path.read_text())
        for path in (repo_root / "notebooks").glob("*.ipynb")
    }


def test_outputs_are_stripped(notebooks):
    assert "quickstart.ipynb" in notebooks
    for name, notebook in notebooks.items():
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], name
                assert cell["execution_count"] is None, name


def test_cells_are_python(notebooks):
    for notebook in notebooks.values():
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                ast.parse("".join(cell["source"]))


@pytest.mark.slow
def test_the_quick_start_runs(repo_root, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="comes with lvb[test]")
    nbclient = pytest.importorskip("nbclient", reason="comes with lvb[test]")
    pytest.importorskip("ipykernel", reason="comes with lvb[test]")
    pytest.importorskip("matplotlib", reason="comes with lvb[notebook]")
    monkeypatch.setenv("LVB_NOTEBOOK_STEPS", STEPS)
    monkeypatch.setenv("MPLBACKEND", "agg")
    paths = [str(repo_root), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    notebook = nbformat.read(repo_root / "notebooks" / "quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=ALLOWED_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "of 360 images right" in text
    assert "largest difference of a logit" in text
    assert "last accuracy" in text
