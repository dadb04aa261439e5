"""benchmarks/gpu_all.sh: every script and command that it calls exists, and takes these arguments."""

from __future__ import annotations

import ast
import builtins
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import UsageError, parse

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RECORDER = """#!/bin/sh
{ printf '%s\\036' "$@"; printf '\\035'; } >>"$CALLS"
"""


def check_snippet(text: str) -> None:
    """Imports what a `python -c` imports, and looks its other names up."""
    names = {"__name__": "imported"}
    exec(compile(text, "-c", "exec"), names)
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert used <= names.keys() | set(dir(builtins)), text


def test_each_stage_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(RECORDER)
    python.chmod(0o755)
    env = {**os.environ, "PYTHON": str(python), "CALLS": str(calls)}
    subprocess.run(["bash", BENCHMARKS / "gpu_all.sh", tmp_path / "out", "20"], env=env, check=False, timeout=60)
    found = [call.split("\036")[:-1] for call in calls.read_text().split("\035")[:-1]]
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(BENCHMARKS.parent)
    scripts, commands = 0, 0
    for kind, what, *rest in found:
        if kind == "-c":
            check_snippet(what)
        elif (kind, what) == ("-m", "unfused_fast"):
            parse(rest)
            commands += 1
        elif kind == "-m":
            assert what == "pytest"
        else:
            monkeypatch.setattr(sys, "argv", [kind, "--help"])
            with pytest.raises(SystemExit):
                runpy.run_path(kind, run_name="__main__")
            offered = capsys.readouterr().out.replace("=", " ").split()
            flags = {item for item in (what, *rest) if item.startswith("--")}
            assert flags <= {item.rstrip(",").lstrip("[") for item in offered}, kind
            scripts += 1
    assert scripts >= 5 and commands >= 5 and any(kind == "-c" for kind, *_ in found)


@pytest.mark.parametrize(
    "line", ["train pretrain set", "train pretrain set --out run --gpus 2", "bench all --quick 3 4"]
)
def test_what_the_command_line_does_not_take_is_found(line: str) -> None:
    with pytest.raises(UsageError):
        parse(line.split())
