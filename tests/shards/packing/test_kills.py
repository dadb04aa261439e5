"""A pack that is killed repeatedly, or whose disk is full, ends with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from outcomes import contents

PROGRAM = [sys.executable, "-m", "unfused_fast"]


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


def run(arguments: list[str], kill_after: float | None = None) -> bool:
    """Whether the command came to its end; it is killed, and nothing else, after so many seconds."""
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}\n{said}")
    return True


def disturbed(commands: list[list[str]], kills: int, chance: random.Random) -> int:
    """Runs commands one after the other, killing the running one until `kills` are used up; gives the kills used."""
    used = 0
    for number, command in enumerate(commands, 1):
        while True:
            # The last command has to take what is left; a run that ends before its kill does not count.
            left = used < kills if number == len(commands) else used < kills * number / len(commands)
            if run(command, chance.uniform(0.05, 2.0) if left else None):
                break
            used += 1
    return used


def check_same_bytes(folder: Path, kills: int, parts: int, flags: list[str]) -> None:
    """Packs, in one go or in parts, through so many kills."""
    source, whole, chance, used = folder / "source", folder / "whole", random.Random(4), 0
    make_source(source, 500)
    flags = ["--labels-from-folders", "--workers", "1", *flags]
    run(["shard", str(source), str(whole), *flags])
    made = folder / "made"
    out, shares = str(made / "out"), [str(made / f"part{number}") for number in range(1, parts + 1)]
    commands = [["shard", str(source), out, *flags, "--resume"]]
    if parts > 1:
        commands = [
            ["shard", str(source), part, *flags, "--part", f"{number}/{parts}", "--resume"]
            for number, part in enumerate(shares, 1)
        ]
        commands.append(["merge", *shares, out, "--resume"])
    while used < kills:  # a fast machine may be done before the last kill: then all of it once more
        made.mkdir()
        used += disturbed(commands, kills - used, chance)
        assert contents(made / "out") == contents(whole), f"bytes differ after {used} kills"
        assert [path.name for path in made.iterdir() if path.name.startswith("out")] == ["out"]
        shutil.rmtree(made)


KILLS = [4, pytest.param(20, marks=pytest.mark.soak)]


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_pack_gives_the_same_bytes(tmp_path: Path, kills: int) -> None:
    check_same_bytes(tmp_path, kills, 1, [])


@pytest.mark.soak
@pytest.mark.parametrize("kills", [4, 20])
def test_killed_parts_and_a_killed_merge_give_the_same_bytes(tmp_path: Path, kills: int) -> None:
    check_same_bytes(tmp_path, kills, 3, ["--codec", "flac"])


SMALL_DISK = """
mount -t tmpfs -o size=6m tmpfs "$1" || exit 42
"$2" -m unfused_fast shard "$3" "$1/out" --codec flac --workers 1; first=$?
ls "$1"
mount -o remount,size=400m "$1"
"$2" -m unfused_fast shard "$3" "$1/out" --codec flac --resume --json > "$4" || exit 43
cp -r "$1/out" "$5"
exit $first
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 6 MB in a mount name space of its own; FLAC, whose size nobody knows before."""
    source, disk, said, copied = (tmp_path / name for name in ("source", "disk", "said.json", "copied"))
    make_source(source, 150)
    disk.mkdir()
    script = ["unshare", "-Urm", "sh", "-c", SMALL_DISK, "sh", disk, sys.executable, source, said, copied]
    try:
        done = subprocess.run([str(word) for word in script], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 42 or "unshare:" in done.stderr:
        pytest.skip(f"no file system of its own can be had here: {done.stderr.strip()[-100:]}")
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr and "free some space and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout.split() == ["out.partial"]
    summary = json.loads(said.read_text())
    assert 0 < summary["shards_made"] < summary["shards"], "the second run went on with what the first had made"
    run(["shard", str(source), str(tmp_path / "whole"), "--codec", "flac"])
    assert contents(copied) == contents(tmp_path / "whole")
