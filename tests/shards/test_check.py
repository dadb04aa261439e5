"""Damage to a set is found, and the file is named."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.check.findings import Finding, Kind
from unfused_fast.shards.check.shard import ShardTask
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import check_index, index_path
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.reasons import Reason, Rejected
from unfused_fast.shards.sources.row import SourceRow


def _damage(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))


def _corrupt(folder: Path) -> list[Finding]:
    return check(folder, workers=0).corrupt


def _only_problem(folder: Path, *words: str) -> Finding:
    problems = _corrupt(folder)
    assert len(problems) == 1, problems
    assert all(word in problems[0].message for word in words), problems[0]
    return problems[0]


def _index_refused(tar: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_index(tar, index_path(tar))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_whole_set_has_no_problems(packed: ShardSet) -> None:
    assert check(packed.directory, workers=0).corrupt == []
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
    problem = _only_problem(copy, "train-000001.tar", "truncated")
    assert (problem.kind, problem.shard, problem.offset) == (Kind.TAR, "train-000001.tar", int(size))


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
    _index_refused(copy / "train-000000.tar", "v1.2 10", "9 samples")


@pytest.mark.parametrize("text", ["", "v1.1 3\n", "v1.2 x\n", "v1.2 1\nwav 1 x name\n", "v1.2 1\nwav 1\n", "v1.2 0\n"])
def test_malformed_index(copy: Path, text: str) -> None:
    (copy / "test-000000.idx").write_text(text)
    _index_refused(copy / "test-000000.tar", "test-000000.idx")


def test_missing_files(copy: Path) -> None:
    (copy / "test-000000.idx").unlink()
    _index_refused(copy / "test-000000.tar", "test-000000.idx", "cannot be read")
    (copy / "valid-000000.tar").unlink()
    _index_refused(copy / "valid-000000.tar", "valid-000000.tar", "cannot be read")
    assert {problem.kind for problem in _corrupt(copy)} == {Kind.INDEX, Kind.TAR}


def test_one_flipped_bit_of_audio(copy: Path) -> None:
    tar = copy / "train-000001.tar"
    audio = next(member for member in check_index(tar, index_path(tar))[4] if member.extension == "wav")
    data = bytearray(tar.read_bytes())
    data[audio.offset + 44 + 101] ^= 1
    tar.write_bytes(data)
    check_index(tar, index_path(tar))  # too cheap to see it
    problem = _only_problem(copy, "train-000001.tar", audio.name, "sha256", f"byte {audio.offset}:")
    assert (problem.kind, problem.shard, problem.offset) == (Kind.SAMPLES, "train-000001.tar", audio.offset)
    clip = pq.read_table(copy / "clips.parquet").to_pylist()[14]
    assert (problem.clips, problem.sources) == ((14,), (clip["source"],))


@pytest.mark.parametrize("place", [60, -3])
def test_a_flipped_bit_of_flac_that_is_not_listened_to(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr("unfused_fast.shards.check.check.SPECTRUM_CLIPS", 1)
    folder = pack(rows, tmp_path / "set", codec="flac", workers=0, clips_per_shard=10).shard_set.directory
    assert _corrupt(folder) == []
    tar = folder / "train-000001.tar"
    audio = next(member for member in check_index(tar, index_path(tar))[4] if member.extension == "flac")
    data = bytearray(tar.read_bytes())
    data[audio.offset + place % audio.size] ^= 1
    tar.write_bytes(data)
    problem = _only_problem(folder, "train-000001.tar", audio.name, f"byte {audio.offset}:")
    assert problem.kind in (Kind.AUDIO, Kind.SAMPLES) and problem.clips == (14,)


def test_flac_that_another_encoder_made_of_the_same_samples(rows: list[SourceRow], tmp_path: Path) -> None:
    folder = pack(rows, tmp_path / "set", codec="flac", workers=0, clips_per_shard=10).shard_set.directory
    clips = pq.read_table(folder / "clips.parquet")
    digests = ["0" * 64, *clips["stored_sha256"].to_pylist()[1:]]
    place = clips.schema.get_field_index("stored_sha256")
    pq.write_table(clips.set_column(place, "stored_sha256", pa.array(digests)), folder / "clips.parquet")
    _only_problem(folder, "the bytes of ", ".flac are not those packed, its samples are")


def test_members_that_are_not_the_table_s(copy: Path) -> None:
    _damage(copy / "valid-000000.tar", b'"split": "valid"', b'"split": "train"')
    problem = _only_problem(copy, "valid-000000.tar", "json says split 'train', but the clips table 'valid'")
    assert problem.kind == Kind.JSON


def test_header_in_the_middle(copy: Path) -> None:
    tar = copy / "extra-000000.tar"
    middle = check_index(tar, index_path(tar))[3][0]
    data = bytearray(tar.read_bytes())
    data[middle.offset - 512 : middle.offset] = b"\x01" * 512
    tar.write_bytes(data)
    problem = _only_problem(copy, "extra-000000.tar", "no tar header", middle.name)
    assert (problem.kind, problem.offset, problem.count) == (Kind.TAR, middle.offset - 512, 1)


def test_swapped_shards(copy: Path) -> None:
    for ending in ("tar", "idx"):
        one, other = copy / f"train-000000.{ending}", copy / f"train-000001.{ending}"
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    problems = _corrupt(copy)
    assert [(problem.kind, Path(problem.file).name) for problem in problems] == [
        (Kind.ORDER, "train-000000.tar"),
        (Kind.ORDER, "train-000001.tar"),
    ]
    assert "begins with clip 10, where clip 0 has its place" in problems[0].message


def test_table_of_another_set(copy: Path) -> None:
    clips = pq.read_table(copy / "clips.parquet")
    labels = clips["label"].to_pylist()
    labels[0] = (labels[0] + 1) % 3
    pq.write_table(clips.set_column(3, clips.schema.field(3), pa.array(labels, pa.int32())), copy / "clips.parquet")
    problems = _corrupt(copy)
    assert [problem.kind for problem in problems] == [Kind.LABEL_ID, Kind.DIGEST, Kind.JSON]
    assert "clips.parquet" in problems[1].message and "digest" in problems[1].message
    assert "train-000000.tar" in problems[2].message and "json says label" in problems[2].message


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


def test_a_flipped_bit_anywhere_outside_the_audio_is_found(copy: Path) -> None:
    """Headers, padding and .json: every 97th byte of a clip's region, and what follows the last clip."""
    tar = copy / "test-000000.tar"
    data = tar.read_bytes()
    samples = check_index(tar, index_path(tar))
    audio = next(member for member in samples[2] if member.extension == "wav")
    places = [*range(samples[2][0].offset - 512 + 3, audio.offset, 97), audio.offset + audio.size, len(data) - 1]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 4
        tar.write_bytes(damaged)
        assert len(_corrupt(copy)) == 1, place


def test_one_bad_shard_does_not_hide_another_and_is_named_once(copy: Path) -> None:
    index_path(copy / "train-000000.tar").unlink()
    tar = copy / "train-000001.tar"
    samples = check_index(tar, index_path(tar))
    data = bytearray(tar.read_bytes())
    for members in samples:
        data[members[-1].offset + 60] ^= 1
    tar.write_bytes(data)
    lost, damaged = _corrupt(copy)
    assert (lost.kind, damaged.kind, damaged.count, len(damaged.clips)) == (Kind.INDEX, Kind.SAMPLES, 10, 3)
    assert "and 7 more" in damaged.message


def test_processes_find_what_one_process_finds(copy: Path) -> None:
    _damage(copy / "valid-000000.tar", b'"split": "valid"', b'"split": "train"')
    (copy / "train-000001.tar").write_bytes(b"")
    calls: list[tuple[int, int, int]] = []
    assert check(copy, workers=2, progress=lambda *call: calls.append(call)) == check(copy, workers=0)
    assert calls[-1][1:] == (45, 2)


def test_rejected_and_stray_files(copy: Path) -> None:
    (copy / "rejected.csv").write_text("path,reason\na.wav,no samples\n")
    (copy / "train-000099.tar").touch()
    found = check(copy, workers=0)
    assert [finding.kind for finding in found.corrupt] == [Kind.REJECTED]
    assert [Path(finding.file).name for finding in found.warnings if finding.kind == Kind.STRAY_FILE] == [
        "train-000099.tar"
    ]


def test_json_and_exit_codes(cli: Any, copy: Path) -> None:
    done = cli("check", copy, "--workers", 0, "--json")
    told = json.loads(done.out)
    assert done.code == 0 and told["corrupt"] == [] and told["clips"] == 45
    assert {finding["kind"] for finding in told["warnings"]} >= {"group-leak", "unlabelled"}
    tar = copy / "extra-000000.tar"
    middle = check_index(tar, index_path(tar))[3][0]
    data = bytearray(tar.read_bytes())
    data[middle.offset] ^= 1
    tar.write_bytes(data)
    done = cli("check", copy, "--workers", 0, "--json")
    (finding,) = json.loads(done.out)["corrupt"]
    assert done.code == 1
    assert (finding["shard"], finding["offset"], finding["kind"]) == ("extra-000000.tar", middle.offset, "key")
    assert set(finding) == {"kind", "message", "file", "shard", "offset", "count", "clips", "sources"}


def test_a_clip_that_kills_its_process_is_named_and_the_rest_is_examined(copy: Path, packed: ShardSet) -> None:
    """What workers.Workers hands over after a process died at clip 4 of a shard, twice."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, packed.clips.schema) as writer:
        writer.write_table(packed.clips.slice(10, 10))
    tar = copy / "train-000001.tar"
    task = ShardTask(tar, "train", "wav", packed.manifest.label_names, stream.getvalue().to_pybytes(), 1)
    touched: list[int] = []
    report = task.answer({4: Rejected(Reason.CRASHED)}, touched.append)
    (example,) = report.problems.examples[Kind.CRASHED]
    audio = next(member for member in check_index(tar, index_path(tar))[4] if member.extension == "wav")
    assert (example.clip, example.offset, report.problems.counts) == (14, audio.offset, {Kind.CRASHED: 1})
    assert touched == list(range(10)) and report.spectra == 9
