"""benchmarks/corpus.py on a tiny corpus: every task scored, nothing made twice, its part of a page replaced."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import corpus
import pytest
from measure import write_part

from unfused_fast.errors import UserError
from unfused_fast.shards.sources.row import SourceRow


@pytest.fixture
def folder(tmp_path: Path, tone_rows: list[SourceRow]) -> Path:
    """pool.csv, pool_small.csv and two tasks of tones."""
    made = tmp_path / "corpus"
    for task in ("speaker_id", "other"):
        (made / "tasks" / task).mkdir(parents=True)
        for split in ("train", "valid", "test"):
            lines = [(row.path, row.label) for row in tone_rows if row.split == split]
            _write(made / "tasks" / task / f"{split}.csv", ("path", "label"), lines)
    for name in ("pool", "pool_small"):
        _write(made / f"{name}.csv", ("path",), [(row.path,) for row in tone_rows if row.split == "train"])
    return made


def _write(path: Path, columns: tuple[str, ...], lines: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *lines])


def test_a_quick_run_fills_its_part_of_the_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, out = tmp_path / "page.md", tmp_path / "out"
    page.write_text("before\n")
    flags = ["--width", 4, "--quick", "--device", "cpu", "--page", page, "--recipe", "slow: optim.lr=0.1 cluster.k=4"]
    monkeypatch.setattr(sys, "argv", ["corpus", *map(str, [folder, "--out", out, *flags])])
    corpus.main()
    result = json.loads((out / "corpus.json").read_text())
    assert [line["recipe"] for line in result["searched"]] == ["log-mel", "random encoder", "slow"]
    assert all(line["valid"].keys() == {"speaker_id"} for line in result["searched"]), "the search reads JUDGED only"
    assert {task for line in result["compared"] for task in line["scores"]} == {"speaker_id", "other"}
    assert result["searched"][2]["log"]["k"] == 4
    text = page.read_text()
    assert text.startswith("before\n<!-- begin: benchmarks/corpus.py -->") and "| speaker_id |" in text
    assert "for 1 epoch at width 4" in text and "over 1 seed; pre-training on 60 clips" in text
    assert (out / "corpus.png").read_bytes().startswith(b"\x89PNG")
    scores = {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/result.json")}
    corpus.main()
    assert scores == {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    assert runs == {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/result.json")}
    assert page.read_text() == text


def test_the_search_does_not_read_the_test(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--width", 4, "--quick", "--device", "cpu", "--search-only", "--recipe", "plain:"]
    monkeypatch.setattr(sys, "argv", ["corpus", *map(str, [folder, "--out", tmp_path / "out", *flags])])
    monkeypatch.setattr(corpus, "metric_of", lambda *_: pytest.fail("the test was read"))
    corpus.main()
    assert all(json.loads(path.read_text()).keys() == {"valid"} for path in (tmp_path / "out" / "scores").iterdir())


@pytest.mark.parametrize("text", ["slow", ": optim.lr=1", "slow: optim.lr"])
def test_a_recipe_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="want"):
        corpus.recipe_of(text)


def test_a_part_of_a_page_is_replaced_where_it_stands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for name, text in (("a", "one\n"), ("b", "two\n"), ("a", "three\n")):
        write_part(page, name, text)
    assert page.read_text() == "<!-- begin: a -->\nthree\n<!-- end: a -->\n<!-- begin: b -->\ntwo\n<!-- end: b -->\n"
