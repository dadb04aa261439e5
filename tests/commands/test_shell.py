"""What a shell asks of the command line: its version, completion, and no colours."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from outcomes import Cli

from unfused_fast import __version__
from unfused_fast.checkout import commit

COMMAND = "import sys; sys.argv[0] = 'unfused-fast'; from unfused_fast.cli import main; main()"


def test_the_version_names_the_commit(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the checkout, or that pip noted (PEP 610); never of a repository around an installed package."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", tmp_path, *arguments], capture_output=True, text=True, check=True).stdout

    def found(folder: Path) -> str:
        commit.cache_clear()
        return commit(folder)

    assert cli("--version").out == f"unfused-fast {__version__} (commit {commit()})\n"
    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "one")
    assert found(tmp_path) == git("rev-parse", "--short", "HEAD").strip()
    (tmp_path / "file").write_text("2")
    assert found(tmp_path) == git("rev-parse", "--short", "HEAD").strip() + "+changes"
    noted = {"url": "git+file:///tree", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}
    folder: dict[str, Any] = {"url": "file:///tree", "dir_info": {}}
    for origin, wanted in ((None, "unknown"), (folder, "unknown"), (noted, "0123456")):
        text = None if origin is None else json.dumps(origin)
        installed = SimpleNamespace(read_text={"direct_url.json": text}.get)
        monkeypatch.setattr(importlib.metadata, "distribution", {"unfused-fast": installed}.__getitem__)
        assert found(tmp_path / "site-packages") == wanted
    commit.cache_clear()


@pytest.mark.parametrize(
    ("shell", "words", "found"),
    [
        ("bash", "tr", {"train"}),
        ("bash", "train dis", {"distill"}),
        ("zsh", "train pretrain --compile-m", {"--compile-mode"}),
        ("fish", "train pretrain --compile-m", {"--compile-mode"}),
    ],
)
def test_completion(cli: Cli, monkeypatch: pytest.MonkeyPatch, shell: str, words: str, found: set[str]) -> None:
    """As the scripts ask that --install-completion writes."""
    asked = {
        "bash": {"COMP_WORDS": f"unfused-fast {words}", "COMP_CWORD": str(len(words.split()))},
        "zsh": {"_TYPER_COMPLETE_ARGS": f"unfused-fast {words}"},
        "fish": {"_TYPER_COMPLETE_ARGS": f"unfused-fast {words}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    for name, value in {**asked, "_UNFUSED_FAST_COMPLETE": f"complete_{shell}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # as of the script `unfused-fast`
    done = cli()
    assert found == {word for word in re.findall(r"[\w-]+", done.out) if word.startswith(words.split()[-1])}, done


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_no_color(variables: dict[str, str]) -> None:
    """On a terminal; bold and dim are no colours. Source: no-color.org."""
    leader, follower = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    environment = {**plain, "TERM": "xterm-256color", **variables}
    subprocess.run(
        [sys.executable, "-c", COMMAND, "doctor", "--help"], stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    shown = os.read(leader, 1 << 16)
    codes = {int(code) for found in re.findall(rb"\x1b\[([\d;]+)m", shown) for code in found.split(b";")}
    colours = {code for code in codes if 30 <= code <= 49 or 90 <= code <= 107}
    assert codes and bool(colours) == (not variables)


@pytest.mark.skipif(sys.platform == "win32", reason="closes file descriptors")
@pytest.mark.parametrize(("field", "code"), [("optim.lr", 0), ("nothing", 1)])
def test_standard_output_and_error_may_be_closed(field: str, code: int) -> None:
    command = [sys.executable, "-c", COMMAND, "config", field]
    closing = f"import os; os.close(1); os.close(2); os.execv({sys.executable!r}, {command!r})"
    assert subprocess.run([sys.executable, "-c", closing], timeout=120, check=False).returncode == code


CLOSED = """
import contextlib, os, pty, select, signal, sys, time
run, *command = sys.argv[1:]
child, terminal = pty.fork()
if not child:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    os.execvp(command[0], command)
while not os.path.exists(f"{run}/log.jsonl"):
    time.sleep(0.05)
    with contextlib.suppress(OSError):  # under nohup no process has it open
        while select.select([terminal], [], [], 0)[0]:
            os.read(terminal, 1 << 16)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("before", "epochs", "code"), [((), 5000, 130), (("nohup",), 8, 0)])
def test_a_run_is_saved_when_its_terminal_is_closed_and_goes_on_under_nohup(
    tones: Path, tiny: list[str], tmp_path: Path, before: tuple[str, ...], epochs: int, code: int
) -> None:
    train = ["train", "pretrain", tones, "--out", tmp_path / "run", "--epochs", epochs, "--save-every", "4000epochs"]
    command = [*before, sys.executable, "-c", COMMAND, *map(str, [*train, *tiny])]
    done = subprocess.run([sys.executable, "-c", CLOSED, tmp_path / "run", *command], cwd=tmp_path, timeout=300)
    assert done.returncode == code
    assert [*(tmp_path / "run" / "checkpoints").iterdir()], "nothing but the signal, or the end, saves this run"
