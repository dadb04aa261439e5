"""Kills `unfused-fast shard` and `merge` with SIGKILL at random moments, and continues each time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def commands_for(source: Path, folder: Path, parts: int, flags: list[str]) -> list[list[str]]:
    """What packs `source` to `folder`/out, in one go or in parts."""
    if parts == 1:
        return [["shard", str(source), str(folder / "out"), *flags, "--resume"]]
    shares = [str(folder / f"part{number}") for number in range(1, parts + 1)]
    commands = [
        ["shard", str(source), share, *flags, "--part", f"{number}/{parts}", "--resume"]
        for number, share in enumerate(shares, 1)
    ]
    return [*commands, ["merge", *shares, str(folder / "out"), "--resume"]]


def check_same_bytes(folder: Path, kills: int, parts: int, flags: list[str], clips: int = 1500) -> None:
    """Packs, in one go or in parts, through so many kills. Raises AssertionError: other bytes than without kills."""
    source, whole, chance, used = folder / "source", folder / "whole", random.Random(4), 0
    make_source(source, clips)
    flags = ["--labels-from-folders", "--workers", "1", *flags]
    run(["shard", str(source), str(whole), *flags])
    while used < kills:  # a fast machine may be done before the last kill: then all of it once more
        made = folder / "made"
        made.mkdir()
        used += disturbed(commands_for(source, made, parts, flags), kills - used, chance)
        assert contents(made / "out") == contents(whole), f"bytes differ after {used} kills"
        assert [path.name for path in made.iterdir() if path.name.startswith("out")] == ["out"]
        shutil.rmtree(made)
