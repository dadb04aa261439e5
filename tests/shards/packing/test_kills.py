"""A pack that is killed repeatedly, or whose disk is full, ends with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kill_pack
import pytest
from outcomes import contents

KILLS = [4, pytest.param(20, marks=pytest.mark.soak)]


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_pack_gives_the_same_bytes(tmp_path: Path, kills: int) -> None:
    kill_pack.check_same_bytes(tmp_path, kills, 1, [])


@pytest.mark.parametrize("kills", KILLS)
def test_killed_parts_and_a_killed_merge_give_the_same_bytes(tmp_path: Path, kills: int) -> None:
    kill_pack.check_same_bytes(tmp_path, kills, 3, ["--codec", "flac"])


SMALL_DISK = """
mount -t tmpfs -o size=12m tmpfs "$1" || exit 42
"$2" -m unfused_fast shard "$3" "$1/out" --codec flac; first=$?
ls "$1"
mount -o remount,size=400m "$1"
"$2" -m unfused_fast shard "$3" "$1/out" --codec flac --resume --json > "$4" || exit 43
cp -r "$1/out" "$5"
exit $first
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 12 MB in a mount name space of its own; FLAC, whose size nobody knows before."""
    source, disk, said, copied = (tmp_path / name for name in ("source", "disk", "said.json", "copied"))
    kill_pack.make_source(source, 300)
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
    kill_pack.run(["shard", str(source), str(tmp_path / "whole"), "--codec", "flac"])
    assert contents(copied) == contents(tmp_path / "whole")
