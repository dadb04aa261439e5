"""Systems without what only Linux or POSIX has, as macOS and Windows: what the package uses of it is hidden here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HIDDEN = """
import multiprocessing, os, pkgutil, signal, sys
import concurrent.futures.process, filelock, multiprocessing.forkserver, multiprocessing.resource_tracker, torch

sys.modules["fcntl"] = None
for module, names in ((os, "pread preadv"), (signal, "SIGUSR1 SIGHUP")):
    for name in names.split():
        delattr(module, name)
multiprocessing.get_all_start_methods = lambda: ["spawn"]

import unfused_fast

for module in pkgutil.walk_packages(unfused_fast.__path__, "unfused_fast."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
from unfused_fast.cli import main

for line in sys.stdin.read().splitlines():
    sys.argv[1:] = line.split("\t")
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, line
"""


def test_packing_and_training(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """Locks, reading of archives, caches and signals have another way there."""
    sounds, shards, run = tmp_path / "sounds.tar", tmp_path / "shards", tmp_path / "run"
    folder = next(tones.parent.parent.glob("tones*"))
    subprocess.run(["tar", "cf", sounds, "-C", folder, "."], check=True)
    lines = (
        ["shard", sounds, shards, "--workers", "1"],
        ["train", "pretrain", shards, "--out", run, "--epochs", "1", *tiny],
    )
    text, env = "\n".join("\t".join(map(str, line)) for line in lines), {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", HIDDEN], input=text, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (run / "result.json").is_file()
