"""benchmarks/: each script starts; what gpu_all.sh calls exists, and takes these arguments."""

from __future__ import annotations

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import parse

from unfused_fast.optional import missing_compiler

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if 'if __name__ == "__main__":' in path.read_text())
RECORDER = """#!/bin/sh
{ printf '%s\\036' "$@"; printf '\\035'; } >>"$CALLS"
"""


def flags_of(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What --help of a script offers."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    return {item.strip("[],") for item in capsys.readouterr().out.replace("=", " ").split()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_starts(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--help" in flags_of(script, monkeypatch, capsys)


def test_each_stage_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(RECORDER)
    python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "CALLS": str(calls)}
    subprocess.run(["bash", BENCHMARKS / "gpu_all.sh", tmp_path / "out", "20"], env=env, check=False, timeout=60)
    found = [call.split("\036")[:-1] for call in calls.read_text().split("\035")[:-1]]
    scripts, commands = 0, 0
    for kind, what, *rest in found:
        if kind == "-c":
            exec(what, {"__name__": "imported"})
        elif (kind, what) == ("-m", "unfused_fast"):
            parse(rest)
            commands += 1
        elif kind == "-m":
            assert what == "pytest"
        else:
            given = {item for item in (what, *rest) if item.startswith("--")}
            assert given <= flags_of(Path(kind).name, monkeypatch, capsys), kind
            scripts += 1
    assert scripts >= 5 and commands >= 5 and any(kind == "-c" for kind, *_ in found)


def test_the_page_is_written_where_a_script_measured_nothing(tmp_path: Path) -> None:
    (tmp_path / "stages.csv").write_text("stage,exit code,seconds\nparts,1,2\n")
    (tmp_path / "bench.csv").touch()  # as bench leaves it when it fails
    page = runpy.run_path(str(BENCHMARKS / "gpu_page.py"))["page"](tmp_path)
    assert "Nothing was measured." in page and "| parts | 1 | 2 |" in page and "bench.csv" not in page


@pytest.mark.skipif(missing_compiler("C++") is not None, reason=f"needs {missing_compiler('C++')}")
@pytest.mark.soak
def test_every_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    """The whole script on tiny sizes: each stage ends with 0, and the page has the rows of each."""
    script = ["bash", BENCHMARKS / "gpu_all.sh", "--dry-run", tmp_path / "out"]
    done = subprocess.run(script, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    stages = list(csv.DictReader((tmp_path / "out" / "stages.csv").open()))
    assert {stage["stage"]: stage["exit code"] for stage in stages if stage["exit code"] != "0"} == {}, done.stdout
    assert done.returncode == 0 and len(stages) == 11
    page = (tmp_path / "out" / "page.md").read_text()
    rows = [row for path in tmp_path.glob("out/*.csv") for row in csv.DictReader(path.open()) if "p50" in row]
    assert len(rows) > 35 and all(row["p50"] in page for row in rows)
    assert {"step.csv", "bench_kmeans.csv", "loader.csv", "bench.csv"} <= {
        path.name for path in tmp_path.glob("out/*.csv")
    }


def test_a_step_of_methods_of_each_kind_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measure.RESULTS", tmp_path)
    two, key, both = "2+0", "1+1", "2+2"  # with a gradient + without
    wanted = {"decar-v2": "1+0", "simclr": two, "moco": key, "delores-m": key, "slicer": both}
    monkeypatch.setattr(sys, "argv", ["methods.py", "--quick", "--device", "cpu", "--methods", *wanted])
    runpy.run_path(str(BENCHMARKS / "methods.py"), run_name="__main__")
    rows = list(csv.DictReader((tmp_path / "methods.csv").open()))
    assert len(rows) == 3 * len(wanted) and all(float(row["p50"]) > 0 for row in rows)
    settings = [dict(word.split("=") for word in row["settings"].split()) for row in rows]
    assert {of["method"]: of["passes"] for of in settings} == wanted
