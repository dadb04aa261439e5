"""Parts of a job array make the set that one machine makes, or say what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from remote_files import bytes_of

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing.merge import merge
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow


def _parts(rows: list[SourceRow], folder: Path, count: int) -> list[Path]:
    parts = [folder / f"part{number}" for number in range(1, count + 1)]
    for number, part in enumerate(parts, 1):
        pack(rows, part, part=(number, count), clips_per_shard=10, workers=0)
    return parts


@pytest.mark.parametrize("count", [3, 9])
def test_parts_make_the_samebytes_of(rows: list[SourceRow], packed: ShardSet, tmp_path: Path, count: int) -> None:
    """Of three parts, and of more parts than shards."""
    made = merge(list(reversed(_parts(rows, tmp_path, count))), tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(packed.directory)
    assert (made.packed, made.shards) == (45, 6)


def test_clips_are_numbered_anew_where_earlier_ones_were_rejected(rows: list[SourceRow], tmp_path: Path) -> None:
    """What is not finite is found only when it is decoded, so later parts number their clips too high."""
    for number in range(0, 12, 3):
        broken = tmp_path / f"nan{number}.wav"
        soundfile.write(broken, np.full(8000, np.nan), 16000, "FLOAT")
        rows = [*rows, SourceRow(broken, broken.name, "cat", "train")]
    whole = pack(rows, tmp_path / "whole", workers=0, clips_per_shard=10)
    assert whole.rejected == {"non-finite samples": 4}
    parts = _parts(rows, tmp_path, 2)
    before = {part: {path.name: path.read_bytes() for path in part.glob("*.tar")} for part in parts}
    merge(parts, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert check(tmp_path / "out", workers=0).corrupt == []
    assert merge(parts, tmp_path / "out", resume=True).rejected == {"non-finite samples": 4}
    assert before == {part: {path.name: path.read_bytes() for path in part.glob("*.tar")} for part in parts}


def test_what_does_not_make_one_set(rows: list[SourceRow], tmp_path: Path) -> None:
    first, second = _parts(rows, tmp_path, 2)
    other = tmp_path / "other"
    pack(rows, other, part=(2, 2), clips_per_shard=10, seed=1, workers=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = Path(shutil.copytree(second, tmp_path / "damaged"))
    next(damaged.glob("*.tar")).unlink()
    cases: list[tuple[list[Path], str]] = [
        ([first], "1 of 2 parts; part 2 of 2 is missing: pack it with --part 2/2"),
        ([first, first], "part 1 of 2, and so is"),
        ([first, other], "part 2 of 2 of a different set from"),
        ([first, empty], "no finished part of a set"),
        ([first, damaged], r"tar is missing or damaged"),
        ([], "no parts"),
    ]
    for parts, message in cases:
        with pytest.raises(UserError, match=message):
            merge(parts, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))  # found before anything is copied
    merge([first, second], tmp_path / "out")
    with pytest.raises(UserError, match="a shard set is already there"):
        merge([first, second], tmp_path / "out")
    assert merge([first, second], tmp_path / "out", resume=True).shards_made == 0


def test_a_part_on_the_command_line(cli: Callable[..., Any], audio: Path, tmp_path: Path) -> None:
    """What follows is in test_kills.py."""
    done = cli("shard", audio, tmp_path / "part", "--part", "1/2", "--workers", 1)
    assert done.code == 0 and "part 1/2: " in done.out and "unfused-fast merge PART... OUT" in done.out, done.err
    wrong = cli("shard", audio, tmp_path / "p3", "--part", "3/2")
    assert wrong.code == 1 and wrong.error == "--part 3/2: want i/n, with i from 1 to n, for example --part 3/8"
