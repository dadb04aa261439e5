"""Parts of a job array make the set that one machine makes, or say what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from remote_files import bytes_of

from unfused_fast.errors import Interrupted, UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing import merge as merging
from unfused_fast.shards.packing.merge import merge
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow


def _parts(rows: list[SourceRow], folder: Path, count: int) -> list[Path]:
    parts = [folder / f"part{number}" for number in range(1, count + 1)]
    for number, part in enumerate(parts, 1):
        pack(rows, part, part=(number, count), clips_per_shard=10, workers=0)
    return parts


@pytest.mark.parametrize("count", [3, 9])
def test_parts_make_the_same_bytes(rows: list[SourceRow], packed: ShardSet, tmp_path: Path, count: int) -> None:
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


def _claiming(part: Path, copy: Path, number: str) -> Path:
    """A copy of a part that says that it is another one."""
    about = Path(shutil.copytree(part, copy)) / "part.json"
    about.write_text(about.read_text().replace('"part": "1/2"', f'"part": "{number}"'))
    return copy


def test_what_does_not_make_one_set(rows: list[SourceRow], tmp_path: Path) -> None:
    first, second = _parts(rows, tmp_path, 2)
    other = tmp_path / "other"
    pack(rows, other, part=(2, 2), clips_per_shard=10, seed=1, workers=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = Path(shutil.copytree(second, tmp_path / "damaged"))
    (damaged / "test-000000.tar").unlink()
    cases: list[tuple[list[Path], str]] = [
        ([first], "1 of 2 parts; part 2 of 2 is missing: pack it with --part 2/2"),
        ([first, first], "part 1 of 2, and so is"),
        ([first, other], "part 2 of 2 of a different set from"),
        ([first, empty], "no finished part of a set"),
        ([first, damaged], r"damaged: test-000000.tar or its index is missing or damaged"),
        ([], "no parts"),
        (
            [_claiming(first, tmp_path / "hundred", "1/100")],
            r"part 2, 3, 4, 5, 6, 7, 8, 9 and 91 others of 100 are missing",
        ),
        ([_claiming(first, tmp_path / "many", f"1/{10**20}")], r"and 9{19}1 others of 10{20} are missing"),
        ([_claiming(first, tmp_path / "none", "0/2")], r"not a valid part of a set"),
    ]
    for parts, message in cases:
        with pytest.raises(UserError, match=message):
            merge(parts, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))  # found before anything is copied
    for out in (first, first.parent):
        with pytest.raises(UserError, match=r"it holds .*part1, and the parts stay as they are; choose a new OUT"):
            merge([first, second], out, overwrite=True)
    merge([first, second], tmp_path / "out")
    with pytest.raises(UserError, match="a shard set is already there"):
        merge([first, second], tmp_path / "out")
    assert merge([first, second], tmp_path / "out", resume=True).shards_made == 0


@pytest.mark.parametrize("seconds", [12, 0])
def test_files_that_change_between_two_parts(rows: list[SourceRow], tmp_path: Path, seconds: int) -> None:
    """One grows, or is emptied: the parts cut different shards under the same names."""
    changing = Path(shutil.copy(str(rows[0].path), tmp_path))
    rows = [replace(rows[0], path=changing), *rows[1:]]
    pack(rows, tmp_path / "first", part=(1, 2), workers=0)
    soundfile.write(changing, np.zeros(16000 * seconds), 16000)
    pack(rows, tmp_path / "second", part=(2, 2), workers=0)
    with pytest.raises(UserError, match=r"second: some files had other lengths, or could not be read"):
        merge([tmp_path / "first", tmp_path / "second"], tmp_path / "out")


@pytest.mark.parametrize("anew", ["the same", "one file", "copied"])
def test_a_part_that_changes_while_a_merge_is_stopped(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: str
) -> None:
    """Its shards are brought anew: damage that only the bytes of a tar show does not stick."""
    parts, out, bring = _parts(rows, tmp_path, 2), tmp_path / "out", merging._bring
    sound = shutil.copytree(parts[0], tmp_path / "sound")
    damaged = parts[0] / "train-000001.tar"
    if anew != "the same":
        data = bytearray(damaged.read_bytes())
        data[5000:5100] = bytes(100)
        damaged.write_bytes(data)

    def stopped(part: Path, *rest: Any) -> None:
        if part == parts[1]:
            raise KeyboardInterrupt
        bring(part, *rest)

    monkeypatch.setattr(merging, "_bring", stopped)
    with pytest.raises(Interrupted, match="stopped; run the same command again to continue"):
        merge(parts, out)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"unfinished; finish it with the same command that started it"):
        open_shards(out)
    there = len(list((tmp_path / "out.partial").glob("*.tar")))
    assert 1 < there < 6
    if anew == "one file":
        shutil.copytree(sound, parts[0], dirs_exist_ok=True)
    elif anew != "the same":
        shutil.rmtree(parts[0])
        sound.rename(parts[0])
    assert merge(parts, out).shards_made == {"the same": 6 - there, "one file": 7 - there, "copied": 6}[anew]
    assert bytes_of(out) == bytes_of(packed.directory)


def test_a_part_without_shards(cli: Callable[..., Any], audio: Path, tmp_path: Path) -> None:
    some = cli("shard", audio, tmp_path / "p2", "--part", "2/9", "--workers", 1)
    assert some.code == 0 and "no shard is in this part: there are more parts than shards" in some.out
    many = cli("shard", audio, tmp_path / "p1", "--part", f"1/{10**20}", "--workers", 1)
    assert many.code == 1 and many.error == f"part 1 of {10**20} of 9 files; make at most one part per file"
    assert not (tmp_path / "p1").exists() and not (tmp_path / "p1.partial").exists()


def test_a_part_on_the_command_line(cli: Callable[..., Any], audio: Path, tmp_path: Path) -> None:
    """What follows is in test_kills.py."""
    done = cli("shard", audio, tmp_path / "part", "--part", "1/2", "--workers", 1)
    assert done.code == 0 and "part 1/2: " in done.out and "unfused-fast merge PART... OUT" in done.out, done.err
    wrong = cli("shard", audio, tmp_path / "p3", "--part", "3/2")
    assert wrong.code == 1 and wrong.error == "--part 3/2: want i/n, with i from 1 to n, for example --part 3/8"
