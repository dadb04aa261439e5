"""Sources inside archives: the same bytes as the files, and nothing that a hostile archive could gain."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards import archives, mp3, stores, tree
from unfused_fast.shards.audio_files import decode_piece, probe
from unfused_fast.shards.branch import Branch
from unfused_fast.shards.datasets import dataset_rows
from unfused_fast.shards.datasets.speechcommands import TEN, V1
from unfused_fast.shards.places import Kind, Place
from unfused_fast.shards.reasons import Rejected
from unfused_fast.shards.rows import SourceRow
from unfused_fast.shards.sources import source_rows
from unfused_fast.shards.stores import open_place
from unfused_fast.shards.trees import folder_of
from unfused_fast.shards.write import pack


def _tar(path: Path, folder: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for path_in in sorted(folder.iterdir()):
            tar.add(path_in, path_in.name)
    return path


def _zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _split(path: Path, names: Callable[[int], str], pieces: int = 3) -> None:
    data = path.read_bytes()
    size = len(data) // pieces + 1
    for number in range(pieces):
        (path.parent / names(number)).write_bytes(data[number * size :][:size])
    path.unlink()


def _spanned(path: Path, files: dict[str, bytes], pieces: int) -> None:
    """A split zip as Info-ZIP writes it: places in its list are counted from the start of each part."""
    parts: list[bytearray] = [bytearray(b"PK\7\x08")]
    listed = []
    share = sum(map(len, files.values())) // pieces
    for name, data in files.items():
        if len(parts[-1]) > share and len(parts) < pieces:
            parts.append(bytearray())
        head = (len(parts) - 1, len(parts[-1]))
        raw = name.encode()
        sizes = (zlib.crc32(data), len(data), len(data), len(raw))
        local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0x800, 0, 0, 0, *sizes, 0) + raw
        listed.append(
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0x800, 0, 0, 0, *sizes, 0, 0, head[0], 0, 0, head[1]) + raw
        )
        # Data may go on in the next part, as they do where a part is full.
        parts[-1] += local + data[: len(data) // 2]
        if head[0] < pieces - 1 and len(parts[-1]) > share:
            parts.append(bytearray())
        parts[-1] += data[len(data) // 2 :]
    place, central = len(parts[-1]), b"".join(listed)
    last = len(parts) - 1
    parts[-1] += central + struct.pack(
        "<4s4H2LH", b"PK\5\6", last, last, len(listed), len(listed), len(central), place, 0
    )
    for number, part in enumerate(parts):
        (path.parent / (path.name if number == last else f"{path.stem}.z{number + 1:02d}")).write_bytes(part)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory, rows: list[SourceRow]) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for number, row in enumerate(rows[:9]):
        target = folder / f"label{number % 3}" / f"ü {row.source}"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(str(row.path), target)
    return folder


def _packed(source: Path, out: Path, workers: int = 1) -> str:
    rows = source_rows(source, labels_from_folders=True)
    result = pack(rows, out, workers=workers)
    assert (result.packed, result.rejected) == (9, {})
    return result.shard_set.manifest.digest


def _archive(kind: str, audio: Path, where: Path) -> Path:
    """The archive of this kind, or the folder that it lies in where it has several files."""
    where.mkdir()
    if kind in ("tar", "tar.gz"):
        return _tar(where / f"a.{kind}", audio, "w:gz" if kind == "tar.gz" else "w")
    if kind == "spanned.zip":
        _spanned(where / "a.zip", _files(audio), 3)
        return where
    method = zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED
    path = _zip(where / "a.zip", _files(audio), method)
    if kind == "zip.001":
        _split(path, lambda number: f"a.zip.{number + 1:03d}")
    elif kind == "partaa":
        _split(path, lambda number: f"a_parta{'abc'[number]}")
    else:
        return path
    return where


KINDS = ["tar", "tar.gz", "stored.zip", "deflated.zip", "spanned.zip", "zip.001", "partaa"]


@pytest.mark.parametrize("kind", KINDS)
def test_archive_packs_to_the_digest_of_its_folder(kind: str, audio: Path, tmp_path: Path) -> None:
    source = _archive(kind, audio, tmp_path / "in")
    assert _packed(source, tmp_path / "out") == _packed(audio, tmp_path / "plain")
    assert _packed(tmp_path / "in", tmp_path / "folder") == _packed(audio, tmp_path / "plain2")


@pytest.mark.parametrize("stem", ["a{b}", "{}", "{0", "100%s"])
def test_name_of_an_archive_is_no_format(stem: str, tmp_path: Path) -> None:
    files = {"a.wav": b"first", "b.wav": b"second"}
    _zip(tmp_path / f"{stem}.zip", files)
    assert [_bytes(row) for row in source_rows(tmp_path / f"{stem}.zip")] == list(files.values())
    _split(tmp_path / f"{stem}.zip", lambda number: f"{stem}.zip.{number + 1:03d}")
    assert {row.source: _bytes(row) for row in source_rows(tmp_path)} == files


def test_worker_processes_open_members(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "UNINDEXED_BYTES", 0)
    source = _archive("tar.gz", audio, tmp_path / "in")
    rows = source_rows(source, labels_from_folders=True, work=tmp_path / "work")
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".index"]
    digest = pack(rows, tmp_path / "out", workers=2).shard_set.manifest.digest
    assert digest == _packed(audio, tmp_path / "plain")


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Info-ZIP's zip, which makes split archives")
def test_split_zip_of_info_zip(audio: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "files").mkdir()
    noise = np.random.default_rng(0).bytes(70_000)
    for number in range(4):
        (tmp_path / f"files/{number}.bin").write_bytes(noise[number:])
    command = ["zip", "-q", "-r", "-s", "64k", str(folder / "a.zip"), "."]
    subprocess.run(command, cwd=tmp_path / "files", check=True)
    assert len(list(folder.iterdir())) > 3
    rows = source_rows(folder)
    assert {row.source: _bytes(row) for row in rows} == _files(tmp_path / "files")
    (folder / "a.z02").unlink()
    (row,) = (row for row in source_rows(folder) if row.source == "a.zip")
    assert isinstance(row.path, Place) and "of the" in row.path.why and "parts" in row.path.why


def _bytes(row: SourceRow) -> bytes:
    assert isinstance(row.path, Place)
    with open_place(row.path) as file:
        return file.read()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored.zip", "deflated.zip"])
def test_every_format_decodes_as_from_disk(kind: str, tmp_path: Path, write_tone: Callable[..., np.ndarray]) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for form, name in (("WAV", "a.wav"), ("FLAC", "a.flac"), ("OGG", "a.ogg"), ("MP3", "a.mp3"), ("AIFF", "a.aiff")):
        soundfile.write(folder / name, write_tone(3.0, 22050, 300, channels=2), 22050, format=form)
    data = (folder / "a.mp3").read_bytes()
    at = data.find(b"Xing") if b"Xing" in data else data.find(b"Info")
    (folder / "streamed.mp3").write_bytes(data[:at] + b"None" + data[at + 4 :])
    assert not mp3.has_length(io.BytesIO((folder / "streamed.mp3").read_bytes()))
    (folder / "cut.flac").write_bytes((folder / "a.flac").read_bytes()[:30_000])
    (folder / "text.wav").write_text("text")
    (folder / "empty.wav").touch()
    places = {row.source: row.path for row in source_rows(_archive(kind, folder, tmp_path / "in"))}
    assert set(places) == set(_files(folder))
    for name, place in places.items():
        assert isinstance(place, Place) and hash(place) == hash(pickle.loads(pickle.dumps(place)))
        for start, stop in ((0, 48000), (20000, 30000)):
            assert _outcome(place, start, stop) == _outcome(folder / name, start, stop), name


def _outcome(location: Path | Place, start: int, stop: int) -> object:
    try:
        probed = probe(location)
        return probed, decode_piece(location, probed.frames, start, stop).tobytes()
    except Rejected as rejected:
        return str(rejected)


def test_mp3_without_a_length_is_read_up_to_a_limit(
    tmp_path: Path, write_tone: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.mp3", write_tone(1.0, 22050, 300), 22050)
    data = (tmp_path / "a.mp3").read_bytes().replace(b"Xing", b"None").replace(b"Info", b"None")
    (tmp_path / "a.mp3").write_bytes(data)
    monkeypatch.setattr(mp3, "LARGEST_BYTES", len(data) - 1)
    with pytest.raises(Rejected, match="unreadable: an MP3 that does not count its frames"):
        probe(tmp_path / "a.mp3")


def _why(path: Path, **options: int) -> dict[str, str]:
    """Name -> reason, empty for members that are read."""
    rows = source_rows(path, **options)  # type: ignore[arg-type]
    return {row.source: row.path.why if isinstance(row.path, Place) else "" for row in rows}


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
        _zip(path, dict.fromkeys([*HOSTILE, "fine.wav", "..\\back.wav"], b"x"))
    else:
        with tarfile.open(path, "w") as tar:
            for name in [*HOSTILE, "fine.wav"]:
                about = tarfile.TarInfo(name)
                about.size = 1
                tar.addfile(about, io.BytesIO(b"x"))
    why = _why(path)
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
    assert _why(path) == {
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
    assert "a sparse file" in " ".join(_why(tmp_path / "a.tar").values())


def test_zip_members_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"locked.wav": b"x", "fine.wav": b"y"}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("bz.wav", b"z" * 100)
        link = zipfile.ZipInfo("link.wav")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("inner.zip", b"PK", zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\1\2", 0, data.find(b"locked.wav", data.find(b"PK\1\2"))) + 8] |= 1
    path.write_bytes(data)
    assert _why(path) == {
        "a.zip/locked.wav": "it is encrypted",
        "fine.wav": "",
        "a.zip/bz.wav": "compressed by method 12, which is not read; unpack the archive",
        "a.zip/link.wav": "a symbolic link, which is not followed",
        "inner.zip": "an archive inside an archive; unpack the outer one",
    }


def test_zip64_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("big.wav", "w", force_zip64=True) as member:
        member.write(b"some bytes")
    data = path.read_bytes()
    entry = data.find(b"PK\1\2")
    # What a writer leaves of sizes and place that do not fit: all ones, and the numbers in the extra field.
    head = bytearray(data[entry : data.find(b"PK\5\6")])
    head[20:28], head[42:46] = b"\xff" * 8, b"\xff" * 4
    head[30:32] = struct.pack("<H", 28)
    head = head[:46] + b"big.wav" + struct.pack("<HHQQQ", 1, 24, 10, 10, 0)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(head), entry)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, entry + len(head), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:entry] + head + end64 + locator + end)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("big.wav") == b"some bytes"
    assert [_bytes(row) for row in source_rows(path)] == [b"some bytes"]


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_last_of_two_members_of_one_name_counts(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for data in (b"first", b"the last"):
                archive.writestr("a.wav", data)
    else:
        with tarfile.open(path, "w:gz" if form == "tar.gz" else "w") as tar:
            for data in (b"first", b"the last"):
                about = tarfile.TarInfo("a.wav")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    assert [_bytes(row) for row in source_rows(path)] == [b"the last"]


def test_deflated_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = _zip(tmp_path / "bomb.zip", {"bomb.wav": bytes(5_000_000), "fine.wav": b"x"})
    assert _why(path, largest=1_000_000) == {
        "bomb.zip/bomb.wav": "inflates to 5,000,000 bytes; the limit is 1,000,000",
        "fine.wav": "",
    }


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored.zip", "deflated.zip"])
def test_largest_member_is_a_limit_of_deflated_ones_alone(
    kind: str, audio: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """As its help says."""
    source, limit = _archive(kind, audio, tmp_path / "in"), 1e-6
    done = cli("shard", source, tmp_path / "out", "--max-member-gb", limit, "--json", "--workers", 1)
    if kind == "deflated.zip":
        assert done.code == 1 and "inflates to" in done.error and "the limit is 1,000" in done.error
    else:
        assert done.code == 0 and json.loads(done.out)["clips"] == 9, done.err


@pytest.mark.parametrize("given", ["nan", "inf", "0", "-1"])
def test_largest_member_that_is_no_size_is_refused(given: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    done = cli("shard", tmp_path, tmp_path / "out", "--max-member-gb", given)
    assert done.code == 1 and done.error.startswith(f"--max-member-gb {given}, but it must be a finite size above 0")


def test_deflated_bomb_that_lies_stops_at_what_it_declares(tmp_path: Path) -> None:
    path = _zip(tmp_path / "bomb.zip", {"bomb.wav": bytes(50_000_000)})
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
    path = _zip(tmp_path / "a.zip", {"a.wav": b"hello hello hello"})
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
    path = _zip(tmp_path / "a.zip", {"a.wav": b"first", "b.wav": b"second"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    second = data.rfind(b"PK\1\2")
    data[second + 42 : second + 46] = bytes(4)
    path.write_bytes(data)
    assert _why(path) == {"a.wav": "", "a.zip/b.wav": "its bytes are also those of another member"}


def test_gzip_bomb_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "BOMB_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name, size in (("fine.wav", 10), ("bomb.wav", 4 << 20), ("behind.wav", 10)):
            about = tarfile.TarInfo(name)
            about.size = size
            tar.addfile(about, io.BytesIO(bytes(size)))
    why = _why(tmp_path / "a.tgz")
    assert why["fine.wav"] == "" and "bomb.wav" not in why and "behind.wav" not in why
    assert "inflates to more than 200 times its size" in why["a.tgz"]


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_truncated_archive_keeps_what_is_whole_and_is_named(form: str, audio: Path, tmp_path: Path) -> None:
    kind = "stored.zip" if form == "zip" else form
    path = _archive(kind, audio, tmp_path / "in")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if form == "zip":
        with pytest.raises(UserError, match=r"a\.zip: not readable as an archive: the zip has no list at its end"):
            source_rows(path)
        assert "no list" in _why(tmp_path / "in")["a.zip"]
        return
    why = _why(path)
    assert 0 < sum(not reason for reason in why.values()) < 9
    assert "truncated or damaged behind" in why[path.name]


def test_damaged_header_inside_a_tar_is_not_its_end(audio: Path, tmp_path: Path) -> None:
    path = _archive("tar", audio, tmp_path / "in")
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmembers()[6].offset
    data[at + 148 : at + 156] = b"99999999"
    path.write_bytes(data)
    assert "truncated or damaged behind" in _why(path)["a.tar"]


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
    assert _why(tmp_path)[f"a.{ending}"]
    with pytest.raises(UserError, match="not readable as an archive"):
        source_rows(tmp_path / f"a.{ending}")


def test_archive_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_text("x")
    assert _why(tmp_path) == {"a.rar": "an archive of a kind that is not read; unpack it, or pack it as tar.gz or zip"}


@pytest.mark.parametrize("into", ["", "a"])
def test_unpacked_files_win_over_their_archive(into: str, audio: Path, tmp_path: Path) -> None:
    path = _archive("tar", audio, tmp_path / "in")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "in" / into, filter="data")
    rows = source_rows(tmp_path / "in")
    assert len(rows) == 9 and all(isinstance(row.path, Path) for row in rows)
    gone = rows[4]
    assert isinstance(gone.path, Path)
    gone.path.unlink()
    again = source_rows(tmp_path / "in")
    assert [row.source for row in again] == [row.source for row in rows]
    assert isinstance(again[4].path, Place)


def test_one_name_in_two_archives_comes_twice_only_if_the_files_differ(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", {"same.wav": b"same", "x.wav": b"one"})
    _zip(tmp_path / "b.zip", {"same.wav": b"same"})
    assert {row.source: _bytes(row) for row in source_rows(tmp_path)} == {"same.wav": b"same", "x.wav": b"one"}
    _zip(tmp_path / "c.zip", {"x.wav": b"two"})
    assert {row.source: _bytes(row) for row in source_rows(tmp_path)} == {
        "a/same.wav": b"same",
        "a/x.wav": b"one",
        "same.wav": b"same",
        "c/x.wav": b"two",
    }


def test_clutter_in_archives_is_left_out(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", {"__MACOSX/._a.wav": b"x", ".hidden/a.wav": b"x", "d/.DS_Store": b"x", "d/a.wav": b"x"})
    assert list(_why(tmp_path)) == ["d/a.wav"]


def test_folder_without_archives_stays_a_path(audio: Path) -> None:
    assert folder_of(audio) == audio and type(folder_of(audio)) is type(audio)


def test_archives_in_a_folder_are_read_with_and_without_its_name_as_a_data_set(
    audio: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    _archive("tar", audio, tmp_path / "in")
    plain = cli("shard", tmp_path / "in", tmp_path / "plain", "--json", "--workers", 1)
    named = cli("shard", tmp_path / "in", tmp_path / "named", "--json", "--workers", 1, "--dataset", "folder")
    assert named.code == 0, named.err
    assert json.loads(named.out)["digest"] == json.loads(plain.out)["digest"]


def test_branch_answers_as_the_unpacked_path(audio: Path, tmp_path: Path) -> None:
    source = _archive("tar.gz", audio, tmp_path / "in")
    (tmp_path / "in/real.txt").write_text("line\r\nüber\n", encoding="utf-8")
    plain = tmp_path / "plain"
    shutil.copytree(audio, plain)
    shutil.copy(tmp_path / "in/real.txt", plain)
    for folder, other in ((folder_of(tmp_path / "in"), plain), (folder_of(source), audio)):
        assert isinstance(folder, Branch)
        for pattern in ("*", "*/*.wav", "label1/*", "label?", "label0/none*", "none/*", "*.txt", "label[12]/ü*"):
            here = [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]
            assert here == sorted(path.relative_to(other).as_posix() for path in other.glob(pattern)), pattern
        for path in sorted(other.rglob("*")):
            twin = folder / path.relative_to(other).as_posix()
            facts = ("exists", "is_file", "is_dir")
            assert [getattr(twin, fact)() for fact in facts] == [getattr(path, fact)() for fact in facts]
            assert (twin.name, twin.stem, twin.suffix) == (path.name, path.stem, path.suffix)
            assert twin.parent.name == path.parent.name or path.parent == other
            assert twin.relative_to(folder).parts == path.relative_to(other).parts
            if path.is_file():
                assert twin.stat().st_size == path.stat().st_size
                with twin.open("rb") as file:
                    assert file.read() == path.read_bytes()
            else:
                assert {each.name for each in twin.iterdir()} == {each.name for each in path.iterdir()}
        assert not (folder / "gone").exists() and not (folder / "gone/deeper").is_dir()
        with pytest.raises(OSError, match=r"no such file|No such file"):
            (folder / "gone").open()
    both = folder_of(tmp_path / "in")
    assert (both / "real.txt").read_text("utf-8") == "line\nüber\n"
    assert not (both / source.name).exists()


def test_reading_text_of_a_member_ends_lines_as_a_file_does(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", {"list.csv": "\ufeffa,b\r\nü,2\r\n".encode()})
    table = folder_of(tmp_path / "a.zip") / "list.csv"
    assert table.read_text("utf-8-sig") == "a,b\nü,2\n"
    with table.open(encoding="utf-8-sig", newline="") as stream:
        assert stream.read() == "a,b\r\nü,2\r\n"


@pytest.mark.parametrize("protocol", ["words", "tf12"])
def test_adapter_reads_archives_as_it_reads_the_unpacked_folders(protocol: str, tmp_path: Path) -> None:
    plain, archived = tmp_path / "plain", tmp_path / "archived"
    archived.mkdir()
    words = {"speech_commands_v0.01": sorted(V1.words), "speech_commands_test_set_v0.01": sorted(TEN)}
    for folder, names in words.items():
        for word in [*names, "_background_noise_"] if len(names) > 10 else [*names, "_unknown_", "_silence_"]:
            (plain / folder / word).mkdir(parents=True)
            soundfile.write(plain / folder / word / "0a7c2a8d_nohash_0.wav", np.zeros(16), 16000)
    for name in ("validation_list.txt", "testing_list.txt"):
        (plain / "speech_commands_v0.01" / name).write_text("")
    for folder in words:
        _tar(archived / f"{folder}.tar.gz", plain / folder, "w:gz")
    options = {"protocol": protocol}
    expected = dataset_rows("speechcommands-v1", plain, options)
    found = dataset_rows("speechcommands-v1", folder_of(archived), options)
    assert [replace(row, path=Path()) for row in found.rows] == [replace(row, path=Path()) for row in expected.rows]
    assert found.notes == expected.notes
    assert all(isinstance(row.path, Place) and row.path.kind == Kind.GZIP for row in found.rows)


def test_a_replaced_archive_is_opened_anew(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a.wav": b"before"})
    assert [_bytes(row) for row in source_rows(path)] == [b"before"]
    _zip(path, {"a.wav": b"afterwards"})
    assert [_bytes(row) for row in source_rows(path)] == [b"afterwards"]
    assert stores._opened.cache_info().currsize <= stores.OPEN_STORES
