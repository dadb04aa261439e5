"""`compare`: the numbers of the single commands, a method that fails, what is shared, what goes on after a kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from miniatures import urbansound
from outcomes import Cli

from unfused_fast.config.fields import Config
from unfused_fast.config.methods import MethodName
from unfused_fast.config.presets import preset, with_values
from unfused_fast.config.tasks import TASKS
from unfused_fast.errors import Interrupted
from unfused_fast.evaluation import compare_report
from unfused_fast.evaluation.compare import common_values, tasks_of
from unfused_fast.evaluation.compare_report import (
    PRINTED,
    TITLES,
    comparison_sentences,
    comparison_tables,
    verdict,
    write_scores,
)
from unfused_fast.evaluation.lape_data import shards_of, task_of
from unfused_fast.evaluation.report import spread
from unfused_fast.evaluation.run_pool import continuing
from unfused_fast.evaluation.run_store import read_runs, write_runs
from unfused_fast.models.cost import encoder_cost
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training import Options, plots

FLAGS = ["--epochs", 1, "--set", "eval.epochs=5"]


def _rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["encoder"]: row for row in json.loads((out / "compare.json").read_text())["rows"]}


def _finished(out: Path) -> dict[Path, int]:
    """What is finished, and when it was."""
    files = [*out.glob("runs/*/result.json"), *out.glob("tasks/*/*/evaluation.json")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_numbers_are_those_of_the_single_commands(
    cli: Cli, compared: Path, tones: Path, emotions: Path, tiny_any: list[str], tmp_path: Path
) -> None:
    rows, seed, common = _rows(compared), 1, ["--seed", 1, *FLAGS[2:], "--device", "cpu"]
    assert list(rows) == ["logmel", "random", "decar-v2", "simclr", "moco"]
    run = tmp_path / "run"
    trained = cli("train", "pretrain", tones, "--out", run, "--method", "simclr", *FLAGS[:2], *common, *tiny_any)
    assert trained.code == 0, trained.err
    for task, more in ((tones, []), (emotions, ["--holdout", 0.3])):
        named = ["--encoder", f"simclr={run}", "--out", tmp_path / task.name]
        scored = cli("evaluate", task, *named, *more, *common, "--json")
        assert scored.code == 0, scored.err
        for line in json.loads(scored.out)["rows"]:
            found = rows[line["encoder"]]["tasks"][task.name]
            assert [found[split]["values"][seed] for split in ("valid", "test")] == [line["valid"], line["test"]]
    for row in (rows[name] for name in ("logmel", "random", "decar-v2", "simclr")):
        scores = np.array([of["test"]["values"] for of in row["tasks"].values()])  # (tasks, seeds)
        assert scores.shape == (2, 2) and row["seeds"] == [0, 1] and row["state"] == "done"
        for found, values in ((row["mean"]["test"], scores.mean(axis=0)), (row["tasks"]["ic"]["test"], scores[1])):
            assert found["mean"] == pytest.approx(values.mean())
            assert found["standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
        if row["runs"]:
            results = [json.loads((Path(run) / "result.json").read_text()) for run in row["runs"]]
            spent = [result["seconds"] - result["start_seconds"] for result in results]
            assert row["seconds"]["mean"] == pytest.approx(np.mean(spent), abs=0.01)


def test_a_method_that_fails_is_a_line_and_the_report_is_written(
    cli: Cli, compared: Path, tones: Path, tiny_any: list[str], tmp_path: Path
) -> None:
    moco, markdown = _rows(compared)["moco"], (compared / "compare.md").read_text()
    assert (moco["state"], moco["seeds"], moco["mean"]["test"]["mean"]) == ("failed", [], None)
    assert [one["seed"] for one in moco["failed"]] == [0, 1] and "method.queue = 1000" in moco["failed"][0]["reason"]
    assert f"| MoCo |  |  |  |  |  | 0 | seeds 0, 1: {moco['failed'][0]['reason'].split(';')[0]} |" in markdown
    simclr = _rows(compared)["simclr"]["tasks"]["ic"]["test"]
    beside = f"{100 * simclr['mean']:.1f} ± {100 * simclr['standard_error']:.1f} (59.8)"  # UnFuSeD, Table 1
    assert (
        f"| SimCLR | {beside} |" in markdown and "| MoCo | (65.1) |" in markdown and "| UnFuSeD | (66.0) |" in markdown
    )
    valid = {row["title"]: row["mean"]["valid"]["mean"] for row in _rows(compared).values() if row["runs"]}
    assert f"Highest on validation: {max(valid, key=lambda title: valid[title])}, " in markdown
    assert "Test held out of train (--holdout 0.3): ic." in markdown and "1 epoch of 60 clips" in markdown
    assert (compared / "compare.png").read_bytes().startswith(b"\x89PNG")
    longer = ["--methods", "moco", "--set", "method.queue=61", "--out", tmp_path]
    alone = cli("compare", tones, "--tasks", tones, *FLAGS, *tiny_any, *longer)
    assert alone.code == 1 and "random" in alone.out and not (tmp_path / "compare.png").exists()


def test_a_mean_over_different_metrics_is_called_a_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of, axes = spread([0.5]), list[str]()
    monkeypatch.setattr(
        compare_report, "plot_scores", lambda path, points, lines, labels, title: axes.append(labels[1])
    )
    row = {"encoder": "simclr", "title": "SimCLR", "mean": {"test": of, "valid": of}, "seconds": of, "failed": []}
    row |= {"seeds": [0], "state": "done", "tasks": {name: {"test": of, "valid": of} for name in "ab"}}

    def titles(*metrics: str) -> tuple[list[str], str]:
        tasks = {
            name: {"metric": metric, "holdout": None, "paper": None} for name, metric in zip("ab", metrics, strict=True)
        }
        facts = {"seen": {"set": "s", "clips": 9, "epochs": 1}, "select": "valid", "not_shown": [], "run": "out"}
        summary = {**facts, "tasks": tasks, "rows": [row]}
        write_scores(tmp_path, summary)
        return [table[0].partition(",")[0] for table in comparison_tables(summary)], " ".join(
            comparison_sentences(summary)
        )

    names, text = titles("accuracy", "mAP")
    assert names == ["test score in %", "validation score in %"] and "Scores are accuracy for a; mAP for b." in text
    for metric in ("accuracy", "mAP"):
        names, text = titles(metric, metric)
        assert names == [f"test {metric} in %", f"validation {metric} in %"] and "Scores are" not in text
    assert axes == [f"mean test {word} in %" for word in ("score", "accuracy", "mAP")]


@pytest.mark.parametrize("command", [["compare"], ["ablate", "--vary", "cluster.k=4"]])
def test_ctrl_c_while_heads_learn_says_how_to_continue(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[object]
) -> None:  # fmt: skip
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unfused_fast.evaluation.comparison.measure", pressed)
    monkeypatch.setattr("unfused_fast.evaluation.ablation.RunPool.linear", pressed)
    more = ["--tasks", tones, "--methods", "decar-v2"] if command == ["compare"] else ["--epochs", 1]
    done = cli(command[0], tones, *command[1:], *more, *tiny, "--out", tmp_path / "out")
    assert done.code == 130 and done.err.endswith(f"{tmp_path}/out: stopped; run the same command again to continue\n")


def test_a_command_that_overwrites_is_continued_without(tmp_path: Path) -> None:
    options = Options(torch.device("cpu"), overwrite=True)
    with pytest.raises(Interrupted, match="again, without --overwrite, to continue"), continuing(tmp_path, options):
        raise KeyboardInterrupt


def test_runs_are_shared_with_an_ablation(cli: Cli, compared: Path, tones: Path, tiny: list[str]) -> None:
    before = _finished(compared)
    varied = ["--vary", "cluster.k=4", "--stage", "pretrain", "--seeds", 2, "--set", "method.queue=65536"]
    done = cli("ablate", tones, "--out", compared, *varied, *FLAGS, *tiny)
    assert done.code == 0, done.err
    after = _finished(compared)
    assert before.items() <= after.items()
    assert {path.parent.name.split("-")[0] for path in {*after} - {*before}} == {"linear"}


def _kept(folder: Path) -> list[tuple[Any, ...]]:
    """The rows of the store, without times and places."""
    spent = {"seconds", "log", "file"}
    return [tuple(value for name, value in row.items() if name not in spent) for row in read_runs([folder])]


def test_a_killed_command_goes_on(
    cli: Cli, cli_process: Callable[..., subprocess.Popen[str]], compared: Path, comparing: list[object], tmp_path: Path
) -> None:
    """One of its methods fails each time. The tables and the store of runs are those of an uninterrupted command."""
    out = tmp_path / "out"
    process = cli_process(*comparing, "--out", out)
    deadline = time.monotonic() + 120
    while not [*out.glob("tasks/ic/decar-v2-0/*")] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = _finished(out)
    assert process.returncode == -signal.SIGKILL and len(before) >= 7 and not (out / "compare.png").exists()
    states = {row["state"] for row in write_runs(out / "runs") if row["stage"] == "pretrain"}
    assert {"done"} <= states <= {"done", "unfinished"}
    done = cli(*comparing, "--out", out)
    assert done.code == 0, done.err
    assert before.items() <= _finished(out).items() and len(_finished(out)) == 4 + 2 * 2 * 4
    markdown = (out / "compare.md").read_text()
    assert "Not shown" not in markdown and "| DECAR-v2 |" in markdown
    whole, resumed = _rows(compared), _rows(out)
    same = ("tasks", "mean", "seeds", "failed")
    assert {name: [row[of] for of in same] for name, row in resumed.items()} == {
        name: [row[of] for of in same] for name, row in whole.items()
    }
    assert _kept(out) == _kept(compared.parent)
    files, store = _finished(out), (out / "runs.parquet").read_bytes()
    (out / "runs.parquet").write_bytes(b"half")
    write_runs(out / "runs")
    assert (out / "runs.parquet").read_bytes() == store
    part = cli(*comparing[:4], "--holdout", 0.3, *comparing[10:-4], "--methods", "decar-v2", "--out", out)
    assert part.code == 0 and _finished(out) == files
    # 4 encoders that were measured, 2 seeds, 2 tasks, of which 3 encoders were named with one seed on one task
    assert f"Not shown: 13 more results in {out}, such as ic/decar-v2-0; to see" in " ".join(part.out.split())


def test_what_is_damaged_is_a_line_and_names_are_those_of_folders(
    cli: Cli, tones: Path, tiny_any: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set given as a point, and one whose name has signs of tables and of formulas."""
    monkeypatch.chdir(tones)
    (odd := tmp_path / "a|b $x$ $y_").symlink_to(tones)
    given = ["compare", ".", "--tasks", ".", "--tasks", odd, "--out", tmp_path / "out", "--methods", "byol"]
    given += [*FLAGS, *tiny_any]
    assert cli(*given).code == 0
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| BYOL-A (byol) |" in markdown and "| tones | a\\|b $x$ $y_ |" in markdown
    cells = [line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert cells == [9] * 5 + [4] * 5 and (tmp_path / "out" / "compare.png").exists()
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["seen"]["set"] == "tones" and [*report["tasks"]] == ["tones", odd.name]
    (result,) = tmp_path.glob("out/runs/*/result.json")
    for path in (tmp_path / "out/tasks/tones/byol-0/evaluation.json", result):
        path.write_text("{}")
        assert cli(*given).code == 1
        (failed,) = _rows(tmp_path / "out")["byol"]["failed"]
        assert failed["reason"] == f"{path}: cannot be read ('seconds'); delete {path.parent} to run it again"


def test_every_method_gets_the_same_encoder_crops_and_epochs() -> None:
    linear = with_values(Config(), {"train.epochs": 7, "model.channels": 8, "data.crop_seconds": 0.5})
    names = get_args(MethodName)
    configs = [with_values(preset("recommended", "pretrain", name), common_values(linear)) for name in names]
    assert {encoder_cost(config, "full") for config in configs} == {encoder_cost(linear, "full")}
    assert {(config.frontend, config.model.pool, config.crop_frames) for config in configs} == {
        (linear.frontend, linear.model.pool, 51)
    }
    assert {(config.train.epochs, config.train.patience) for config in configs} == {(7, 0)}
    assert [config.method.name for config in configs] == [*names]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        # means and standard errors: 0.85 ± 0.05, 0.72 ± 0.02, 0.5 ± 0.1
        ({"simclr": (0.8, 0.9), "byol": (0.7, 0.74), "random": (0.4, 0.6)}, []),
        # 0.75 ± 0.02 overlaps with 0.79 ± 0.03, 0.7 ± 0.01 does not
        (
            {"simclr": (0.76, 0.82), "byol": (0.73, 0.77), "moco": (0.69, 0.71), "random": (0.4, 0.6)},
            ["SimCLR cannot be told apart from BYOL-A: their standard errors overlap."],
        ),
        (
            {"simclr": (0.5, 0.52), "random": (0.8, 0.81), "logmel": (0.51, 0.53)},
            ["No method is above log-mel or random there.", "SimCLR cannot be told apart from log-mel: their standard"],
        ),
        ({"simclr": (0.8,), "byol": (0.2,)}, ["One seed gives no standard error and cannot tell methods apart"]),
        ({"random": (0.8, 0.9)}, None),
    ],
)
def test_the_verdict_says_what_the_errors_and_the_baselines_leave_of_it(
    scores: dict[str, tuple[float, ...]], said: list[str] | None
) -> None:
    lines = verdict(
        [
            {"encoder": name, "title": TITLES[name], "seeds": [*range(len(of))], "mean": {"valid": spread(of)}}
            for name, of in scores.items()
        ]
    )
    if said is None:
        assert lines == []
        return
    assert lines[0].startswith("Highest on validation: SimCLR, ") and lines[-1].startswith("Choose by validation")
    assert len(lines) == 2 + len(said) and all(map(str.startswith, lines[1:], said)), lines


@pytest.mark.parametrize("apart", [True, False])
def test_names_stand_beside_their_points_where_none_covers_another(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, *_: figures.append(figure))
    points = {f"method {n}": ((100.0 + n * 30 * apart, 2.0), (70.0 + n * 2 * apart, 0.5)) for n in range(10)}
    plots.plot_scores(tmp_path / "x.png", points, {"random": (75.0, 0.5)}, ("seconds", "%"), "2 seeds")
    (axes,) = figures[0].axes
    figures[0].draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert [*boxes] == ([*points] if apart else [])
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"random", *(() if apart else points)}


def test_a_set_is_known_by_its_name_or_by_what_made_it(tones: Path, tmp_path: Path) -> None:
    urbansound(tmp_path / "UrbanSound8K")
    shards_of(TASKS["us8k"], tmp_path / "UrbanSound8K", tmp_path / "sounds", 0)
    (sounds,) = tasks_of([open_shards(tmp_path / "sounds")], Config(), [0], 0.2)
    assert sounds.paper is not None and (sounds.paper.name, sounds.name) == ("us8k", "sounds")
    assert (sounds.plan.by_folds, sounds.plan.holdout) == (True, None), "by its ten folds, as the papers do"
    (tmp_path / "decar-ic").symlink_to(tones)
    by_name = task_of(open_shards(tmp_path / "decar-ic"))
    assert by_name is not None and {*sum(PRINTED.values(), ())} <= {*by_name.results}
    assert task_of(open_shards(tones)) is None


def test_what_is_refused_before_anything_runs(
    cli: Cli, tones: Path, emotions: Path, unlabelled: Path, tmp_path: Path
) -> None:
    (twin := tmp_path / "more").mkdir()
    (twin / "tones").symlink_to(tones)
    for words, *more in (
        ("--methods mocha: no such method; did you mean moco? there are: all, decar-v2", "--methods", "moco,mocha"),
        ("--methods BYOL-A: no such method; did you mean byol?", "--methods", "BYOL-A"),
        ("--methods 'moco,,byol': a name between the commas is empty", "--methods", "moco,,byol"),
        ("--preset authors: method decar-v1 does not have it", "--preset", "authors"),
        ("method simclr does not read it", "--methods", "simclr", "--set", "method.queue=5"),
        ("compared methods train equally long", "--set", "train.patience=3"),
        ("has the name tones too", "--tasks", twin / "tones"),
        ("without a label", "--tasks", unlabelled, "--holdout", 0.2),
        ("--holdout", "--tasks", emotions),
        ("use --label-fraction 0.1", "--set", "eval.label_fraction=0.1"),
        ("3 processes cannot share data.partitions = 8 evenly", "--devices", 3),
    ):
        done = cli("compare", tones, "--tasks", tones, "--out", tmp_path / "out", "--device", "cpu", *more)
        assert done.code == 1 and words in done.error and not (tmp_path / "out").exists(), done.error
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "tasks").touch()
    for out in (tones, tmp_path / "file"):
        done = cli("compare", tones, "--tasks", tones, "--out", out, "--device", "cpu")
        assert done.code == 1 and "which is not part of a comparison" in done.error
