"""Sources inside archives: the same bytes as the files."""

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
from archive_files import contents_of, cut_in_pieces, make_archive, make_zip, read_row

from unfused_fast.shards.audio import mp3
from unfused_fast.shards.audio.decode import decode_samples, probe
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources import stores, tree
from unfused_fast.shards.sources.places import Place
from unfused_fast.shards.sources.reasons import Rejected
from unfused_fast.shards.sources.source_rows import source_rows


def _packed(source: Path, out: Path, workers: int = 1) -> str:
    rows = source_rows(source, labels_from_folders=True)
    result = pack(rows, out, workers=workers)
    assert (result.packed, result.rejected) == (9, {})
    return result.shard_set.manifest.digest


KINDS = ["tar", "tar.gz", "stored.zip", "deflated.zip", "spanned.zip", "zip.001", "partaa"]


@pytest.mark.parametrize("kind", KINDS)
def test_archive_packs_to_the_digest_of_its_folder(kind: str, audio: Path, tmp_path: Path) -> None:
    source = make_archive(kind, audio, tmp_path / "in")
    assert _packed(source, tmp_path / "out") == _packed(audio, tmp_path / "plain")
    assert _packed(tmp_path / "in", tmp_path / "folder") == _packed(audio, tmp_path / "plain2")


@pytest.mark.parametrize("stem", ["a{b}", "{}", "{0", "100%s"])
def test_name_of_an_archive_is_no_format(stem: str, tmp_path: Path) -> None:
    files = {"a.wav": b"first", "b.wav": b"second"}
    make_zip(tmp_path / f"{stem}.zip", files)
    assert [read_row(row) for row in source_rows(tmp_path / f"{stem}.zip")] == list(files.values())
    cut_in_pieces(tmp_path / f"{stem}.zip", lambda number: f"{stem}.zip.{number + 1:03d}")
    assert {row.source: read_row(row) for row in source_rows(tmp_path)} == files


def test_worker_processes_open_members(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "UNINDEXED_BYTES", 0)
    source = make_archive("tar.gz", audio, tmp_path / "in")
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
    assert {row.source: read_row(row) for row in rows} == contents_of(tmp_path / "files")
    (folder / "a.z02").unlink()
    (row,) = (row for row in source_rows(folder) if row.source == "a.zip")
    assert isinstance(row.path, Place) and "of the" in row.path.why and "parts" in row.path.why


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
    assert counted is not None and counted.promised is None
    (folder / "cut.flac").write_bytes((folder / "a.flac").read_bytes()[:30_000])
    (folder / "text.wav").write_text("text")
    (folder / "empty.wav").touch()
    places = {row.source: row.path for row in source_rows(make_archive(kind, folder, tmp_path / "in"))}
    assert set(places) == set(contents_of(folder))
    for name, place in places.items():
        assert isinstance(place, Place) and hash(place) == hash(pickle.loads(pickle.dumps(place)))
        for start, stop in ((0, 48000), (20000, 30000)):
            assert _outcome(place, start, stop) == _outcome(folder / name, start, stop), name


def _outcome(location: Path | Place, start: int, stop: int) -> object:
    try:
        probed = probe(location)
        return probed, decode_samples(location, probed.frames, start, stop).tobytes()
    except Rejected as rejected:
        return str(rejected)


def test_mp3_without_a_length_is_read_up_to_a_limit(
    tmp_path: Path, write_tone: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.mp3", write_tone(1.0, 22050, 300), 22050)
    data = (tmp_path / "a.mp3").read_bytes().replace(b"Xing", b"None").replace(b"Info", b"None")
    (tmp_path / "a.mp3").write_bytes(data)
    monkeypatch.setattr(mp3, "LARGEST_BYTES", len(data) - 1)
    with pytest.raises(Rejected, match="unreadable: an MP3 of more than 0 MiB without a true count"):
        probe(tmp_path / "a.mp3")


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
    assert [read_row(row) for row in source_rows(path)] == [b"some bytes"]


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
    assert [read_row(row) for row in source_rows(path)] == [b"the last"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "stored.zip", "deflated.zip"])
def test_largest_member_is_a_limit_of_deflated_ones_alone(
    kind: str, audio: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """As its help says."""
    source, limit = make_archive(kind, audio, tmp_path / "in"), 1e-6
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


def test_a_replaced_archive_is_opened_anew(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.wav": b"before"})
    assert [read_row(row) for row in source_rows(path)] == [b"before"]
    make_zip(path, {"a.wav": b"afterwards"})
    assert [read_row(row) for row in source_rows(path)] == [b"afterwards"]
    assert stores._opened.cache_info().currsize <= stores.OPEN_STORES
