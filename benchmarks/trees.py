"""The same commands in several checkouts of this project, in turns: did a change make them slower, or larger?

    git worktree add /tmp/before v0.1.0
    python benchmarks/trees.py /tmp/before .

Each repeat runs every command once in every checkout, so that neighbours in time are compared. Rows are
seconds of the whole program, or megabytes of all its processes, in each checkout, and what the last checkout takes of
the first, repeat by repeat.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import arguments, peak_megabytes, record

from unfused_fast.commands.measure.synthetic import noise_files

WIDTH_16 = "--set model.channels=16 --set model.dim=512 --set model.proj_hidden=512 --set train.batch_size=64"
COMMANDS = {
    "--help": "--help",
    "shard": "shard FILES SET --overwrite",
    "check, WAV": "check SET",
    "check, FLAC": "check FLAC",
    "train pretrain, width 16, resident": f"train pretrain SET --out RUN --epochs 8 {WIDTH_16} --overwrite",
    "train pretrain, width 16, streaming": (
        f"train pretrain SET --out RUN --epochs 4 {WIDTH_16} --data stream --overwrite"
    ),
    "train pretrain, the paper's encoder": "train pretrain SET --out RUN64 --epochs 4 --overwrite",
    "train distill, the paper's encoder": (
        "train distill SET --teacher RUN64 --out RUN2 --epochs 3 --set pseudo.k=8 --overwrite"
    ),
    "embed": "embed FILES --encoder RUN64 --out ROWS.npz --overwrite",
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts; the first is what the last is compared with")
    parser.add_argument("--clips", type=int, default=600, help="files of 10 s, 44.1 kHz stereo")
    parser.add_argument("--memory", action="store_true", help="measure memory in place of time")
    given = parser.parse_args()
    unit = "MB" if given.memory else "s"
    with tempfile.TemporaryDirectory() as name:
        noise_files(Path(name) / "FILES", given.clips, 10.0, 44100, 2, "wav")
        folders = [Path(name) / str(number) for number in range(len(given.trees))]
        for tree, folder in zip(given.trees, folders, strict=True):
            folder.mkdir()
            _run(tree, "shard FILES FLAC --codec flac", folder, False)
        found = {what: [list[float]() for _ in given.trees] for what in COMMANDS}
        for _ in range(given.repeats):
            for what, words in COMMANDS.items():
                for tree, folder, values in zip(given.trees, folders, found[what], strict=True):
                    values.append(_run(tree, words, folder, given.memory))
    shape = {"clips": given.clips, "trees": ",".join(map(_commit, given.trees))}
    for what, of_trees in found.items():
        for tree, values in zip(given.trees, of_trees, strict=True):
            record("trees", what, unit, values, torch.device("cpu"), tree=_commit(tree), clips=given.clips)
        ratios = [last / first for first, last in zip(of_trees[0], of_trees[-1], strict=True)]
        record("trees", f"{what}: last / first", f"{unit}/{unit}", ratios, torch.device("cpu"), **shape)


def _run(tree: Path, words: str, folder: Path, memory: bool) -> float:
    """Seconds or megabytes of a command."""
    paths = {name: str(folder / name) for name in ("SET", "FLAC", "RUN", "RUN64", "RUN2", "ROWS.npz")}
    paths["FILES"] = str(folder.parent / "FILES")
    command = [sys.executable, "-m", "unfused_fast", *(paths.get(word, word) for word in words.split())]
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    if memory:
        return peak_megabytes(command, environment)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, env=environment, cwd=folder, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)} ended with {done.returncode}: {done.stderr[-300:]}")
    return seconds


def _commit(tree: Path) -> str:
    git = shutil.which("git") or "git"
    return subprocess.run(
        [git, "-C", tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
