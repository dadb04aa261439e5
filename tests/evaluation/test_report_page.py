"""`report --html`: one file with what the runs wrote."""

from __future__ import annotations

import base64
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from outcomes import Cli, refused

from unfused_fast.evaluation.report_page import accuracy_interval

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
