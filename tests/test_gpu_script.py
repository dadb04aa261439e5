"""benchmarks/: each script starts; what gpu_all.sh calls exists, and takes these arguments."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import parse

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
    assert {"--help", "--device"} <= flags_of(script, monkeypatch, capsys)


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
