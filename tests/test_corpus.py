"""benchmarks/corpus.py on a tiny corpus: every task scored, nothing made twice; a part of a page replaced."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import corpus
import pytest
import recipes
import target_size
from measure import write_part

from unfused_fast.errors import UserError
from unfused_fast.evaluation import scores as score_files
from unfused_fast.evaluation.run_store import read_runs
from unfused_fast.shards.sources.row import SourceRow


@pytest.fixture
def folder(tmp_path: Path, tone_rows: list[SourceRow]) -> Path:
    """pool.csv, pool_small.csv and two tasks of tones, one with a clip less."""
    made = tmp_path / "corpus"
    for task in ("speaker_id", "other"):
        (made / "tasks" / task).mkdir(parents=True)
        for split in ("train", "valid", "test"):
            lines = [(row.path, row.label) for row in tone_rows[task == "other" :] if row.split == split]
            _write(made / "tasks" / task / f"{split}.csv", ("path", "label"), lines)
    for name in ("pool", "pool_small"):
        _write(made / f"{name}.csv", ("path",), [(row.path,) for row in tone_rows if row.split == "train"])
    return made


def _write(path: Path, columns: tuple[str, ...], lines: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *lines])


def test_a_quick_run_scores_every_task_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    flags = ["--width", 4, "--quick", "--device", "cpu", "--recipe", "slow: optim.lr=0.1 cluster.k=4"]
    flags += ["--stage2", "recommended", "--stage2", "paper"]
    monkeypatch.setattr(sys, "argv", ["corpus", *map(str, [folder, "--out", out, *flags])])
    corpus.main()
    rows = read_runs([out])
    assert {(row["method"], row["task"], row["split"]) for row in rows} == {
        (method, task, split)
        for method in ("logmel", "random", "decar-v2")
        for task in ("speaker_id", "other")
        for split in ("valid", "test")
    }
    for row in rows:
        assert row["score"] == json.loads((out / row["file"]).read_text())[row["split"]]
    (run,) = {row["run"] for row in rows if row["stage"] == "pretrain"}
    assert json.loads((out / "runs" / run / "result.json").read_text())["k"] == 4
    # stage 2 of each task by itself, from that run
    made = {one.preset: one for one in recipes.trained(rows) if one.stage == "distill"}
    assert made.keys() == {"recommended", "paper"} and {one.width for one in made.values()} == {4}
    for name, one in made.items():
        tasks = {row["task"]: row for row in one.rows}
        assert tasks.keys() == {"speaker_id", "other"} and all(row["set"] == task for task, row in tasks.items())
        assert {row["teacher"] for row in one.rows} == {run} and one.mean("test")[0] > 0, name
        assert one.words.startswith(f"{name}, `stage 1: ") and "`stage 1: optim.lr=0.1`" in one.words
    scores = {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/result.json")}
    monkeypatch.setattr(sys, "argv", ["corpus", *map(str, [out / "shards", "--out", out, *flags])])
    corpus.main()  # of the packed sets
    assert scores == {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    assert runs == {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/result.json")}
    assert read_runs([out]) == rows


def test_the_search_does_not_read_the_test(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--width", 4, "--quick", "--device", "cpu", "--search-only", "--recipe", "plain:"]
    monkeypatch.setattr(sys, "argv", ["corpus", *map(str, [folder, "--out", tmp_path / "out", *flags])])
    monkeypatch.setattr(score_files, "metric_of", lambda *_: pytest.fail("the test was read"))
    corpus.main()
    rows = read_runs([tmp_path / "out"])
    assert {row["split"] for row in rows} == {"valid"} and {row["task"] for row in rows} == {"speaker_id"}


def test_stage_2_by_the_size_of_its_target(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_size, "TARGETS", {"speaker_id": ("train-", "-high")})
    monkeypatch.setattr(target_size, "SIZES", (20, 30, 4000))  # 40 of the 60 clips are not of the class high
    out, page = tmp_path / "out", tmp_path / "page.md"
    flags = ["--out", out, "--page", page, "--width", 4, "--quick", "--device", "cpu", "--seeds", 1]
    monkeypatch.setattr(sys, "argv", ["target_size", *map(str, [folder, *flags])])
    target_size.main()
    rows = read_runs([out])
    teacher = {row["split"]: row["score"] for row in rows if row["stage"] == "pretrain"}
    made = {(row["clips"], row["split"]): row["score"] - teacher[row["split"]] for row in rows if row["teacher"]}
    assert made.keys() == {(size, split) for size in (20, 30, 40) for split in ("valid", "test")}
    for size in (20, 30, 40):
        line = f"| speaker_id | {size} | {100 * made[size, 'valid']:+.1f} | {100 * made[size, 'test']:+.1f} |"
        assert line in page.read_text()
    assert (tmp_path / "page" / "target_size.png").stat().st_size > 1000


@pytest.mark.parametrize("text", ["slow", ": optim.lr=1", "slow: optim.lr"])
def test_a_recipe_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="want"):
        corpus.recipe_of(text)


def test_a_part_of_a_page_is_replaced_where_it_stands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for name, text in (("a", "one\n"), ("b", "two\n"), ("a", "three\n")):
        write_part(page, name, text)
    assert page.read_text() == "<!-- begin: a -->\nthree\n<!-- end: a -->\n<!-- begin: b -->\ntwo\n<!-- end: b -->\n"
