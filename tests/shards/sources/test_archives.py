"""Recordings inside archives: the same bytes as the files, and the folder as if the archives had been unpacked."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from archive_files import STEM, contents_of, make_archive, make_tar, make_zip, read_row, reasons

from unfused_fast.shards.audio import mp3, open_audio
from unfused_fast.shards.audio.decode import decode_samples, probe
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources import archives, reader
from unfused_fast.shards.sources.listed_path import ListedPath, folder_of
from unfused_fast.shards.sources.location import ByteLocation, Location
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.source_rows import source_rows


def _packed(source: Path, out: Path) -> str:
    result = pack(source_rows(source, labels_from_folders=True), out, workers=0)
    assert (result.packed, result.rejected) == (9, {})
    return result.shard_set.manifest.digest


@pytest.fixture(scope="module")
def plain(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the folder, packed."""
    return _packed(audio, tmp_path_factory.mktemp("plain") / "out")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored.zip", "deflated.zip", "spanned.zip", "zip.001", "partaa"])
def test_archive_packs_to_the_digest_of_its_folder(kind: str, audio: Path, plain: str, tmp_path: Path) -> None:
    source = make_archive(kind, audio, tmp_path / "in")
    assert _packed(source, tmp_path / "out") == plain == _packed(tmp_path / "in", tmp_path / "folder")


@pytest.mark.parametrize("kind", ["tar.gz", "deflated.zip"])
def test_worker_processes_share_seek_points(
    kind: str, audio: Path, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "UNINDEXED_BYTES", 0)
    source = make_archive(kind, audio, tmp_path / "in")
    rows = source_rows(source, labels_from_folders=True, work=tmp_path / "work")
    digest = pack(rows, tmp_path / "out", workers=2).shard_set.manifest.digest
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".index"}
    assert digest == plain


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes asked for by each read from now on."""
    read, read_at = list[int](), reader.Joined.read_at
    monkeypatch.setattr(reader.Joined, "read_at", lambda self, *place: read.append(place[1]) or read_at(self, *place))
    return read


def test_pieces_of_a_long_recording_in_a_zip_do_not_inflate_it_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 12, 8 << 20).astype("<u2").tobytes()
    path = make_zip(tmp_path / "a.zip", {"a.wav": noise})
    (row,) = source_rows(path)
    read = _reads(monkeypatch)
    assert isinstance(row.path, ByteLocation)
    places = np.random.default_rng(1).permutation(40) * (len(noise) // 40)
    for place in places.tolist():
        with reader.open_location(row.path) as file:
            file.seek(place)
            assert file.read(1000) == noise[place : place + 1000]
    assert sum(read) < 15 * path.stat().st_size  # from the start it would be 20


@pytest.mark.parametrize("at_once", [True, False])
def test_the_checksum_of_what_is_stored_in_a_zip_is_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tone: Callable[..., np.ndarray], at_once: bool
) -> None:
    """Of a small member when it is decoded, which reads all of it anyway; of a large one by its probe."""
    soundfile.write(tmp_path / "a.wav", write_tone(10.0, 16000, 300), 16000)
    path = make_zip(tmp_path / "a.zip", {"a.wav": (tmp_path / "a.wav").read_bytes()}, zipfile.ZIP_STORED)
    if not at_once:
        monkeypatch.setattr(open_audio, "AT_ONCE_BYTES", 100_000)
    (row,) = source_rows(path)
    read = _reads(monkeypatch)
    assert probe(row.path).frames == 160_000
    assert (sum(read) > 320_000) is not at_once
    read.clear()
    decode_samples(row.path, 160_000, 0, 20_000)
    assert (sum(read) > 320_000) is at_once
    with path.open("r+b") as file:
        file.seek(300_000)
        file.write(b"abcd")
    with pytest.raises(Rejected, match="its checksum"):
        decode_samples(row.path, 160_000, 0, 20_000) if at_once else probe(row.path)


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Info-ZIP's zip, which makes split archives")
def test_split_zip_of_info_zip(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "files").mkdir()
    noise = np.random.default_rng(0).bytes(70_000)
    for number in range(4):
        (tmp_path / f"files/{number}.bin").write_bytes(noise[number:])
    command = ["zip", "-q", "-r", "-s", "64k", str(folder / "a.zip"), "."]
    subprocess.run(command, cwd=tmp_path / "files", check=True)
    assert len(list(folder.iterdir())) > 3
    assert {row.source: read_row(row) for row in source_rows(folder)} == contents_of(tmp_path / "files")
    (folder / "a.z02").unlink()
    assert "of the 5 parts of this zip are there" in reasons(folder)["a.zip"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored.zip", "deflated.zip"])
def test_every_format_decodes_as_from_disk(kind: str, tmp_path: Path, write_tone: Callable[..., np.ndarray]) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for form, name in (("WAV", "a.wav"), ("FLAC", "a.flac"), ("OGG", "a.ogg"), ("MP3", "a.mp3"), ("AIFF", "a.aiff")):
        soundfile.write(folder / name, write_tone(3.0, 22050, 300, channels=2), 22050, format=form)
    data = (folder / "a.mp3").read_bytes()
    at = data.find(b"Xing") if b"Xing" in data else data.find(b"Info")
    (folder / "streamed.mp3").write_bytes(data[:at] + b"None" + data[at + 4 :])
    counted = mp3.frames_of(io.BytesIO((folder / "streamed.mp3").read_bytes()), "streamed.mp3")
    assert counted is not None and counted.declared is None
    (folder / "cut.flac").write_bytes((folder / "a.flac").read_bytes()[:30_000])
    (folder / "text.wav").write_text("text")
    (folder / "empty.wav").touch()
    locations = {row.source: row.path for row in source_rows(make_archive(kind, folder, tmp_path / "in"))}
    assert set(locations) == set(contents_of(folder))
    for name, location in locations.items():
        assert isinstance(location, ByteLocation) and pickle.loads(pickle.dumps(location)) == location
        for start, stop in ((0, 48000), (20000, 30000)):
            assert _outcome(location, start, stop) == _outcome(folder / name, start, stop), name


def _outcome(location: Location, start: int, stop: int) -> object:
    try:
        probed = probe(location)
        return probed, decode_samples(location, probed.frames, start, stop).tobytes()
    except Rejected as rejected:
        return str(rejected)


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
    for disk in (0, 0xFFFF):  # some writers put the number of the part in the zip64 record alone
        end = struct.pack("<4s4H2LH", b"PK\5\6", disk, disk, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        path.write_bytes(data[:entry] + head + end64 + locator + end)
        assert [read_row(row) for row in source_rows(path)] == [b"some bytes"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored.zip", "deflated.zip"])
def test_largest_member_is_a_limit_of_deflated_ones_alone(
    kind: str, audio: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """As its help says."""
    source = make_archive(kind, audio, tmp_path / "in")
    done = cli("shard", source, tmp_path / "out", "--max-member-gb", 1e-6, "--json", "--workers", 1)
    if kind == "deflated.zip":
        assert done.code == 1 and "inflates to" in done.error and "the limit is 1,000" in done.error
    else:
        assert done.code == 0 and json.loads(done.out)["clips"] == 9, done.err


@pytest.mark.parametrize("given", ["nan", "inf", "0", "-1"])
def test_largest_member_that_is_no_size_is_refused(given: str, cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    done = cli("shard", tmp_path, tmp_path / "out", "--max-member-gb", given)
    assert done.code == 1 and done.error.startswith(f"--max-member-gb {given}, but it must be a finite size above 0")


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_last_of_two_members_of_one_name_counts(form: str, tmp_path: Path) -> None:
    """As where it is unpacked: `tar -r` appends what has changed."""
    path, contents = tmp_path / f"a.{form}", (b"first", b"the last")
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for data in contents:
                archive.writestr("a.wav", data)
    else:
        with tarfile.open(path, "w:gz" if form == "tar.gz" else "w") as tar:
            for data in contents:
                about = tarfile.TarInfo("a.wav")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
    assert [read_row(row) for row in source_rows(path)] == [b"the last"]


def test_a_replaced_archive_is_opened_anew(tmp_path: Path) -> None:
    for content in (b"before", b"afterwards"):
        path = make_zip(tmp_path / "a.zip", {"a.wav": content})
        assert [read_row(row) for row in source_rows(path)] == [content]
    assert reader._opened.cache_info().currsize <= reader.OPEN_ARCHIVES


@pytest.mark.parametrize("into", ["", STEM])
def test_unpacked_files_win_over_their_archive(into: str, audio: Path, tmp_path: Path) -> None:
    path = make_archive("tar", audio, tmp_path / "in")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "in" / into, filter="data")
    rows = source_rows(tmp_path / "in")
    assert len(rows) == 9 and all(isinstance(row.path, Path) for row in rows)
    gone = rows[4]
    assert isinstance(gone.path, Path)
    gone.path.unlink()
    again = source_rows(tmp_path / "in")
    assert [row.source for row in again] == [row.source for row in rows]
    assert isinstance(again[4].path, ByteLocation)


def test_one_name_in_two_archives_comes_twice_only_if_the_files_differ(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", {"same.wav": b"same", "x.wav": b"one"})
    make_zip(tmp_path / "b.zip", {"same.wav": b"same"})
    assert {row.source: read_row(row) for row in source_rows(tmp_path)} == {"same.wav": b"same", "x.wav": b"one"}
    make_zip(tmp_path / "c.zip", {"x.wav": b"two"})
    assert {row.source: read_row(row) for row in source_rows(tmp_path)} == {
        "a/same.wav": b"same",
        "a/x.wav": b"one",
        "same.wav": b"same",
        "c/x.wav": b"two",
    }
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x.wav").write_bytes(b"three")
    make_tar(tmp_path / "c.tar", tmp_path / "files")
    shutil.rmtree(tmp_path / "files")
    assert [why for why in reasons(tmp_path).values() if why] == [
        "another archive holds a different file of this name; unpack one of them elsewhere"
    ]


def test_clutter_in_archives_is_left_out(tmp_path: Path) -> None:
    names = ["__MACOSX/._a.wav", ".hidden/a.wav", "d/.DS_Store", "d/a.wav"]
    make_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x"))
    assert list(reasons(tmp_path)) == ["d/a.wav"]


def test_folder_without_archives_stays_a_path(audio: Path) -> None:
    for given in (audio, str(audio), audio.as_uri()):
        assert folder_of(given) == audio and type(folder_of(given)) is type(audio)


def test_listed_path_answers_as_the_unpacked_path(audio: Path, tmp_path: Path) -> None:
    source = make_archive("tar.gz", audio, tmp_path / "in")
    (tmp_path / "in/real.txt").touch()
    plain = tmp_path / "plain"
    shutil.copytree(audio, plain)
    shutil.copy(tmp_path / "in/real.txt", plain)
    for folder, other in ((folder_of(tmp_path / "in"), plain), (folder_of(source), audio)):
        assert isinstance(folder, ListedPath)
        for pattern in ("*", "*/*.wav", "label1/*", "label?", "label0/none*", "none/*", "*.txt", "label[12]/ü*"):
            here = [path.relative_to(folder).as_posix() for path in folder.glob(pattern)]
            assert here == sorted(path.relative_to(other).as_posix() for path in other.glob(pattern)), pattern
        for path in sorted(other.rglob("*")):
            twin = folder / path.relative_to(other).as_posix()
            facts = ("exists", "is_file", "is_dir")
            assert [getattr(twin, fact)() for fact in facts] == [getattr(path, fact)() for fact in facts]
            assert (twin.name, twin.stem, twin.parts[-1]) == (path.name, path.stem, path.name)
            assert twin.parent.name == path.parent.name or path.parent == other
            assert twin.relative_to(folder).parts == path.relative_to(other).parts
            if path.is_file():
                with twin.open("rb") as file:
                    assert file.read() == path.read_bytes()
            else:
                assert {each.name for each in twin.iterdir()} == {each.name for each in path.iterdir()}
        assert not (folder / "gone").exists() and not (folder / "gone/deeper").is_dir()
        with pytest.raises(OSError, match=r"no such file"):
            (folder / "gone").open()


def test_reading_text_of_a_member_ends_lines_as_a_file_does(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", {"list.csv": "\ufeffa,b\r\nü,2\r\n".encode()})
    table = folder_of(tmp_path / "a.zip") / "list.csv"
    assert table.read_text("utf-8-sig") == "a,b\nü,2\n"
    with table.open(encoding="utf-8-sig", newline="") as stream:
        assert stream.read() == "a,b\r\nü,2\r\n"
