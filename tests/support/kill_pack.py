"""Kills `unfused-fast shard` with SIGKILL at random moments, goes on each time, and compares with an undisturbed pack.

python tests/support/kill_pack.py --kills 20 --seed 0 [--parts 2] [--codec flac]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

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


def contents(folder: Path) -> dict[str, str]:
    """Name -> sha256 of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


def disturbed(commands: list[list[str]], kills: int, chance: random.Random, longest: float) -> tuple[int, int]:
    """Runs commands one after the other, killing the one at work until `kills` are used up -> kills, runs."""
    used = runs = 0
    for number, command in enumerate(commands, 1):
        while True:
            runs += 1
            # The last command has to take what is left; a run that ends before its kill does not count.
            left = used < kills if number == len(commands) else used < kills * number / len(commands)
            if run(command, chance.uniform(0.05, longest) if left else None):
                break
            used += 1
    return used, runs


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--codec", default="wav")
    parser.add_argument("--longest", type=float, default=2.0, help="seconds from a start to its kill, at most")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, whole, out = folder / "source", folder / "whole", folder / "out"
        make_source(source, given.clips)
        flags = ["--labels-from-folders", "--codec", given.codec, "--workers", "1"]
        run(["shard", str(source), str(whole), *flags])
        chance, kills, runs, packs, same = random.Random(given.seed), 0, 0, 0, True
        started = time.perf_counter()
        while kills < given.kills:  # a fast machine may be done before the last kill: then all of it once more
            packs += 1
            made = folder / f"pack{packs}"
            made.mkdir()
            out = made / "out"
            used, again = disturbed(
                commands_for(source, made, given.parts, flags), given.kills - kills, chance, given.longest
            )
            kills, runs = kills + used, runs + again
            left = sorted(path.name for path in made.iterdir() if path.name.startswith("out"))
            same = same and contents(out) == contents(whole) and left == ["out"]
            shutil.rmtree(made)
        seconds = time.perf_counter() - started
    print(
        f"seed {given.seed}, {given.codec}, {given.parts} part(s): {kills} kills in {runs} runs of {packs} pack(s), "
        f"{seconds:.0f} s; bytes {'equal' if same else 'DIFFER'}"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
