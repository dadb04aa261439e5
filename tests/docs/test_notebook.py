"""docs/own_folder.ipynb runs in a kernel of Jupyter, with its progress bar, and its map is that of scikit-learn."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from ipykernel.kernelspec import install
from nbclient import NotebookClient
from pages import ROOT
from sklearn.decomposition import PCA

from unfused_fast.shards.sources.row import SourceRow

NOTEBOOK = ROOT / "docs" / "own_folder.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tone_rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, row in enumerate(tone_rows[:30]):
        folder = tmp_path / "FOLDER" / str(row.label)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(row.path), folder / f"{number}.wav")
    install(prefix=str(tmp_path / "jupyter"))  # a kernel of this very Python
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter/share/jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert len(book.cells) == 10 and not any(cell.get("outputs") for cell in book.cells), "saved without outputs"
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html", "application/vnd.jupyter.widget-view+json"} <= kinds
    with (tmp_path / "map/map.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted({row["label"] for row in rows}) == sorted({str(row.label) for row in tone_rows[:30]})
    wanted = PCA(2, svd_solver="full").fit_transform(np.load(tmp_path / "map/embeddings.npz")["embeddings"])
    found = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    signs = np.sign((wanted * found).sum(axis=0))
    np.testing.assert_allclose(found * signs, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


def test_bars_are_drawn_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from unfused_fast import console

    class Fake:
        is_terminal, is_jupyter = False, True

    monkeypatch.setattr(console, "console", Fake())
    assert console.shows_bars()
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert not console.shows_bars()
