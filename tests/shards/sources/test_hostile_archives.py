"""Hostile, damaged and odd archives: what is sound is packed, all else is rejected by name, nothing is unpacked."""

from __future__ import annotations

import csv
import io
import struct
import tarfile
import tracemalloc
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from archive_files import make_zip, reasons
from hostile.hostile_archives import Archive, cases

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources import archives, reader
from unfused_fast.shards.sources.location import ByteLocation
from unfused_fast.shards.sources.source_rows import source_rows

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_only_what_is_sound_is_packed(tmp_path: Path, case: Archive) -> None:
    path = tmp_path / "a/b" / case.name
    path.parent.mkdir(parents=True)
    path.write_bytes(case.build())
    out = tmp_path / "sets/out"
    out.parent.mkdir()
    before = sorted(tmp_path.rglob("*"))
    try:
        rows = source_rows(path)
        result = pack(rows, out, workers=0)
    except UserError as refused:
        assert not case.packed and case.why in str(refused), refused
        assert case.name in str(refused) or "none of them usable" in str(refused)
    else:
        sources = result.shard_set.clips["source"].to_pylist()
        assert {PurePosixPath(source).name for source in sources} == case.packed
        with (out / "rejected.csv").open(encoding="utf-8", newline="") as stream:
            _, *lines = csv.reader(stream)
        assert bool(case.why) == bool(lines) and case.why in " ".join(why for _, why in lines)
        rejected = {source for source, _ in lines}  # a long file once for each of its pieces
        assert not rejected & set(sources) and all(name.isprintable() for name in rejected)
        assert sorted([*set(sources), *rejected]) == sorted(row.source for row in rows)
    assert [entry for entry in sorted(tmp_path.rglob("*")) if out not in (entry, *entry.parents)] == before


@pytest.mark.parametrize("case", [case for case in CASES if not case.packed], ids=lambda case: case.name)
def test_archive_that_cannot_be_read_is_named_among_the_files_of_its_folder(case: Archive, tmp_path: Path) -> None:
    (tmp_path / case.name).write_bytes(case.build())
    (tmp_path / "b.wav").write_text("x")
    why = reasons(tmp_path)
    assert why.pop("b.wav") == "" and (case.name.startswith("empty.") or case.why in why[case.name])


def test_archive_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_text("x")
    assert reasons(tmp_path)["a.rar"].startswith("an archive of an unsupported kind; unpack it")


def test_deflated_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"bomb.wav": bytes(5_000_000), "fine.wav": b"x"})
    assert reasons(path, largest=1_000_000) == {
        "bomb.zip/bomb.wav": "inflates to 5,000,000 bytes; the limit is 1,000,000",
        "fine.wav": "",
    }


@pytest.mark.parametrize("unindexed", [0, 1 << 30], ids=["seek points", "small"])
@pytest.mark.parametrize(
    ("contents", "place", "new", "said"),
    [
        (contents, *row)
        for contents in ("zeros", "noise")
        for row in (
            (24, struct.pack("<L", 1000), "the 1000 bytes (with .* )?that the zip declares"),
            (24, struct.pack("<L", 60_000_000), r"but the zip declares 60000000|the 60000000 bytes with the"),
            (16, b"abcd", r"its checksum \(CRC\)|bytes with the checksum \(CRC\)"),
        )
    ],
)
def test_member_that_is_not_what_its_zip_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unindexed: int, contents: str, place: int, new: bytes, said: str
) -> None:
    """It stays damaged, and is not inflated any further."""
    monkeypatch.setattr(archives, "UNINDEXED_BYTES", unindexed)
    noise = np.random.default_rng(0).integers(-3000, 3000, 2_000_000, np.int16)  # deflates badly, as recordings do
    path = make_zip(tmp_path / "a.zip", {"a.wav": noise.tobytes() if contents == "noise" else bytes(20_000_000)})
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\1\2") + place
    data[entry : entry + len(new)] = new
    path.write_bytes(data)
    (row,) = source_rows(path)
    assert isinstance(row.path, ByteLocation)
    tracemalloc.start()
    with pytest.raises(reader.Unreadable, match=said), reader.open_location(row.path) as file:
        with pytest.raises(reader.Unreadable, match=said):
            file.read()
        file.seek(0)
        file.read(10)
    assert tracemalloc.get_traced_memory()[1] < (5_000_000 if "1000" in said else 500_000_000)
    tracemalloc.stop()


def test_gzip_bomb_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "BOMB_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name, size in (("fine.wav", 10), ("bomb.wav", 4 << 20), ("behind.wav", 10)):
            about = tarfile.TarInfo(name)
            about.size = size
            tar.addfile(about, io.BytesIO(bytes(size)))
    why = reasons(tmp_path / "a.tgz")
    assert why["fine.wav"] == "" and "bomb.wav" not in why and "behind.wav" not in why
    assert "inflates to more than 200 times its size" in why["a.tgz"]
