"""Hostile, damaged and odd archives: nothing is gained by them, and what is not read is named."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archive_files import make_archive, make_zip, reasons

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.decode import probe
from unfused_fast.shards.sources import archives, stores
from unfused_fast.shards.sources.places import Place
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.source_rows import source_rows
from unfused_fast.shards.sources.stores import open_place

HOSTILE = {
    "../up.wav": "its path leads out of the archive",
    "a/../../up.wav": "its path leads out of the archive",
    "/etc/abs.wav": "its path is absolute",
    "C:/drive.wav": "a drive letter in its path",
    "new\nline.wav": "a control character in its name",
    "esc\x1b[2J.wav": "a control character in its name",
    "/".join("a" * 100) + ".wav": "its path is longer than 4096 characters or 64 folders",
}


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_hostile_names_are_refused_by_name(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad.{form}"
    if form == "zip":
        make_zip(path, dict.fromkeys([*HOSTILE, "fine.wav", "..\\back.wav"], b"x"))
    else:
        with tarfile.open(path, "w") as tar:
            for name in [*HOSTILE, "fine.wav"]:
                about = tarfile.TarInfo(name)
                about.size = 1
                tar.addfile(about, io.BytesIO(b"x"))
    why = reasons(path)
    assert why.pop("fine.wav") == ""
    if form == "zip":
        assert why.pop(f"{path.name}/../back.wav") == "its path leads out of the archive"
    assert sorted(why.values()) == sorted(HOSTILE.values())
    assert all(name.isprintable() and name.startswith(path.name) for name in why)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_text("secret")
    path = tmp_path / "links.tar"
    kinds = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in kinds.items():
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, str(tmp_path / "secret.wav")
            tar.addfile(about)
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            about = tarfile.TarInfo("long/" * 40 + f"{form}.wav")
            about.size = 4
            tar.fileobj.write(about.tobuf(form) + b"data".ljust(512, b"\0"))  # type: ignore[union-attr]
            tar.offset += len(about.tobuf(form)) + 512  # type: ignore[attr-defined]
    assert reasons(path) == {
        "links.tar/sym": "a symbolic link, which is not followed",
        "links.tar/hard": "a hard link, which is not followed",
        "links.tar/pipe": "a pipe or device",
        "links.tar/device": "a pipe or device",
        "long/" * 40 + f"{tarfile.GNU_FORMAT}.wav": "",
        "long/" * 40 + f"{tarfile.PAX_FORMAT}.wav": "",
    }


def test_sparse_member_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        about = tarfile.TarInfo("sparse.wav")
        about.size, about.pax_headers = 4, {"GNU.sparse.size": "1000000", "GNU.sparse.map": "0,4"}
        tar.addfile(about, io.BytesIO(b"data"))
    assert "a sparse file" in " ".join(reasons(tmp_path / "a.tar").values())


def test_zip_members_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"locked.wav": b"x", "fine.wav": b"y"}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("bz.wav", b"z" * 100)
        link = zipfile.ZipInfo("link.wav")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("inner.zip", b"PK", zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\1\2", 0, data.find(b"locked.wav", data.find(b"PK\1\2"))) + 8] |= 1
    path.write_bytes(data)
    assert reasons(path) == {
        "a.zip/locked.wav": "it is encrypted",
        "fine.wav": "",
        "a.zip/bz.wav": "compressed by method 12, which is not read; unpack the archive",
        "a.zip/link.wav": "a symbolic link, which is not followed",
        "inner.zip": "an archive inside an archive; unpack the outer one",
    }


def test_deflated_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"bomb.wav": bytes(5_000_000), "fine.wav": b"x"})
    assert reasons(path, largest=1_000_000) == {
        "bomb.zip/bomb.wav": "inflates to 5,000,000 bytes; the limit is 1,000,000",
        "fine.wav": "",
    }


def test_deflated_bomb_that_lies_stops_at_what_it_declares(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bomb.zip", {"bomb.wav": bytes(50_000_000)})
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<L", 1000)
    path.write_bytes(data)
    (row,) = source_rows(path)
    assert isinstance(row.path, Place)
    window = open_place(row.path)
    with pytest.raises(OSError, match="inflates to more than the 1000 bytes"):
        window.read()
    assert len(window.raw._store._data) < 200_000  # type: ignore[attr-defined]


def test_damaged_member_fails_its_check_sum(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.wav": b"hello hello hello"})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\1\2") + 16] ^= 1
    path.write_bytes(data)
    (row,) = source_rows(path)
    with pytest.raises(Rejected, match=r"unreadable: its check sum \(CRC\)"):
        probe(row.path)


def test_damaged_member_stays_damaged(tmp_path: Path) -> None:
    """Also where it was read before the damage was seen."""
    packed = _deflated(data := bytes(100_000))
    store = stores.DeflatedStore(_Bytes(packed), 0, len(packed), len(data), zlib.crc32(data) ^ 1)
    assert store.read_at(0, 10) == data[:10]
    for position in (len(data) - 10, 0, len(data) - 10):
        with pytest.raises(stores.Unreadable, match="check sum"):
            store.read_at(position, 10)


def test_check_sum_of_a_member_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(1 << 20)
    packed, summed, crc32 = _deflated(data), [0], zlib.crc32

    def counted(block: bytes, start: int = 0) -> int:
        summed[0] += len(block)
        return crc32(block, start)

    monkeypatch.setattr("zlib.crc32", counted)
    store = stores.DeflatedStore(_Bytes(packed), 0, len(packed), len(data), crc32(data))
    for position in range(0, len(data), 1 << 14):
        assert store.read_at(position, 1 << 14) == data[position : position + (1 << 14)]
    assert [store.read_at(position, 100) for position in (0, 1000)] == [data[:100], data[1000:1100]]
    assert summed[0] == len(data)


def _deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read_at(self, position: int, count: int) -> bytes:
        return self.data[position : position + count]


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.wav": b"first", "b.wav": b"second"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    second = data.rfind(b"PK\1\2")
    data[second + 42 : second + 46] = bytes(4)
    path.write_bytes(data)
    assert reasons(path) == {"a.wav": "", "a.zip/b.wav": "its bytes are also those of another member"}


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


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_truncated_archive_keeps_what_is_whole_and_is_named(form: str, audio: Path, tmp_path: Path) -> None:
    kind = "stored.zip" if form == "zip" else form
    path = make_archive(kind, audio, tmp_path / "in")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if form == "zip":
        with pytest.raises(UserError, match=r"a\.zip: not readable as an archive: the zip has no list at its end"):
            source_rows(path)
        assert "no list" in reasons(tmp_path / "in")["a.zip"]
        return
    why = reasons(path)
    assert 0 < sum(not reason for reason in why.values()) < 9
    assert "truncated or damaged behind" in why[path.name]


def test_damaged_header_inside_a_tar_is_not_its_end(audio: Path, tmp_path: Path) -> None:
    path = make_archive("tar", audio, tmp_path / "in")
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmembers()[6].offset
    data[at + 148 : at + 156] = b"99999999"
    path.write_bytes(data)
    assert "truncated or damaged behind" in reasons(path)["a.tar"]


def _headers_without_end() -> Iterator[bytes]:
    for _ in range(3000):
        about = tarfile.TarInfo("././@LongLink")
        about.type, about.size = tarfile.GNUTYPE_LONGNAME, 1
        yield about.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")


@pytest.mark.parametrize(
    "data",
    [
        b"text\n" * 500,
        b"PK\3\4" + b"junk" * 200,
        b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 65535, 65535, 0xFFFFFFF0, 0, 0),
        b"\x1f\x8b\x08" + b"junk" * 200,
        b"".join(_headers_without_end()),
        tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT)[:100],
        b"",
    ],
    ids=["text", "zip head", "endless list", "gzip head", "headers of headers", "cut header", "nothing"],
)
@pytest.mark.parametrize("ending", ["tar", "tar.gz", "zip"])
def test_what_is_no_archive_is_named(data: bytes, ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{ending}").write_bytes(data)
    (tmp_path / "b.wav").write_text("x")
    assert reasons(tmp_path)[f"a.{ending}"]
    with pytest.raises(UserError, match="not readable as an archive"):
        source_rows(tmp_path / f"a.{ending}")


def test_archive_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_text("x")
    assert reasons(tmp_path) == {
        "a.rar": "an archive of a kind that is not read; unpack it, or pack it as tar.gz or zip"
    }
