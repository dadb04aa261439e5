"""What the command line says: on terminals without Unicode, of wrong options, of what comes next."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_lines import COMMAND, parse
from outcomes import Cli, refused

from unfused_fast.cli import app
from unfused_fast.commands.exits import run_app
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.training.plots import plot_confusions, plot_log_mels

JAPANESE = "\u65e5\u672c\u8a9e"


@pytest.fixture(scope="module")
def japanese(
    tone_rows: list[SourceRow], pack_rows: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    rows = [SourceRow(row.path, f"{JAPANESE} {row.source}", f"{JAPANESE} $x^") for row in tone_rows[:4]]
    return pack_rows(rows, tmp_path_factory.mktemp("sets") / f"a {JAPANESE} set")


@pytest.mark.parametrize(
    ("command", "encoding"), [("peek", "ascii"), ("check", "ascii"), ("check", "latin-1"), ("check", "utf-8")]
)
def test_names_that_the_terminal_cannot_show(
    japanese: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, encoding: str
) -> None:
    """They are escaped, JSON stays JSON, and nothing warns."""
    for flags in ([], ["--json"]):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        more = ["--out", str(tmp_path / f"{JAPANESE}.png")] if command == "peek" else []
        monkeypatch.setattr(sys, "argv", ["unfused-fast", command, str(japanese), *more, *flags])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("error")
            run_app(app)
        out.flush()
        text = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert ended.value.code == 0
        if flags:
            assert json.loads(text)["shards"] == str(japanese)
        else:
            assert (JAPANESE if encoding == "utf-8" else "\\u65e5") in text


def test_labels_that_no_font_has(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No warning of Python's; private characters, which no font has, are counted in a line. Dollars are no formula."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusions(tmp_path / "a.png", [("$", [[1, 2], [3, 4]], ["\U000f1234", "$\\frac"])])
        clip = ("0 $a.wav", 1.0, np.random.default_rng(0).random((8, 9)))
        plot_log_mels(tmp_path / "b.png", [("$x^", [clip])], "plain")
    said = capfd.readouterr().err
    assert "a.png: no font here has 1 of the characters" in said and "b.png" not in said


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["no-such"], ["No such command 'no-such'", "unfused-fast --help"]),
        (["config", "--no-such"], ["No such option: --no-such", "unfused-fast config --help"]),
        (["config", "--preset", "wrong"], ["'--preset'", "'wrong' is not one of", "decar-v1"]),
        (["train", "no-such"], ["No such command", "unfused-fast train --help"]),
        (["train", "pretrain"], ["Missing argument", "unfused-fast train pretrain --help"]),
        (["embed", "a.wav", "--encoder", "b", "--out", "c.npz", "--workers", "0"], ["'--workers'", "1"]),
        (["export", "run"], ["nothing to write: give --hub FOLDER"]),
        *((["demo", f"--{name}", "0"], [f"'--{name}'", "1"]) for name in ("seeds", "epochs", "width", "clusters")),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(cli: Cli, given: list[str], parts: list[str]) -> None:
    done = cli(*given)
    assert done.code == 2 and done.out == "" and len(done.err.splitlines()) == 1
    assert all(part in done.error for part in parts), done.err


@pytest.mark.parametrize("command", ["report", "peek", "clusters"])
def test_help_says_what_is_replaced(cli: Cli, command: str) -> None:
    assert "a file of that name is replaced" in re.sub(r"[\s│|]+", " ", cli(command, "--help").out)


def test_a_group_without_a_command_prints_its_help(cli: Cli) -> None:
    done = cli("bank")
    assert done.code == 2 and "export" in done.out + done.err and "error:" not in done.err


def test_no_help_is_cut_on_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A word longer than its column would be."""
    monkeypatch.setenv("COLUMNS", "80")
    waiting: list[tuple[list[str], Any]] = [([], COMMAND)]
    while waiting:
        words, command = waiting.pop()
        COMMAND.main([*words, "--help"], "unfused-fast", standalone_mode=False)
        shown = capsys.readouterr().out
        assert "Usage" in shown and "\N{HORIZONTAL ELLIPSIS}" not in shown, words
        waiting += [([*words, name], inner) for name, inner in getattr(command, "commands", {}).items()]


@pytest.mark.parametrize(
    ("stage", "source", "command"),
    [
        ("pretrain", "tones", "train distill"),
        ("pretrain", "unlabelled", "explore"),
        ("distill", "tones", "train linear"),
    ],
)
def test_what_comes_next_can_be_typed(
    cli: Cli,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    source: str,
    command: str,
) -> None:
    """With the set and the run that were given, quoted; stage 2 only for a set with labels, whose number is its K."""
    shards, run = tmp_path / "my 'set'", tmp_path / "a run"
    shards.symlink_to(request.getfixturevalue(source))
    monkeypatch.setattr(f"unfused_fast.stages.{stage}", lambda *_: {"run": str(run), "loss": 1.0})
    teacher = ["--teacher", tmp_path] if stage == "distill" else []
    done = cli("train", stage, shards, "--out", run, "--device", "cpu", *teacher)
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("next: unfused-fast "))
    words = shlex.split(line.removeprefix("next: unfused-fast "))
    parse(words)
    assert str(shards) in words and str(run) in words and " ".join(words).startswith(command)


def test_config_of_a_field_and_of_a_section(cli: Cli) -> None:
    assert json.loads(cli("config", "cluster.k", "optim.lr", "--json").out) == {"cluster.k": "auto", "optim.lr": 1.0}
    section = json.loads(cli("config", "loss", "--json").out)
    assert section and all(name.startswith("loss.") for name in section)
    assert "cluster.k" in cli("config", "cluster.k").out and "optim.lr" not in cli("config", "cluster.k").out
    differing = json.loads(cli("config", "optim", "--diff", "authors", "--json").out)
    assert differing and all(line["field"].startswith("optim.") for line in differing)
    refused(cli("config", "cluster.kk"), "cluster.kk: neither a field nor a section", "did you mean cluster.k?")


ENDING = """
import os, signal, sys, threading, unfused_fast.cli

def again():
    threading.main_thread().join()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)

def stopped(app):
    threading.Thread(target=again).start()
    print("stopped, saved", file=sys.stderr)
    sys.exit(130)

unfused_fast.cli.run_app = stopped
unfused_fast.cli.main()
"""
RUNNING = """
import signal, sys, unfused_fast.cli, unfused_fast.commands.evaluate

unfused_fast.commands.evaluate.show = lambda *given: signal.raise_signal(number)
sys.argv[1:] = ["tasks"]
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        unfused_fast.cli.main()
    except SystemExit as ended:
        print(ended.code)
"""


def test_a_signal_ends_any_command_with_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", RUNNING], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "130\n" * 3, "interrupted\n" * 3)


def test_signals_while_the_process_ends() -> None:
    """They come when all is said: they change neither that nor the exit code."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped, saved\n")


LIGHT = """
import sys
import unfused_fast.cli
for line in sys.stdin.read().splitlines():
    sys.argv[1:] = line.split("\t")
    try:
        unfused_fast.cli.main()
    except SystemExit as ended:
        assert not ended.code, (line, ended)
    assert not {"torch", "scipy", "sklearn", "matplotlib"} & sys.modules.keys(), line
"""


def test_commands_without_a_network_import_nothing_heavy(tones: Path, tmp_path: Path) -> None:
    """Importing torch takes seconds, and several hundred megabytes."""
    (tmp_path / "files").mkdir()
    soundfile.write(tmp_path / "files" / "a.wav", np.ones(16000) / 2, 16000)
    packing = ["shard", str(tmp_path / "files"), str(tmp_path / "set")]
    lines = [["--help"], ["tasks"], ["config"], ["shard", "--list"], packing, ["check", str(tones)]]
    text = "\n".join("\t".join(line) for line in lines)
    done = subprocess.run([sys.executable, "-c", LIGHT], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
