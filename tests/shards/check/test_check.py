"""Damage to a set is found, and the file is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfused_fast.errors import UserError
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.check.check import check
from unfused_fast.shards.check.findings import Finding, Kind
from unfused_fast.shards.check.shard import ShardTask
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import Member, check_index, index_path
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow

TRAIN = "train-000001.tar"


def _corrupt(folder: Path) -> list[Finding]:
    return check(folder, workers=0).corrupt


def _member(tar: Path, clip: int, extension: str) -> Member:
    members = check_index(tar, index_path(tar))[clip]
    return next(member for member in members if member.extension == extension)


def _flip(tar: Path, *places: int) -> None:
    data = bytearray(tar.read_bytes())
    for place in places:
        data[place] ^= 4
    tar.write_bytes(data)


def _swap(copy: Path, endings: tuple[str, ...]) -> None:
    for ending in endings:
        one, other = copy / f"train-000000.{ending}", copy / f"train-000001.{ending}"
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


def _in_index(copy: Path, old: str, new: str) -> None:
    index = copy / "valid-000000.idx"
    index.write_text(re.sub(old, new, index.read_text(), count=1), encoding="utf-8")


def _split_in_json(copy: Path) -> None:
    tar = copy / "valid-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"split": "valid"', b'"split": "train"', 1))


def _no_header_in_the_middle(copy: Path) -> None:
    tar = copy / "extra-000000.tar"
    place, data = _member(tar, 3, "index").offset, bytearray(tar.read_bytes())
    data[place - 512 : place] = b"\1" * 512
    tar.write_bytes(data)


def _last_clip_left_out(copy: Path) -> None:
    """A tar and an index that fit each other, but not the set."""
    tar = copy / "test-000000.tar"
    end, lines = _member(tar, -1, "index").offset - 512, index_path(tar).read_text().splitlines()
    tar.write_bytes(tar.read_bytes()[:end] + bytes(10240))
    index_path(tar).write_text("\n".join([f"v1.2 {len(lines) - 2}", *lines[1:-1]]) + "\n")
    check_index(tar, index_path(tar))


def _another_label(copy: Path) -> None:
    clips = pq.read_table(copy / "clips.parquet")
    labels = clips["label"].to_pylist()
    labels[0] = (labels[0] + 1) % 3
    pq.write_table(clips.set_column(3, clips.schema.field(3), pa.array(labels, pa.int32())), copy / "clips.parquet")


def _no_index_here_and_a_flipped_bit_there(copy: Path) -> None:
    index_path(copy / "train-000000.tar").unlink()
    _flip(copy / TRAIN, *(_member(copy / TRAIN, clip, "wav").offset + 60 for clip in range(10)))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda copy: None, []),
        (lambda copy: (copy / "manifest.json").unlink(), [(Kind.MANIFEST, "manifest.json")]),
        (lambda copy: (copy / "clips.parquet").write_bytes(b"PAR1"), [(Kind.TABLE, "clips.parquet")]),
        (_another_label, [(Kind.DIGEST, "clips.parquet: its digest"), (Kind.JSON, "000.tar.*json does not match")]),
        (lambda copy: (copy / "rejected.csv").write_text("path,reason\na,b\n"), [(Kind.REJECTED, "1 row, but")]),
        (lambda copy: (copy / "valid-000000.tar").unlink(), [(Kind.TAR, "valid-000000.tar: cannot be read")]),
        (lambda copy: _swap(copy, ("tar",)), [(Kind.INDEX, "000.idx.*to another tar"), (Kind.INDEX, "001.idx")]),
        (lambda copy: _in_index(copy, r"\S+\n$", "é.wav\n"), [(Kind.INDEX, "valid-000000.idx.*to another tar")]),
        (lambda copy: _in_index(copy, " json ", " txt "), [(Kind.INDEX, "000.idx, line 2: 'index .*, not extension")]),
        (
            lambda copy: _swap(copy, ("tar", "idx")),
            [(Kind.ORDER, "000.tar: begins with clip 10, but clip 0 was expected here"), (Kind.ORDER, "001.tar")],
        ),
        (_split_in_json, [(Kind.JSON, "valid-000000.tar.*json does not match the clips table")]),
        (_no_header_in_the_middle, [(Kind.TAR, "extra-000000.tar.*no tar header.*, but the index has ")]),
        (_last_clip_left_out, [(Kind.COUNT, "split test has 6 clips")]),
        (
            _no_index_here_and_a_flipped_bit_there,
            [(Kind.INDEX, "train-000000.idx"), (Kind.SAMPLES, f"{TRAIN}: 10 of 10 clips: .*sha256.* and 7 more")],
        ),
    ],
)  # fmt: skip
def test_damage_is_named_once(copy: Path, damage: Callable[[Path], object], found: list[tuple[Kind, str]]) -> None:
    damage(copy)
    problems = _corrupt(copy)
    assert [problem.kind for problem in problems] == [kind for kind, _ in found]
    for problem, (_, words) in zip(problems, found, strict=True):
        assert re.match(f"{re.escape(str(copy))}.*{words}", problem.message), problem


@pytest.mark.parametrize("keep", [0, 511, 0.5, -3000])
def test_truncated_tar(copy: Path, keep: float) -> None:
    tar = copy / TRAIN
    data = tar.read_bytes()
    size = int(_member(tar, -1, "wav").offset + keep if keep < 0 else keep if keep > 1 else keep * len(data))
    tar.write_bytes(data[:size])
    (problem,) = _corrupt(copy)
    assert (problem.kind, problem.shard, problem.offset) == (Kind.TAR, TRAIN, size) and "truncated" in problem.message


def test_an_index_that_ends_early_or_is_none(copy: Path) -> None:
    tar = copy / "train-000000.tar"
    index, lines = index_path(tar), index_path(tar).read_text().splitlines()
    early, short = "\n".join(["v1.2 9", *lines[1:-1]]) + "\n", "\n".join(lines[:-1])
    for text in (early, short, "", "v1.1 3\n", "v1.2 x\n", "v1.2 1\nwav 1 x name\n", "v1.2 1\nwav 1\n", "v1.2 0\n"):
        index.write_text(text)
        said = "ends before" if text == early else ".*; make it again with: wds2idx TAR IDX"
        with pytest.raises(UserError, match=f"train-000000.idx(: |, line 2: ){said}"):
            check_index(tar, index)


def test_one_flipped_bit_of_audio(copy: Path) -> None:
    tar, audio = copy / TRAIN, _member(copy / TRAIN, 4, "wav")
    _flip(tar, audio.offset + 44 + 101)
    check_index(tar, index_path(tar))  # too cheap to see it
    (problem,) = _corrupt(copy)
    assert (problem.kind, problem.shard, problem.offset) == (Kind.SAMPLES, TRAIN, audio.offset)
    assert audio.name in problem.message and f"byte {audio.offset}:" in problem.message
    clip = pq.read_table(copy / "clips.parquet").to_pylist()[14]
    assert (problem.clips, problem.sources) == ((14,), (clip["source"],))


def test_a_flipped_bit_of_flac_that_is_not_decoded_and_another_encoder_s_bytes(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unfused_fast.shards.check.check.SPECTRUM_CLIPS", 1)
    folder = pack(rows, tmp_path / "set", codec="flac", workers=0, clips_per_shard=10).shard_set.directory
    assert _corrupt(folder) == []
    clips = pq.read_table(folder / "clips.parquet")
    digests, place = (
        pa.array(["0" * 64, *clips["stored_sha256"].to_pylist()[1:]]),
        clips.schema.names.index("stored_sha256"),
    )
    for byte in (60, -3):
        tar, audio = folder / TRAIN, _member(folder / TRAIN, 4, "flac")
        _flip(tar, audio.offset + byte % audio.size)
        (problem,) = _corrupt(folder)
        assert problem.kind in (Kind.AUDIO, Kind.SAMPLES) and problem.clips == (14,) and audio.name in problem.message
        _flip(tar, audio.offset + byte % audio.size)
    pq.write_table(clips.set_column(place, "stored_sha256", digests), folder / "clips.parquet")
    (problem,) = _corrupt(folder)
    assert ".flac differ from those packed, but its samples are the same" in problem.message


def test_a_flipped_bit_anywhere_outside_the_audio_is_found(copy: Path) -> None:
    """Headers, padding and .json: every 97th byte of a clip's region, and what follows the last clip."""
    tar = copy / "test-000000.tar"
    first, audio = check_index(tar, index_path(tar))[2][0], _member(tar, 2, "wav")
    for place in [*range(first.offset - 512 + 3, audio.offset, 97), audio.offset + audio.size, tar.stat().st_size - 1]:
        _flip(tar, place)
        assert len(_corrupt(copy)) == 1, place
        _flip(tar, place)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_that_are_not_those_of_the_clips(rows: list[SourceRow], tmp_path: Path, name: str) -> None:
    pack(rows[:9], tmp_path / "set", workers=0, statistics=log_mel_statistics)
    assert check(tmp_path / "set", workers=0, statistics=log_mel_statistics).corrupt == []
    path = tmp_path / "set/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["log_mel"][name] += 0.1
    path.write_text(json.dumps(manifest))
    (found,) = check(tmp_path / "set", workers=0, statistics=log_mel_statistics).corrupt
    assert found.kind is Kind.MANIFEST and "but the clips have mean" in found.message


def test_processes_find_what_one_process_finds(copy: Path) -> None:
    _split_in_json(copy)
    (copy / TRAIN).write_bytes(b"")
    calls: list[tuple[int, int, int]] = []
    assert check(copy, workers=2, progress=lambda *call: calls.append(call)) == check(copy, workers=0)
    assert calls[-1][1:] == (45, 2)


def test_json_and_exit_codes(cli: Any, copy: Path) -> None:
    done = cli("check", copy, "--workers", 0, "--json")
    report = json.loads(done.out)
    assert done.code == 0 and report["corrupt"] == [] and report["clips"] == 45
    assert {finding["kind"] for finding in report["warnings"]} >= {"group-leak", "unlabelled"}
    tar = copy / "extra-000000.tar"
    (copy / "train-000099.tar").touch()
    place = _member(tar, 3, "index").offset
    _flip(tar, place)
    done = cli("check", copy, "--workers", 0, "--json")
    report = json.loads(done.out)
    (finding,) = report["corrupt"]
    assert done.code == 1
    assert (finding["shard"], finding["offset"], finding["kind"]) == ("extra-000000.tar", place, "key")
    assert set(finding) == {"kind", "message", "file", "shard", "offset", "count", "clips", "sources"}
    stray = [finding["file"] for finding in report["warnings"] if finding["kind"] == "stray-file"]
    assert stray == [str(copy / "train-000099.tar")]


def test_a_clip_that_kills_its_process_is_named_and_the_rest_is_examined(copy: Path, packed: ShardSet) -> None:
    """What workers.Workers hands over after a process died at clip 4 of a shard, twice."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, packed.clips.schema) as writer:
        writer.write_table(packed.clips.slice(10, 10))
    task = ShardTask(copy / TRAIN, "train", "wav", packed.manifest.label_names, stream.getvalue().to_pybytes(), 1)
    touched: list[int] = []
    report = task.answer({4: Rejected(Reason.CRASHED)}, touched.append)
    (example,) = report.problems[Kind.CRASHED]
    audio = _member(copy / TRAIN, 4, "wav")
    assert (example.clip, example.offset, [*report.problems]) == (14, audio.offset, [Kind.CRASHED])
    assert touched == list(range(10)) and report.spectra == 9
