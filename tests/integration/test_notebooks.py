"""The notebooks run from top to bottom."""

from pathlib import Path

import pytest

from forge_jax.hub import resolve

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_runs(path: Path, tmp_path: Path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    try:
        resolve("smollm2", progress=False)
    except OSError as error:
        pytest.skip(f"the default model is not to be had here: {error}")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    texts = [
        out.get("text", "") + str(out.get("data", "")) for cell in notebook.cells for out in cell.get("outputs", [])
    ]
    assert any("Paris" in text for text in texts)
