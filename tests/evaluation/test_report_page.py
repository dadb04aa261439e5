"""`report --html`: one file with what the runs wrote."""

from __future__ import annotations

import base64
import json
import re
import shutil
import warnings
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from outcomes import Cli, refused

from unfused_fast.config import preset
from unfused_fast.evaluation import report_page
from unfused_fast.evaluation.report_page import accuracy_interval
from unfused_fast.evaluation.run_store import settings_of
from unfused_fast.training.plots import plot_curves

RESULT: dict[str, Any] = {
    "stage": "linear",
    "task": "<b>音</b>",
    "metric": "accuracy",
    "label_names": ["a", "<script>alert(1)</script>"],
    "confusion": [[8, 2], [1, 9]],
    "valid": 0.9,
    "test": 0.85,
    "seed": 0,
    "seconds": 1.0,
}


def text_of(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [[unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_runs_of_all_stages_are_in_one_file(cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    for seed, test in ((0, 0.85), (1, 0.75)):
        (tmp_path / f"linear-{seed}").mkdir()
        result = {**RESULT, "test": test, "seed": seed}
        (tmp_path / f"linear-{seed}" / "result.json").write_text(json.dumps(result))
    out = tmp_path / "made" / "report.html"
    done = cli("report", pretrained, tmp_path, "--html", out)
    assert done.code == 0 and "results" in done.out, done.err
    page = out.read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == [] and "<script" not in page and "<b>" not in page
    rows = text_of(page)
    (mean,) = [row for row in rows if row[0] == "mean ± standard error"]
    assert mean[3] == "<b>音</b>" and "0.800 ± 0.050" in mean and "2 runs" in mean
    assert sum("0.640 to 0.948" in row for row in rows) == 2
    config = json.loads((pretrained / "config.json").read_text())
    found = {row[0]: row[1:] for row in rows}
    assert found["model.channels"] == ["64", str(config["config"]["model.channels"])]
    assert found["torch"][0] == config["versions"]["torch"] and "optim.name" not in found
    pictures = [base64.b64decode(text) for text in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)]
    titles = re.findall(r'alt="(.*?)"', page)
    assert len(pictures) == 3 and all(b"<svg" in picture for picture in pictures)
    assert titles[0] == "Curves of pretrain" and [title.split("/")[-1] for title in titles[1:]] == [
        "linear-0",
        "linear-1",
    ]


def test_each_method_has_its_own_recommended_settings(cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    config = json.loads((pretrained / "config.json").read_text())
    rates = {}
    for method in ("decar-v2", "simclr", "of a later version"):
        known = preset("recommended", "pretrain", None if method[0] == "o" else method)  # type: ignore[arg-type]
        rates[method] = str(known.optim.lr)
        (tmp_path / method).mkdir()
        of_method = {**config, "config": {**config["config"], "method.name": method, "optim.lr": known.optim.lr}}
        (tmp_path / method / "config.json").write_text(json.dumps(of_method))
        shutil.copy(pretrained / "result.json", tmp_path / method)
    out = tmp_path / "report.html"
    refused(cli("report", tmp_path, "--html", tmp_path), "it is a folder")
    refused(cli("report", tmp_path, "--html", tmp_path / "simclr/result.json/a"), "choose another --html")
    assert cli("report", tmp_path, "--html", out).code == 0
    rows = text_of(out.read_text(encoding="utf-8"))
    place = next(n for n, row in enumerate(rows) if row[0] == "" and row[1].startswith("recommended"))
    columns, found = rows[place], {row[0]: row for row in rows[place:]}
    for method, rate in rates.items():
        usual = next(n for n, name in enumerate(columns) if f"recommended of {method}" in name)
        assert found["optim.lr"][usual] == rate == found["optim.lr"][columns.index(method)]
    settings = [
        settings_of(json.loads((tmp_path / name / "config.json").read_text())["config"], "pretrain") for name in rates
    ]
    assert "optim.lr" not in settings[1] and [each.get("method.name") for each in settings] == [None, None, [*rates][2]]


def test_only_runs_that_differ_in_the_seed_alone_have_a_mean(cli: Cli, pretrained: Path, tmp_path: Path) -> None:
    config = json.loads((pretrained / "config.json").read_text())
    for number, (seed, rate, test) in enumerate([(0, 0.1, 0.7), (1, 0.1, 0.8), (0, 3.0, 0.2), (1, 3.0, 0.4)]):
        run = tmp_path / f"run-{number}"
        run.mkdir()
        of_run = {**config, "stage": "linear", "config": {**config["config"], "train.seed": seed, "eval.lr": rate}}
        (run / "config.json").write_text(json.dumps(of_run))
        (run / "result.json").write_text(json.dumps({**RESULT, "test": test, "seed": seed}))
    assert cli("report", tmp_path, tmp_path / "run-0", "--html", tmp_path / "a.html").code == 0
    rows = text_of((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [row[7] for row in rows if row[0] == "mean ± standard error"] == ["0.750 ± 0.050", "0.300 ± 0.100"]
    assert len([row for row in rows if row[0] == "run-0"]) == 1, "given twice"


def test_a_number_that_no_run_has_gets_no_panel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logs, panels = [[{"epoch": 1, "loss": 1.0, "nmi": None}]] * 2, list[str]()

    def plot(path: Path, runs: Any, quantities: list[tuple[str, str]]) -> None:
        panels.extend(key for key, _ in quantities)
        with warnings.catch_warnings(action="error"):
            plot_curves(path, runs, [*quantities, ("nmi", "empty")])

    monkeypatch.setattr(report_page, "plot_curves", plot)
    report_page._curves(["a", "b"], [{"stage": "pretrain"}] * 2, logs)
    assert panels == ["loss"]


@pytest.mark.parametrize("confusion", [[[1, 0], [0, 0]], [[40, 3], [9, 30]], [[0, 5], [5, 0]]])
def test_the_interval_is_wilsons(confusion: list[list[int]]) -> None:
    """By the formula of Wilson, Journal of the American Statistical Association 1927."""
    right, total, z = confusion[0][0] + confusion[1][1], sum(map(sum, confusion)), 1.959963984540054
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    assert accuracy_interval(confusion) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


@pytest.mark.parametrize("confusion", ["x", [[1], "a"], [[-1, 0], [0, 0]], [[[1]]]])
def test_what_is_no_confusion_matrix_is_named(cli: Cli, tmp_path: Path, confusion: Any) -> None:
    (tmp_path / "result.json").write_text(json.dumps({**RESULT, "confusion": confusion}))
    refused(cli("report", tmp_path, "--html", tmp_path / "a.html"), tmp_path / "result.json", "run the stage again")
    assert not (tmp_path / "a.html").exists()
