"""A pack that is killed repeatedly, or whose disk is full, ends with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from outcomes import Cli, contents

Start = Callable[..., "subprocess.Popen[str]"]


def make_source(folder: Path, clips: int) -> None:
    """Stereo noise of 1 to 3 s; every 40th file is not finite, every 50th no audio, so that ids shift on the way."""
    generator = np.random.default_rng(0)
    for number in range(clips):
        path = folder / f"label{number % 5}" / f"{number:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = generator.standard_normal((int(44100 * generator.uniform(1, 3)), 2)) * 0.1
        if number % 50 == 7:
            path.write_text("no audio")
        else:
            soundfile.write(path, noise * (np.nan if number % 40 == 3 else 1), 44100, "FLOAT")


def killed(process: subprocess.Popen[str], partial: Path, seconds: float) -> bool:
    """Whether the command was killed, and nothing else, so many seconds after it began, before it came to its end."""
    until = time.monotonic() + 120
    while not partial.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    assert process.returncode in (0, -9)
    return process.returncode != 0


def check_same_bytes(folder: Path, kills: int, parts: int, flags: list[str], cli: Cli, start: Start) -> None:
    """Packs, in one go or in parts, through so many kills: those of one command in a row, then it comes to its end."""
    source, whole, made, chance, used = folder / "source", folder / "whole", folder / "made", random.Random(4), 0
    make_source(source, 300)
    flags = ["--labels-from-folders", "--workers", "1", *flags]
    assert cli("shard", source, whole, *flags).code == 0
    shares = [made / f"part{number}" for number in range(1, parts + 1)]
    commands: list[tuple[Path, list[Any]]] = [(made / "out", ["shard", source, made / "out", *flags, "--resume"])]
    if parts > 1:
        commands = [
            (part, ["shard", source, part, *flags, "--part", f"{number}/{parts}", "--resume"])
            for number, part in enumerate(shares, 1)
        ]
        commands.append((made / "out", ["merge", *shares, made / "out", "--resume"]))
    while used < kills:  # a fast machine may be done before the last kill: then all of it once more
        made.mkdir()
        for number, (out, command) in enumerate(commands, 1):
            partial = out.with_name(f"{out.name}.partial")
            while used < kills * number / len(commands) and killed(start(*command), partial, chance.uniform(0, 1.5)):
                used += 1
            done = cli(*command)
            assert done.code == 0, done.err
        assert contents(made / "out") == contents(whole), f"bytes differ after {used} kills"
        assert [path.name for path in made.iterdir() if path.name.startswith("out")] == ["out"]
        shutil.rmtree(made)


def test_ctrl_c_says_whether_the_same_command_continues(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    make_source(tmp_path / "source", 6)
    out = tmp_path / "out"
    given = ["shard", tmp_path / "source", out, "--workers", 1]
    for place, said in (
        ("commands.shard._found", ("interrupted", "interrupted")),
        ("shards.packing.pack.request_of", ("interrupted", "interrupted")),
        (
            "shards.packing.pack._make_shards",
            (
                f"{out}: stopped; run the same command again to continue",
                f"{out}: stopped; run the same command again with --resume to continue",
            ),
        ),
    ):
        for more, sentence in zip(([], ["--overwrite"]), said, strict=True):
            monkeypatch.setattr(f"unfused_fast.{place}", pressed)
            done = cli(*given, *more)
            assert done.code == 130 and done.err.splitlines()[-1] == sentence, (place, done.err)
            monkeypatch.undo()
    assert cli(*given, "--overwrite", "--resume").code == 0
    assert cli("shard", tmp_path / "source", tmp_path / "part", "--part", "1/1").code == 0
    monkeypatch.setattr("unfused_fast.shards.packing.merge._bring", pressed)
    done = cli("merge", tmp_path / "part", tmp_path / "merged")
    assert done.code == 130 and done.err.splitlines()[-1] == (
        f"{tmp_path / 'merged'}: stopped; run the same command again to continue"
    )


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_a_killed_pack_gives_the_same_bytes(tmp_path: Path, kills: int, cli: Cli, cli_process: Start) -> None:
    check_same_bytes(tmp_path, kills, 1, [], cli, cli_process)


@pytest.mark.soak
@pytest.mark.parametrize("kills", [4, 20])
def test_killed_parts_and_a_killed_merge_give_the_same_bytes(
    tmp_path: Path, kills: int, cli: Cli, cli_process: Start
) -> None:
    check_same_bytes(tmp_path, kills, 3, ["--codec", "flac"], cli, cli_process)


SMALL_DISK = """
import contextlib, os, shutil, subprocess, sys
from unfused_fast.cli import main

source, disk, said, copied = sys.argv[1:]

def shard(*more):
    sys.argv = ["unfused-fast", "shard", source, f"{disk}/out", "--codec", "flac", "--workers", "1", *more]
    try:
        main()
    except SystemExit as ended:
        return ended.code

if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", disk]).returncode:
    sys.exit(42)
print(shard(), *os.listdir(disk))
subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
with open(said, "w") as file, contextlib.redirect_stdout(file):
    shard("--resume", "--json")
shutil.copytree(f"{disk}/out", copied)
"""


def test_a_full_disk(tmp_path: Path, cli: Cli) -> None:
    """A file system of 9 MB in a mount name space of its own; FLAC, whose size nobody knows before."""
    source, disk, said, copied = (tmp_path / name for name in ("source", "disk", "said.json", "copied"))
    make_source(source, 200)
    disk.mkdir()
    script = ["unshare", "-Urm", sys.executable, "-c", SMALL_DISK, source, disk, said, copied]
    try:
        done = subprocess.run([str(word) for word in script], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 42 or "unshare:" in done.stderr:
        pytest.skip(f"no file system of its own can be had here: {done.stderr.strip()[-100:]}")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr and "free some space and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout.split() == ["1", "out.partial"]
    summary = json.loads(said.read_text())
    assert 0 < summary["shards_made"] < summary["shards"], "the second run went on with what the first had made"
    assert cli("shard", source, tmp_path / "whole", "--codec", "flac", "--workers", 1).code == 0
    assert contents(copied) == contents(tmp_path / "whole")
