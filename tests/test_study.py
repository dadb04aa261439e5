"""benchmarks/study.py: a page that claims what its numbers show, the presets' deviations, and the whole as a check."""

from __future__ import annotations

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
from scipy.stats import t as student
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from unfused_fast.commands.demo import DemoSize
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset
from unfused_fast.errors import UserError
from unfused_fast.evaluation.run_pool import RunPool
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.training.options import Options, precision


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.4], [0.1, 0.2, 0.3, 0.2, 0.1], [0.01 * n for n in range(10)]])
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    mean = sum(values) / len(values)
    error = (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5
    assert study_page.seed_interval(values) == pytest.approx(
        student.interval(0.95, len(values) - 1, loc=mean, scale=error), rel=1e-3
    )


def test_a_difference_is_claimed_only_where_clips_and_seeds_show_it() -> None:
    def said(interval: list[float], by_seed: list[float]) -> str | None:
        pair = {"first": "A", "second": "B", "difference": sum(by_seed) / len(by_seed)}
        sentence: str | None = study_page.verdict("birds", {**pair, "interval": interval, "by_seed": by_seed})
        return sentence

    better, worse, mixed = [0.05, 0.06, 0.07], [-0.05, -0.06, -0.07], [0.01, 0.16, 0.01]
    assert said([0.02, 0.1], better) == (
        "A beats B on birds by 6.0 points (95 % over test clips +2.0 to +10.0, over 3 seeds +3.5 to +8.5)."
    )
    assert str(said([-0.1, -0.02], worse)).startswith("A is worse than B on birds by 6.0 points")
    assert said([-0.01, 0.13], better) is None, "test clips do not show it"
    assert said([0.02, 0.1], mixed) is None, "seeds do not show it"
    assert said([0.02, 0.1], [0.06, 0.06]) is None, "two seeds show nothing"
    assert said([0.02, 0.1], [0.3 - 0.24, 0.06, 0.06]) is None, "seeds that agree by chance give no interval"
    target = {"task": "birds", "pairs": [{"first": "A", "second": "B", "difference": 0.06, "interval": [0, 0.1]}]}
    target["pairs"][0]["by_seed"] = better  # type: ignore[index]
    assert study_page.verdicts(target) == ["Not told apart on birds: A and B."]


def test_a_deviation_is_claimed_from_six_test_clips_on() -> None:
    def said(clips: int, *by_seed: float) -> str | None:
        line = {"task": "birds", "settings": "a.b=1", "presets": ["paper"], "test_clips": clips, "by_seed": by_seed}
        sentence: str | None = study_page.deviation_verdict(line)
        return sentence

    assert said(200, 0.03, 0.031, 0.032) == (
        "`a.b=1` (paper) raises test on birds by 3.1 points (95 % over seeds +2.9 to +3.3)."
    )
    assert said(190, 0.03, 0.031, 0.032) is None, "not six clips"
    assert said(200, 0.01, 0.1, 0.01) is None and said(200) is None


def test_purity_and_nmi_are_those_of_the_labels(tones: Path, tmp_path: Path) -> None:
    shards = open_shards(tones)
    truth = shards.clips_in("train").column("label").to_numpy()
    pseudo = numpy.random.default_rng(0).permutation(truth) // 2 * 2 + numpy.arange(len(truth)) % 2
    pq.write_table(pa.table({"pseudo_label": pseudo}), tmp_path / "pseudo_labels.parquet")
    purity, nmi = study_search.pseudo_label_scores(tmp_path, shards)
    assert purity == pytest.approx(contingency_matrix(truth, pseudo).max(axis=0).sum() / len(truth))
    assert nmi == pytest.approx(normalized_mutual_info_score(truth, pseudo, average_method="geometric"), abs=1e-6)


def test_a_search_says_what_validation_shows() -> None:
    def row(settings: str, *gains: float) -> dict[str, Any]:
        valid = [0.5 + gain for gain in gains]
        scores = {"purity": [0.5], "nmi": [0.25], "valid": valid, "test": [0.9] * len(gains), "gain": [*gains]}
        return {"settings": settings, **scores, "failed": [] if gains else ["diverged", "diverged"]}

    rows = [row("base", -0.01, 0, 0.01), row("pseudo.k=32", 0.05, 0.06, 0.07), row("optim.lr=9")]
    worse, wide = row("distill.beta=0.3", -0.05, -0.06, -0.07), row("train.epochs=5", 0.01, 0.16, 0.01)
    birds = {"task": "birds", "stage1": {"valid": [0.5] * 3, "test": [0.4] * 3}, "rows": [*rows, worse, wide]}
    birds["labels"] = {"valid": [], "test": [], "gain": [], "test_gain": [], "failed": ["diverged"]}
    assert study_page.search_verdict(birds) == (
        "On birds `pseudo.k=32` has the best validation of stage 2, +6.0 ± 0.6 points beside stage 1 "
        "(95 % over seeds +3.5 to +8.5). Better than stage 1 by the interval over seeds: `pseudo.k=32`. "
        "Worse than stage 1 by the interval over seeds: `distill.beta=0.3`."
    )
    bees = {**birds, "task": "bees", "rows": [rows[0], row("pseudo.k=32", -0.02, -0.02, -0.03)]}
    bees["labels"] = {"valid": [0.6] * 3, "test": [0.7] * 3, "gain": [0.1] * 3, "test_gain": [0.3] * 3, "failed": []}
    said = "\n".join(study_page._searched([birds, bees]))
    assert "stage 2 would be at +10.0 ± 0.0 points of validation and +30.0 ± 0.0 of test beside stage 1" in said
    assert "| bees | the labels themselves as pseudo-labels | 1.00 | 1.00 | 60.0 ± 0.0 | +10.0 ± 0.0 |" in said
    assert "By that interval no setting of stage 2 is better than stage 1 on every set." in said
    assert "On bees `recommended` has the best validation of stage 2, +0.0 ± 0.6 points" in said
    assert "| birds | optim.lr=9 | 0.50 | 0.25 |  |  |  |  | diverged |" in said
    assert "| birds | the labels themselves as pseudo-labels | 1.00 | 1.00 |  |  |  |  | diverged |" in said
    assert study_page.search_verdict({**birds, "rows": rows[2:]}) == "On birds every run of stage 2 failed."
    assert "every set: `pseudo.k=32`" in "\n".join(study_page._searched([birds, birds]))


def test_deviations_are_what_config_diff_shows_but_for_the_size(
    cli: Callable[..., Any], tones: Path, tmp_path: Path
) -> None:
    shards = open_shards(tones)
    pool = RunPool(tmp_path, Options(torch.device("cpu")))
    of = study.Study(shards, [shards], DemoSize(), {}, ("pretrain", "distill", "linear"), False, tmp_path, pool)
    sized = {"train.epochs", "train.batch_size", "cluster.k"}
    for stage in of.deviations:
        wanted: dict[str, dict[str, list[str]]] = {}
        for name in ("paper", "authors"):
            for line in json.loads(cli("config", "--stage", stage, "--diff", name, "--json").out):
                value = tuple(line[name]) if isinstance(line[name], list) else line[name]
                if line["field"] not in sized:
                    wanted.setdefault(line["field"], {}).setdefault(str(value), []).append(name)
        if stage != "linear" and precision(Config(), torch.device("cpu")) == "fp32":
            assert wanted.pop("train.amp") == {"fp32": ["authors"]}, "what this CPU has anyway"
        if stage == "distill":
            assert wanted.pop("pseudo.crop") == {"start": ["authors"]}, "the place of a window that is not cut"
        found = study.deviating(of, stage, 60)
        assert found == wanted and wanted
        larger = {**found, **study.deviating(of, stage, 600)}
        more = {field: values for field, values in larger.items() if field not in found}
        assert (
            more
            == {
                "pretrain": {"cluster.k": {"512": ["paper"]}, "train.batch_size": {"512": ["paper", "authors"]}},
                "distill": {"train.batch_size": {"512": ["paper"], "256": ["authors"]}},
                "linear": {},
            }[stage]
        ), "the presets' own numbers, where there are as many clips"
        configs = {name: of.config("recommended", name) for name in of.deviations}
        cells = study_deviations.cells_of(configs, stage, {field: [*values] for field, values in found.items()}, True)
        changed = [(field, value) for cell in cells[1:] for field, value in cell.values.items()]
        assert [(field, str(value)) for field, value in changed] == [(f, v) for f, vs in found.items() for v in vs]


def test_a_size_leaves_the_widths_of_decar_v1_alone(tones: Path, tmp_path: Path) -> None:
    shards, pool = open_shards(tones), RunPool(tmp_path, Options(torch.device("cpu")))
    of = study.Study(shards, [shards], DemoSize(), {}, (), False, tmp_path, pool)
    assert of.config("decar-v1", "pretrain").model == preset("decar-v1", "pretrain").model
    assert of.config("paper", "pretrain").model.channels == 16
    own = {"model.encoder": "audiontt"}
    assert (
        study.Study(shards, [shards], DemoSize(), own, (), False, tmp_path, pool)
        .config("decar-v1", "pretrain")
        .model.dim
        == 512
    )
    shown = study.sized(of)["pretrain"]
    assert shown["train.batch_size"] == 64 and shown["model.channels"] == 16


def test_sets_of_one_name_are_told_apart(tones: Path, unlabelled: Path, tmp_path: Path, monkeypatch: Any) -> None:
    sets = [open_shards(shutil.copytree(tones, tmp_path / "A/shards"))]
    sets += [open_shards(shutil.copytree(unlabelled, tmp_path / "B/shards")), open_shards(tones)]
    pool = RunPool(tmp_path, Options(torch.device("cpu")))
    of = study.Study(sets[0], sets, DemoSize(), {}, ("linear",), False, tmp_path, pool)
    assert [of.task(target) for target in sets] == ["A/shards", "B/shards", "tones"]
    asked: list[tuple[Path, RunPool]] = []

    def ablate(*given: Any) -> dict[str, Any]:
        asked.append((given[4], given[6]))
        return {"rows": []}

    monkeypatch.setattr(study_deviations, "ablate", ablate)
    for target in sets[:2]:
        assert [*study.deviations(of, target)] == []
    assert asked[0][0] != asked[1][0] and all(given is pool for _, given in asked), "what diverged is known to both"


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
    assert "train and test are needed" in error(*given, "--target", unlabelled)
    assert "cluster.algo = pic does not read it" in error(*given, "--set", "cluster.init=warm")
    monkeypatch.setattr(study_search, "SEARCHED", {"pseudo.k": [0]})
    assert "pseudo.k = 0: want at least 1" in error(*given, "--search")
    assert "--deviations finetune" in error(*given, "--deviations", "finetune")
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
    assert "9 clips for stage 1" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_quick_runs_everything_and_makes_nothing_twice(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = [
        "--quick",
        "--shards",
        tones,
        "--device",
        "cpu",
        "--deviations",
        "linear",
        "--search",
        "--set",
        "data.crop_seconds=0.3",
    ]
    monkeypatch.setattr(sys, "argv", ["study", "--out", *map(str, [out, "--page", tmp_path / "page.md", *flags])])
    monkeypatch.setattr(study_search, "SEARCHED", {"pseudo.k": [2], "distill.init": ["teacher"]})
    study.main()
    page = (tmp_path / "page.md").read_text()
    assert (out / "results.md").read_text() in page
    for name in (study.LOG_MEL, study.RANDOM, *study.DECAR1, *study.DECAR2, study.UNFUSED, study.UNFUSED_3):
        assert f"| {name} |" in page, name
    assert "no results" in page and " beats " not in page, "one seed shows nothing"
    assert "| tones | linear | eval.standardize=False | authors |" in page
    result = json.loads((out / "study.json").read_text())
    (searched,) = result["searched"]
    assert [row["settings"] for row in searched["rows"]] == ["base", "pseudo.k=2", "distill.init=teacher"]
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
