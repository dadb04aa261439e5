"""benchmarks/study.py: a page that claims what its numbers show, the presets' deviations, and the whole as a check."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import study
import study_deviations
import study_page
import study_search
import torch
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from unfused_fast.commands.demo import DemoSize
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset
from unfused_fast.errors import UserError
from unfused_fast.evaluation.run_pool import RunPool
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options, precision

BETTER, WORSE, MIXED = [0.05, 0.06, 0.07], [-0.05, -0.06, -0.07], [0.01, 0.16, 0.01]


@pytest.mark.parametrize(
    ("interval", "by_seed", "shown"),
    [
        ([0.02, 0.1], BETTER, True),
        ([-0.1, -0.02], WORSE, True),
        ([-0.1, -0.02], BETTER, False),
        pytest.param([-0.01, 0.13], BETTER, False, id="test clips do not show it"),
        pytest.param([0.02, 0.1], MIXED, False, id="seeds do not show it"),
        pytest.param([0.02, 0.1], [0.06, 0.06], False, id="two seeds show nothing"),
        pytest.param([0.02, 0.1], [0.3 - 0.24, 0.06, 0.06], False, id="seeds that agree by chance give no interval"),
    ],
)
def test_a_difference_is_shown_where_clips_and_seeds_show_it(
    interval: list[float], by_seed: list[float], shown: bool
) -> None:
    assert study_page.shown(interval, study_page.seed_interval(by_seed)) == shown


@pytest.mark.parametrize(
    ("clips", "by_seed", "cells"),
    [
        (200, [0.03, 0.031, 0.032], ["+3.1 ± 0.1", "+2.9 to +3.3", "yes"]),
        pytest.param(190, [0.03, 0.031, 0.032], ["+3.1 ± 0.1", "+2.9 to +3.3", "no"], id="not six clips"),
        (200, [], ["", "", "no"]),
    ],
)
def test_a_deviation_is_shown_from_six_test_clips_on(clips: int, by_seed: list[float], cells: list[str]) -> None:
    line = {"task": "birds", "stage": "linear", "settings": "a.b=1", "presets": ["paper"], "test_clips": clips}
    assert study_page._deviation({**line, "by_seed": by_seed, "failed": []})[4:7] == cells


def test_purity_and_nmi_are_those_of_the_labels(tones: Path, tmp_path: Path) -> None:
    shards = open_shards(tones)
    truth = shards.clips_in("train").column("label").to_numpy()
    pseudo = numpy.random.default_rng(0).permutation(truth) // 2 * 2 + numpy.arange(len(truth)) % 2
    pq.write_table(pa.table({"pseudo_label": pseudo}), tmp_path / "pseudo_labels.parquet")
    purity, nmi = study_search.pseudo_label_scores(tmp_path, shards)
    assert purity == pytest.approx(contingency_matrix(truth, pseudo).max(axis=0).sum() / len(truth))
    assert nmi == pytest.approx(normalized_mutual_info_score(truth, pseudo, average_method="geometric"), abs=1e-6)


def test_rows_of_a_search() -> None:
    def row(settings: str, *gains: float) -> dict[str, Any]:
        valid = [0.5 + gain for gain in gains]
        scores = {"purity": [0.5], "nmi": [0.25], "valid": valid, "test": [0.9] * len(gains), "gain": [*gains]}
        return {"settings": settings, **scores, "failed": [] if gains else ["diverged", "diverged"]}

    one = {"task": "bees", "stage1": {"valid": [0.5] * 3, "test": [0.4] * 3}}
    one |= {"rows": [row("base", -0.01, 0, 0.01), row("pseudo.k=32", *BETTER), row("optim.lr=9")], "labels": row("")}
    assert [" | ".join(line[1:]) for line in study_page._searched(one)] == [
        "stage 1 |  |  | 50.0 ± 0.0 |  |  |  | 40.0 ± 0.0 | ",
        "stage 2, recommended | 0.50 | 0.25 | 50.0 ± 0.6 | +0.0 ± 0.6 | -2.5 to +2.5 | no | 90.0 ± 0.0 | ",
        "pseudo.k=32 | 0.50 | 0.25 | 56.0 ± 0.6 | +6.0 ± 0.6 | +3.5 to +8.5 | yes | 90.0 ± 0.0 | ",
        "optim.lr=9 | 0.50 | 0.25 |  |  |  | no |  | diverged",
        "the labels themselves as pseudo-labels | 0.50 | 0.25 |  |  |  | no |  | diverged",
    ]


@pytest.fixture
def of(tones: Path, tmp_path: Path) -> study.Study:
    """A study of `tones` at the size of the demo."""
    shards, pool = open_shards(tones), RunPool(tmp_path, Options(torch.device("cpu")))
    return study.Study(shards, [shards], DemoSize(), {}, ("pretrain", "distill", "linear"), False, tmp_path, pool)


@pytest.mark.parametrize(
    ("stage", "of_large_sets"),
    [
        ("pretrain", {"cluster.k": {"512": ["paper"]}, "train.batch_size": {"512": ["paper", "authors"]}}),
        ("distill", {"train.batch_size": {"512": ["paper"], "256": ["authors"]}}),
        ("linear", {}),
    ],
)
def test_deviations_are_what_config_diff_shows_but_for_the_size(
    cli: Callable[..., Any], of: study.Study, stage: Any, of_large_sets: dict[str, Any]
) -> None:
    wanted: dict[str, dict[str, list[str]]] = {}
    for name in ("paper", "authors"):
        for line in json.loads(cli("config", "--stage", stage, "--diff", name, "--json").out):
            value = tuple(line[name]) if isinstance(line[name], list) else line[name]
            if line["field"] not in ("train.epochs", "train.batch_size", "cluster.k"):
                wanted.setdefault(line["field"], {}).setdefault(str(value), []).append(name)
    if stage != "linear" and precision(Config(), torch.device("cpu")) == "fp32":
        assert wanted.pop("train.amp") == {"fp32": ["authors"]}, "what this CPU has anyway"
    if stage == "distill":
        assert wanted.pop("pseudo.crop") == {"start": ["authors"]}, "the place of a window that is not cut"
        assert wanted.pop("model.proj_hidden") == {"2048": ["paper", "authors"]}, "a width, which the size sets"
    found = study.deviating(of, stage, 60)
    assert found == wanted and wanted
    assert study.deviating(of, stage, 600) == {**found, **of_large_sets}, "the presets' own numbers"
    cells = study_deviations.cells_of(
        of.recommended(), stage, {name: [*values] for name, values in found.items()}, True
    )
    changed = [(field, str(value)) for cell in cells[1:] for field, value in cell.values.items()]
    assert changed == [(field, value) for field, values in found.items() for value in values]


def test_a_size_leaves_the_widths_of_decar_v1_alone(of: study.Study) -> None:
    assert of.config("decar-v1", "pretrain").model == preset("decar-v1", "pretrain").model
    assert of.config("paper", "pretrain").model.channels == 16
    own = dataclasses.replace(of, values={"model.encoder": "audiontt"})
    assert own.config("decar-v1", "pretrain").model.dim == 512
    shown = study.sized(of)["pretrain"]
    assert shown["train.batch_size"] == 64 and shown["model.channels"] == 16


def test_sets_of_one_name_are_told_apart(of: study.Study, tones: Path, unlabelled: Path, tmp_path: Path) -> None:
    sets = [open_shards(shutil.copytree(tones, tmp_path / "A/shards"))]
    sets += [open_shards(shutil.copytree(unlabelled, tmp_path / "B/shards")), open_shards(tones)]
    of = dataclasses.replace(of, targets=sets)
    assert [of.task(target) for target in sets] == ["A/shards", "B/shards", "tones"]
    assert len({of.folder("search", target) for target in sets}) == 3


def test_targets_and_settings_are_checked_before_stage_1(
    tones: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path / "out"), "--device", "cpu", *map(str, flags)])
        with pytest.raises(UserError) as found:
            study.main()
        assert not (tmp_path / "out").exists()
        return str(found.value)

    given = ["--quick", "--shards", tones, "--target", tones]
    assert "without a label" in error(*given, "--target", unlabelled)
    assert "cluster.algo = pic does not read it" in error(*given, "--set", "cluster.init=warm")
    monkeypatch.setattr(study_search, "SEARCHED", {"pseudo.k": [0]})
    assert "pseudo.k = 0: want a whole number or auto, at least 1" in error(*given, "--search")
    assert "eval.label_fraction = 0.5" in error(*given, "--set", "eval.label_fraction=0.5")


def test_what_was_measured_is_written_before_the_deviations(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise UserError("no deviations today")

    measured = {"size": {"seeds": 3}, "sized": {}, "values": {}, "pretraining_clips": 9, "targets": [], "failed": ["x"]}
    monkeypatch.setattr(study, "run_study", lambda _: measured)
    monkeypatch.setattr(study, "deviations", stopped)
    arguments = ["study", "--quick", "--out", tmp_path, "--shards", tones, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    with pytest.raises(UserError, match="no deviations today"):
        study.main()
    written = json.loads((tmp_path / "study.json").read_text())
    assert (written["failed"], written["deviations"]) == (["x"], [])
    assert "3 seeds, 9 clips for stage 1" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_quick_runs_everything_and_makes_nothing_twice(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = ["--quick", "--shards", tones, "--device", "cpu", "--deviations", "linear", "--search"]
    flags += ["--set", "data.crop_seconds=0.3", "--set", "model.encoder=audiontt"]
    monkeypatch.setattr(sys, "argv", ["study", "--out", *map(str, [out, "--page", tmp_path / "page.md", *flags])])
    monkeypatch.setattr(study_search, "SEARCHED", {"pseudo.k": [2], "distill.init": ["random"]})
    study.main()
    page = (tmp_path / "page.md").read_text()
    assert (out / "results.md").read_text() in page
    for name in (study.LOG_MEL, study.RANDOM, *study.DECAR1, *study.DECAR2, study.UNFUSED, study.UNFUSED_3):
        assert f"| {name} |" in page, name
    assert "no results" in page and "1 seed," in page and "| yes |" not in page, "one seed shows nothing"
    assert "| tones | linear | eval.standardize=False | authors |" in page
    result = json.loads((out / "study.json").read_text())
    (searched,) = result["searched"]
    assert [row["settings"] for row in searched["rows"]] == ["base", "pseudo.k=2", "distill.init=random"]
    purity = [row["purity"][0] for row in searched["rows"]]
    assert purity[0] == purity[2] > purity[1], "two pseudo-classes hold two of four tones at most"
    assert searched["stage1"]["valid"] == [searched["rows"][0]["valid"][0] - searched["rows"][0]["gain"][0]]
    assert len(searched["labels"]["valid"]) == 1
    assert result["failed"] == [] and str(tmp_path) not in page
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert (
        sorted(path.parent.name.split("-")[0] for path in before)
        == ["distill"] * 4 + ["linear"] * 11 + ["pretrain"] * 5
    )
    study.main()
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")} == before
    assert json.loads((out / "study.json").read_text())["targets"] == result["targets"]
