"""`lape` on miniatures of all data sets: every task runs, a killed command goes on, what lacks or is wrong is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from miniatures import all_of_lape, iemocap, tut, urbansound
from outcomes import Cli, PackRows
from stopping import signalled_after

from unfused_fast.config.tasks import LAPE_COLUMNS, LAPE_TASKS, TASKS
from unfused_fast.errors import UserError
from unfused_fast.evaluation import lape_benchmark
from unfused_fast.evaluation.lape_data import find, shards_of
from unfused_fast.methods import METHODS
from unfused_fast.shards.sources.row import SourceRow

FLAGS = ["--epochs", 1, "--set", "eval.epochs=10", "--set", "data.crop_seconds=0.3", "--set", "pseudo.n_init=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    all_of_lape(root)
    return root


def results_of(out: Path) -> dict[Path, int]:
    """What is finished, and when it was."""
    files = [*out.glob("runs/*/result.json"), *out.glob("tasks/*/*/evaluation.json")]
    return {path: path.stat().st_mtime_ns for path in files}


def _state(out: Path) -> dict[str, Any]:
    return {row["task"]: row for row in json.loads((out / "lape.json").read_text())["tasks"]}


@pytest.fixture
def packed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are packed in this process."""
    monkeypatch.setattr(lape_benchmark, "shards_of", lambda *given: shards_of(*given[:3], 0))


@pytest.mark.slow
@pytest.mark.usefixtures("packed_here")
def test_every_task_runs_and_the_table_stands_beside_the_papers(
    cli: Cli, data: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["lape", data, "--teacher", pretrained, "--out", out, "--label-fraction", "0.5,1", *FLAGS, *tiny]
    done = cli(*arguments)
    assert done.code == 0, done.err
    rows = _state(out)
    assert list(rows) == [task.name for task in LAPE_TASKS]
    assert {name: row.get("reason", row["state"]) for name, row in rows.items()} == dict.fromkeys(rows, "done")
    classes = {"sc-v1": 12, "sc-v2-12": 12, "sc-v2-35": 35, "lbs": 4, "vc": 3, "ic": 4, "vf": 6, "ns": 3, "bsd": 2}
    assert {name: row["classes"] for name, row in rows.items()} == classes | {"tut": 10, "us8k": 10}
    assert all(0 <= row["interval"][0] <= row["test"] <= row["interval"][1] <= 1 for row in rows.values())
    assert all(set(row["by_fraction"]) == {"0.5", "1"} for row in rows.values())
    assert rows["bsd"]["test"] > 0.5, "one octave tells the classes apart"
    summary = json.loads((out / "lape.json").read_text())
    average = summary["average"]["lape"]
    assert average["tasks"] == "11 of 11"
    assert average["test"] == pytest.approx(sum(row["test"] for row in rows.values()) / 11)
    assert average["paper"]["UnFuSeD"] == pytest.approx(81.6, abs=0.06) and average["paper"]["BYOL-A"] is None
    # all clips of UrbanSound8K are tested, each by heads of other folds
    tested = pq.read_table(out / "tasks/us8k/full/predictions.parquet").to_pylist()
    assert len({line["clip_id"] for line in tested if line["label_fraction"] == 1.0}) == 100
    assert {line["fold"] for line in tested} == set(range(1, 11))
    markdown = (out / "lape.md").read_text()
    for words in ("| SC-V1 |", *LAPE_COLUMNS, "average of 11 of 11", "3 classes here, 1,251 in the paper"):
        assert (words in markdown and words in done.out.replace("  ", " ")) or words.startswith("|"), words
    before = results_of(out)
    assert len(before) == 2 * 11
    # again: nothing is done twice; another head is measured on the same encoders
    again = cli(*arguments, "--json")
    assert again.code == 0 and json.loads(again.out)["tasks"] == summary["tasks"] and results_of(out) == before
    other = cli(*arguments, "--encoder", "student3", "--tasks", "tut", "--json")
    assert other.code == 0 and json.loads(other.out)["encoder"] == "student3"
    assert {path: time for path, time in results_of(out).items() if path.name == "result.json"} == {
        path: time for path, time in before.items() if path.name == "result.json"
    }


@pytest.mark.usefixtures("packed_here")
def test_a_stopped_command_goes_on(cli: Cli, pretrained: Path, tiny: list[str], tmp_path: Path) -> None:
    """Two tasks, two seeds; stopped in the first run of the second task: those of the first take four steps each."""
    data, out = tmp_path / "data", tmp_path / "out"
    tut(data / "tut2018")
    iemocap(data / "ic")
    arguments = ["--teacher", pretrained, *FLAGS, *tiny, "--tasks", "ic,tut", "--seeds", 2, "--encoder", "student3"]
    arguments += ["--set", "train.batch_size=10"]
    whole = cli("lape", data, "--out", tmp_path / "whole", *arguments, "--json")
    assert whole.code == 0, whole.err
    with signalled_after(2 * 4 + 1):
        assert cli("lape", data, "--out", out, *arguments).code == 130
    before = results_of(out)
    assert out / "tasks/ic/student3/evaluation.json" in before
    assert not (out / "tasks/tut/student3/evaluation.json").exists()
    done = cli("lape", data, "--out", out, *arguments, "--json")
    assert done.code == 0, done.err
    assert before.items() <= results_of(out).items()
    resumed, straight = json.loads(done.out), json.loads(whole.out)
    for mine, theirs in zip(resumed["tasks"], straight["tasks"], strict=True):
        assert mine["state"] == "done" and mine["seeds"] == [0, 1] and mine["standard_error"] is not None
        assert (mine["test"], mine["by_fraction"]) == (theirs["test"], theirs["by_fraction"])
        assert mine["interval"] == theirs["interval"] and mine["interval"][0] <= mine["test"] <= mine["interval"][1]
        (row,) = json.loads((out / "tasks" / mine["task"] / "student3/evaluation.json").read_text())["rows"]
        assert [run["seed"] for run in row["runs"]] == [0, 1] and row["repeated"] == "runs", "a seed for each encoder"
    assert resumed["tasks"][0]["cost"]["parameters"] == 9 * 4 + 4 + 2 * (9 * 4 * 4 + 4) + 3 * 2 * 4


def test_other_methods_are_columns_beside_the_papers(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    tut(data / "tut")
    shards_of(TASKS["tut"], data / "tut", tmp_path / "sets/tut", 0)
    common = [*FLAGS[2:], *tiny, "--out", out, "--set", "method.queue=1000", "--seeds", 2]
    columns = ["--methods", "simclr,moco,decar-v2"]
    compared = cli("compare", tones, "--tasks", tmp_path / "sets/tut", *columns, "--epochs", 1, *common)
    assert compared.code == 0, compared.err
    before = results_of(out)
    more = ["--tasks", "tut,bsd", *columns, "--pretrain-on", tones, "--pretrain-epochs", 1]
    done = cli("lape", tmp_path / "sets", "--teacher", pretrained, "--epochs", 1, *common, *more)
    assert done.code == 0, done.err
    assert before.items() <= results_of(out).items(), "what was compared is not trained or measured again"
    rows, summary = _state(out), json.loads((out / "lape.json").read_text())
    scores = {
        row["title"]: row["tasks"]["tut"]["test"] for row in json.loads((out / "compare.json").read_text())["rows"]
    }
    assert {name: of["test"] for name, of in rows["tut"]["methods"].items()} == {
        name: scores[name] for name in ("DECAR-v2", "SimCLR", "MoCo")
    }
    assert len(rows["tut"]["methods"]["MoCo"]["failed"]) == 2 and rows["tut"]["seeds"] == [0, 1]
    assert summary["average"]["lape"]["methods"] == {
        "DECAR-v2": pytest.approx(scores["DECAR-v2"]["mean"]),
        "SimCLR": pytest.approx(scores["SimCLR"]["mean"]),
        "MoCo": None,
    }
    markdown = (out / "lape.md").read_text()
    simclr = f"{100 * scores['SimCLR']['mean']:.1f} ± {100 * scores['SimCLR']['standard_error']:.1f} (52.4)"
    assert simclr in markdown and "| (66.7) |" in markdown and "| 66.8 |" in markdown, "SimCLR, MoCo, UnFuSeD on TUT"
    assert "pre-trained here by 1 epoch of 60 clips of tones each" in markdown and "| SimCLR, here |" in markdown
    assert "tut: MoCo, seeds 0, 1: method.queue = 1000" in markdown and "| BSD | missing |" in markdown


def test_every_method_is_a_column(cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "bsd").symlink_to(tones)
    more = ["--tasks", "bsd", "--methods", "all", "--pretrain-on", tones, "--pretrain-epochs", 1]
    values = [*FLAGS[:2], "--set", "eval.epochs=2", "--set", "pseudo.n_init=1"]
    done = cli("lape", data, "--teacher", pretrained, "--out", out, *values, *tiny, *more)
    assert done.code == 0, done.err
    titles = [method.title for method in METHODS.values()]
    row, markdown = _state(out)["bsd"], (out / "lape.md").read_text()
    assert [*row["methods"]] == titles and row["state"] == "done"
    assert all(0 <= of["test"]["mean"] <= 1 and not of["failed"] for of in row["methods"].values())
    cells = next(line for line in markdown.splitlines() if line.startswith("| BSD |")).split("|")
    assert all(f"{100 * of['test']['mean']:.1f}" in "".join(cells) for of in row["methods"].values())
    header = next(line for line in markdown.splitlines() if "| DECAR-v1, here |" in line or "| DECAR-v1 |" in line)
    assert len(titles) == 10 and all(f"| {title}" in header for title in {*titles, *LAPE_COLUMNS})


def test_missing_and_wrong_sets_are_named_and_not_fatal(
    cli: Cli, tones: Path, tone_rows: list[SourceRow], pack_rows: PackRows, pretrained: Path,
    tiny: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    data, out = tmp_path / "data", tmp_path / "out"
    tut(data / "tut2018")
    urbansound(data / "UrbanSound8K")
    (data / "UrbanSound8K/metadata/UrbanSound8K.csv").write_text("nothing\n")
    (data / "nsynth").mkdir()
    shards_of(TASKS["tut"], data / "tut2018", data / "ic", 0)
    (data / "bsd").symlink_to(tones)
    pack_rows([replace(row, label=None, labels=(row.label or "", "sound")) for row in tone_rows], data / "vf")
    tasks = "lbs,us8k,ns,ic,vf,bsd,tut"
    arguments = ["--teacher", pretrained, "--out", out, *FLAGS, *tiny, "--tasks", tasks, "--workers", 1]
    done = cli("lape", data, *arguments)
    assert done.code == 0, done.err
    rows = _state(out)
    wrong = dict.fromkeys(("us8k", "ns", "ic", "vf"), "wrong")
    assert {name: row["state"] for name, row in rows.items()} == {
        "lbs": "missing",
        **wrong,
        "bsd": "done",
        "tut": "done",
    }
    assert "slice_file_name" in rows["us8k"]["reason"] and "nsynth needs this layout" in rows["ns"]["reason"]
    assert "several labels each" in rows["vf"]["reason"]
    assert len([*out.glob("runs/*/")]) == 2, "stage 2 is run where stage 3 can be"
    assert "packed as tut2018" in rows["ic"]["reason"] and "--dataset iemocap" in rows["ic"]["reason"]
    assert "https://www.openslr.org/12" in rows["lbs"]["get"]["source"]
    shown = done.out
    assert "lbs is missing: put it in a folder" in shown and "https://www.openslr.org/12" in shown
    assert "us8k could not be measured" in shown and "average of 2 of 7" in shown
    average = json.loads((out / "lape.json").read_text())["average"]["lape"]
    assert average["paper"]["UnFuSeD"] == pytest.approx((90.0 + 66.8) / 2)
    assert average["test"] == pytest.approx((rows["bsd"]["test"] + rows["tut"]["test"]) / 2)
    assert any("a set of your own" in note for note in rows["bsd"]["notes"])
    # tut was found already packed in the folder `ic`, which is what its manifest says
    assert not (out / "shards/tut").exists()


def test_what_ends_the_command_before_anything_is_packed(
    cli: Cli, tones: Path, pretrained: Path, tmp_path: Path
) -> None:
    def error(data: Path, teacher: Path, out: Path, *more: str) -> str:
        done = cli("lape", data, "--teacher", teacher, "--out", out, "--device", "cpu", *more)
        assert done.code == 1
        return str(done.error)

    assert "no such folder" in error(tmp_path / "nothing", pretrained, tmp_path / "out")
    assert "not a run of unfused-fast" in error(tmp_path, tmp_path / "nothing", tmp_path / "out")
    assert "did you mean us8k?" in error(tmp_path, pretrained, tmp_path / "out", "--tasks", "us9k")
    assert "belong together" in error(tmp_path, pretrained, tmp_path / "out", "--methods", "moco")
    three = error(tmp_path, pretrained, tmp_path / "out", "--devices", "3")
    assert "3 processes cannot share data.partitions = 8 evenly" in three
    few = error(tmp_path, pretrained, tmp_path / "out", "--set", "eval.label_fraction=0.1")
    assert "use --label-fraction 0.1" in few
    assert not (tmp_path / "out").exists()
    assert "which is not part of a LAPE benchmark" in error(tmp_path, pretrained, tones)
    (tmp_path / "old").mkdir()
    (tmp_path / "done").mkdir()
    (tmp_path / "done/tasks").symlink_to(tmp_path / "old")
    tut(tmp_path / "data/tut")
    assert "cannot be written" in error(tmp_path / "data", pretrained, tmp_path / "done", "--overwrite")
    own = tmp_path / "used/runs/pretrain-mine"
    shutil.copytree(pretrained, own)
    (tmp_path / "link").symlink_to(own)
    for teacher in (own, tmp_path / "link"):
        lost = error(tmp_path / "data", teacher, tmp_path / "used", "--overwrite")
        assert f"{teacher}: --overwrite would delete it" in lost and (own / "result.json").exists()
    assert "no task was evaluated" in error(tmp_path / "old", pretrained, tmp_path / "used", "--overwrite")
    assert own.exists(), "nothing was found to put in its place"


def test_a_set_that_was_packed_from_other_files_is_not_taken(tmp_path: Path) -> None:
    data, out, task = tmp_path / "data", tmp_path / "out", TASKS["tut"]
    tut(data / "tut2018")

    def packed() -> tuple[int, int]:
        place = find(task, data)
        assert place is not None
        there = shards_of(task, place, out, 0)
        return there.clips.num_rows, (out / "manifest.json").stat().st_mtime_ns

    first = packed()
    assert first[0] == 40 and packed() == first, "made once"
    train = data / "tut2018/evaluation_setup/fold1_train.txt"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(
        UserError, match=rf"packed from different sources .* delete it to pack {data / 'tut2018'} again"
    ):
        packed()
    shutil.rmtree(out)
    assert packed()[0] == 39


def test_a_model_folder_is_the_teacher_that_its_run_is(
    cli: Cli, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bsd").symlink_to(tones)
    assert cli("export", pretrained, "--hub", tmp_path / "folder").code == 0
    arguments = ["--out", tmp_path / "out", *FLAGS, *tiny, "--tasks", "bsd", "--json"]
    done = cli("lape", tmp_path / "data", "--teacher", tmp_path / "folder", *arguments)
    assert done.code == 0, done.err
    assert json.loads(done.out)["tasks"][0]["state"] == "done"
    again = cli("lape", tmp_path / "data", "--teacher", pretrained, *arguments)
    assert again.code == 0 and "already finished" in again.err
    assert len([*(tmp_path / "out/runs").glob("*/")]) == 1
