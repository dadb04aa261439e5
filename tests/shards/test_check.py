"""Damage to a set is found, and the file is named."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.check import check, check_index
from unfused_fast.shards.shard_files import index_path
from unfused_fast.shards.table import ShardSet


def _damage(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


def _only_problem(folder: Path, *words: str) -> None:
    problems = check(folder)
    assert len(problems) == 1, problems
    assert all(word in problems[0] for word in words), problems[0]


def _index_refused(tar: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_index(tar, index_path(tar))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_whole_set_has_no_problems(packed: ShardSet) -> None:
    assert check(packed.directory) == []
    for info in packed.manifest.splits.values():
        for name in info.shards:
            check_index(packed.directory / name, index_path(packed.directory / name))


@pytest.mark.parametrize("keep", [0, 511, 0.5, -3000])
def test_truncated_tar(copy: Path, keep: float) -> None:
    tar = copy / "train-000001.tar"
    data = tar.read_bytes()
    end = check_index(tar, index_path(tar))[-1][-1]
    size = end.offset + keep if keep < 0 else keep if keep > 1 else int(keep * len(data))
    tar.write_bytes(data[: int(size)])
    _index_refused(tar, "train-000001.tar", "truncated")
    _only_problem(copy, "train-000001.tar", "truncated")


def test_index_of_another_tar(copy: Path) -> None:
    tar = copy / "train-000000.tar"
    index_path(tar).write_text((copy / "train-000001.idx").read_text())
    _index_refused(tar, "train-000000.idx", "index of another tar")
    _only_problem(copy, "train-000000.idx")


def test_index_that_ends_early(copy: Path) -> None:
    index = copy / "train-000000.idx"
    lines = index.read_text().splitlines()
    index.write_text("\n".join(["v1.2 9", *lines[1:-1]]) + "\n")
    _index_refused(copy / "train-000000.tar", "train-000000.idx", "ends before")
    index.write_text("\n".join(lines[:-1]) + "\n")
    _index_refused(copy / "train-000000.tar", "9 samples, but its first line says 10")


@pytest.mark.parametrize("text", ["", "v1.1 3\n", "v1.2 x\n", "v1.2 1\nwav 1 x name\n", "v1.2 1\nwav 1\n", "v1.2 0\n"])
def test_malformed_index(copy: Path, text: str) -> None:
    (copy / "test-000000.idx").write_text(text)
    _index_refused(copy / "test-000000.tar", "test-000000.idx")


def test_missing_files(copy: Path) -> None:
    (copy / "test-000000.idx").unlink()
    _index_refused(copy / "test-000000.tar", "test-000000.idx", "cannot be read")
    (copy / "valid-000000.tar").unlink()
    _index_refused(copy / "valid-000000.tar", "valid-000000.tar", "cannot be read")
    assert len(check(copy)) == 2


def test_one_flipped_bit_of_audio(copy: Path) -> None:
    tar = copy / "train-000001.tar"
    audio = next(member for member in check_index(tar, index_path(tar))[4] if member.extension == "wav")
    data = bytearray(tar.read_bytes())
    data[audio.offset + 44 + 101] ^= 1
    tar.write_bytes(data)
    check_index(tar, index_path(tar))  # too cheap to see it
    _only_problem(copy, "train-000001.tar", audio.name.replace("wav", "index"), "sha256")


def test_members_that_are_not_the_table_s(copy: Path) -> None:
    _damage(copy / "valid-000000.tar", b'"split": "valid"', b'"split": "train"')
    _only_problem(copy, "valid-000000.tar", ".json says")


def test_header_in_the_middle(copy: Path) -> None:
    tar = copy / "extra-000000.tar"
    middle = check_index(tar, index_path(tar))[3][0]
    data = bytearray(tar.read_bytes())
    data[middle.offset - 512 : middle.offset] = b"\x01" * 512
    tar.write_bytes(data)
    _only_problem(copy, "extra-000000.tar", "9 members, but the index has 21")


def test_swapped_shards(copy: Path) -> None:
    for ending in ("tar", "idx"):
        one, other = copy / f"train-000000.{ending}", copy / f"train-000001.{ending}"
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    problems = check(copy)
    assert len(problems) == 2
    assert "train-000000.tar: 000000010.index, where the clips table has 000000000" in problems[0]


def test_table_of_another_set(copy: Path) -> None:
    clips = pq.read_table(copy / "clips.parquet")
    labels = clips["label"].to_pylist()
    labels[0] = (labels[0] + 1) % 3
    pq.write_table(clips.set_column(3, clips.schema.field(3), pa.array(labels, pa.int32())), copy / "clips.parquet")
    problems = check(copy)
    assert len(problems) == 2
    assert "clips.parquet" in problems[0] and "digest" in problems[0]
    assert "train-000000.tar" in problems[1] and ".json says" in problems[1]


def test_no_set_at_all(tmp_path: Path) -> None:
    _only_problem(tmp_path, "manifest.json")


def test_shard_with_a_clip_too_few(copy: Path) -> None:
    """A tar and an index that fit each other, but not the set."""
    manifest = json.loads((copy / "manifest.json").read_text())
    name = manifest["splits"]["test"]["shards"][0]
    with tarfile.open(copy / name) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    import io

    with tarfile.open(copy / name, "w") as archive:
        for info, data in members[:-3]:
            archive.addfile(info, io.BytesIO(data))
    lines = index_path(copy / name).read_text().splitlines()
    index_path(copy / name).write_text("\n".join(["v1.2 6", *lines[1:-1]]) + "\n")
    check_index(copy / name, index_path(copy / name))
    _only_problem(copy, "split test has 6 clips")
