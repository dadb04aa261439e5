"""pack(): the files it writes, read by others, and the options it refuses."""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray
from remote_files import bytes_of

from unfused_fast.errors import UserError
from unfused_fast.shards.check.check import check
from unfused_fast.shards.packing import finish
from unfused_fast.shards.packing.layout import plan_pieces
from unfused_fast.shards.packing.pack import PackResult, pack
from unfused_fast.shards.sets.remarks import remarks
from unfused_fast.shards.sets.shard_files import OWNER, index_path, member_header
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows

Tone = Callable[..., NDArray[np.float64]]


def _rejected(folder: Path) -> list[tuple[str, str]]:
    with (folder / "rejected.csv").open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["path", "reason"]
    return [(path, reason) for path, reason in rows]


def _pack(rows: list[SourceRow], out: Path, **options: Any) -> PackResult:
    return pack(rows, out, **{"workers": 0, **options})


# What is in a set


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_mixed_folder_is_packed_whatever_the_workers(mixed: Any, tmp_path: Path, codec: Any) -> None:
    rows = source_rows(mixed.folder, labels_from_folders=True)
    calls: list[tuple[int, int, int]] = []
    result = _pack(rows, tmp_path / "one", codec=codec, progress=lambda *call: calls.append(call))
    packed = result.shard_set
    assert check(tmp_path / "one", workers=0).corrupt == []
    assert sorted(packed.clips["source"].to_pylist()) == sorted(mixed.good)
    assert result.packed == len(mixed.good)
    for row in packed.clips.to_pylist():
        assert row["seconds"] == pytest.approx(mixed.good[row["source"]], abs=0.001)
        assert row["samples"] == row["seconds"] * 16000
        assert row["group"] == row["source"]
    assert packed.manifest.label_names == ("Grüße", "deep")
    rejected = _rejected(tmp_path / "one")
    assert [path for path, _ in rejected] == sorted(mixed.bad)
    assert all(reason.startswith(mixed.bad[path]) for path, reason in rejected), rejected
    assert sum(result.rejected.values()) == len(rejected) == packed.manifest.rejected
    assert result.rejected["truncated or damaged"] == 4
    assert calls[-1][0] == calls[-1][1] and calls[-1][2] == len(rejected)
    assert str(mixed.folder).encode() not in b"".join(bytes_of(tmp_path / "one").values())

    _pack(list(reversed(rows)), tmp_path / "two", codec=codec, workers=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_both_codecs_hold_the_same_samples(rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    flac = _pack(rows, tmp_path / "flac", codec="flac", clips_per_shard=10).shard_set
    assert flac.clips.drop_columns("stored_sha256").equals(packed.clips.drop_columns("stored_sha256"))
    assert flac.manifest.digest == packed.manifest.digest


def test_order_hangs_on_the_seed_alone(rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    order = packed.clips_in("train")["source"].to_pylist()
    assert order != sorted(order)
    other = _pack(rows, tmp_path / "other", seed=1).shard_set.clips_in("train")["source"].to_pylist()
    assert other != order and sorted(other) == sorted(order)
    relabelled = [SourceRow(row.path, row.source, "x", row.split, row.group) for row in rows]
    assert _pack(relabelled, tmp_path / "same").shard_set.clips_in("train")["source"].to_pylist() == order


def test_the_table_holds_what_the_rows_and_files_hold(rows: list[SourceRow], packed: ShardSet, tmp_path: Path) -> None:
    """The sources are 16 kHz mono PCM16, so that Python's own reader gives what must be in the table."""
    folded = [replace(row, fold=1 + number % 10) for number, row in enumerate(rows)]
    made = _pack(folded, tmp_path / "out").shard_set
    assert packed.clips["fold"].null_count == packed.clips.num_rows
    assert made.manifest.digest != packed.manifest.digest, "folds are in the digest"
    given = {row.source: row for row in folded}
    names = (*packed.manifest.label_names, None)
    for row in made.clips.to_pylist():
        wanted = given[row["source"]]
        found = (names[row["label"]], row["split"], row["group"], row["fold"])
        assert found == (wanted.label, wanted.split, wanted.group, wanted.fold)
        with wave.open(str(wanted.path)) as file:
            assert hashlib.sha256(file.readframes(file.getnframes())).hexdigest() == row["sha256"]
    assert packed.clips["label"].to_pylist().count(-1) == 1


def test_long_file_becomes_equal_pieces_of_one_group(tmp_path: Path, write_tone: Tone) -> None:
    (tmp_path / "in").mkdir()
    signal = write_tone(7.3, 44100, 440, channels=2)
    soundfile.write(tmp_path / "in/long.wav", signal, 44100, "FLOAT")
    soundfile.write(tmp_path / "in/short.wav", signal[:44100], 44100)
    packed = _pack(source_rows(tmp_path / "in"), tmp_path / "out", max_seconds=2.0).shard_set
    pieces = [row for row in packed.clips.to_pylist() if row["source"] == "long.wav"]
    assert len(pieces) == 4 and {row["group"] for row in pieces} == {"long.wav"}
    assert max(row["samples"] for row in pieces) - min(row["samples"] for row in pieces) <= 1
    stored = {row["clip_id"]: sample for row, sample in _samples(packed)}
    whole = np.rint(soxr.resample(signal.mean(axis=1), 44100, 16000) * 32768)
    place = 0
    while pieces:  # by content: which piece goes on where the last one ended?
        place_of = {row["clip_id"]: stored[row["clip_id"]] for row in pieces}
        here = [i for i, pcm in place_of.items() if np.abs(pcm - whole[place : place + len(pcm)]).max() <= 1]
        assert len(here) == 1
        place += len(place_of[here[0]])
        pieces = [row for row in pieces if row["clip_id"] != here[0]]
    assert place == len(whole)


def test_files_a_little_longer_than_the_limit_are_whole() -> None:
    """Samples of a file, at 10 s a clip: up to 10.5 s is one clip, what is longer is cut to 10 s at most."""
    samples = np.array([160_000, 160_320, 168_000, 168_001, 336_000, 3_200_000])
    rows = [SourceRow(Path(f"{n}.wav"), f"{n}.wav") for n in range(len(samples))]
    plan = plan_pieces(rows, samples, np.zeros_like(samples), samples, 10.0, 0)
    assert np.bincount(plan.row).tolist() == [1, 1, 1, 2, 3, 20]
    assert (np.bincount(plan.row, plan.stop - plan.start) == samples).all()


def test_shards_are_cut_by_clips_and_by_split(packed: ShardSet) -> None:
    assert [info.shards for info in packed.manifest.splits.values()] == [
        ("train-000000.tar", "train-000001.tar", "train-000002.tar"),
        ("valid-000000.tar",),
        ("test-000000.tar",),
        ("extra-000000.tar",),
    ]
    sizes = [len(index_path(path).read_text().splitlines()) - 1 for path in packed.shard_paths("train")]
    assert sizes == [10, 10, 4]


def test_statistics_get_the_first_training_clips(
    rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "STATISTICS_CLIPS", 5)
    seen: list[NDArray[np.int16]] = []

    def statistics(clips: Iterator[NDArray[np.int16]]) -> dict[str, float]:
        seen.extend(clips)
        return {"mean": 1.5, "std": 2.0, "clips": len(seen)}

    packed = _pack(rows, tmp_path / "out", statistics=statistics, clips_per_shard=3).shard_set
    assert packed.manifest.log_mel == {"mean": 1.5, "std": 2.0, "clips": 5}
    assert open_shards(tmp_path / "out").manifest.log_mel == {"mean": 1.5, "std": 2.0, "clips": 5}
    digests = [hashlib.sha256(clip.tobytes()).hexdigest() for clip in seen]
    assert digests == packed.clips_in("train")["sha256"].to_pylist()[:5]
    only_test = [row for row in rows if row.split == "test"]
    packed = _pack(only_test, tmp_path / "test", statistics=lambda clips: {"mean": 0.0}).shard_set
    assert packed.manifest.log_mel is None and list(packed.manifest.splits) == ["test"]


# Read by others


def _samples(packed: ShardSet) -> list[tuple[dict[str, Any], NDArray[np.int16]]]:
    """Rows and samples, by tarfile and libsndfile."""
    found = []
    table = packed.clips.to_pylist()
    for split in packed.manifest.splits:
        for path in packed.shard_paths(split):
            with tarfile.open(path) as archive:
                for info in archive:
                    if info.name.endswith(".wav"):
                        data = archive.extractfile(info).read()  # type: ignore[union-attr]
                        pcm, rate = soundfile.read(io.BytesIO(data), dtype="int16")
                        assert rate == 16000
                        found.append((table[int(info.name[:-4])], pcm))
    return found


def test_index_is_wds2idx_s(packed: ShardSet, tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="comes with nvidia-dali")
    for split in packed.manifest.splits:
        for path in packed.shard_paths(split):
            with wds2idx.IndexCreator(str(path), str(tmp_path / "index"), verbose=False) as creator:
                creator.create_index()
            assert index_path(path).read_bytes() == (tmp_path / "index").read_bytes()


def test_stock_webdataset_reads_the_shards(packed: ShardSet) -> None:
    webdataset = pytest.importorskip("webdataset")
    table, seen = packed.clips.to_pylist(), []
    for split in packed.manifest.splits:
        for path in packed.shard_paths(split):
            raw = webdataset.WebDataset(str(path), shardshuffle=False)
            decoded = webdataset.WebDataset(str(path), shardshuffle=False).decode()
            for plain, sample in zip(raw, decoded, strict=True):
                row = table[sample["index"]]
                assert type(sample["index"]) is int and sample["__key__"] == row["key"] == f"{sample['index']:09d}"
                names = [packed.manifest.label_names[label] for label in row["labels"]]
                kept = ("clip_id", "fold", "label", "labels", "group", "seconds", "source", "split")
                assert sample["json"] == {**{name: row[name] for name in kept}, "label_names": names}
                with wave.open(io.BytesIO(plain["wav"])) as file:
                    samples = file.readframes(file.getnframes())
                assert hashlib.sha256(samples).hexdigest() == row["sha256"]
                seen.append(sample["index"])
    assert seen == list(range(45))


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_dali_reads_every_clip_once(rows: list[SourceRow], tmp_path: Path, codec: Any) -> None:
    dali = pytest.importorskip("nvidia.dali")
    packed = _pack(rows, tmp_path / "out", codec=codec, clips_per_shard=10).shard_set
    paths = [path for split in packed.manifest.splits for path in packed.shard_paths(split)]

    @dali.pipeline_def(batch_size=9, num_threads=1, device_id=None)
    def graph() -> Any:
        audio, index = dali.fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(index_path(path)) for path in paths],
            ext=[codec, "index"],
            name="reader",
        )
        return dali.fn.decoders.audio(audio, dtype=dali.types.INT16, downmix=False)[0], index

    pipeline = graph()
    pipeline.build()
    assert pipeline.epoch_size("reader") == 45
    table, seen = packed.clips.to_pylist(), []
    for _ in range(5):
        audio, index = pipeline.run()
        for place in range(9):
            clip_id = int(index.at(place).tobytes())
            assert hashlib.sha256(audio.at(place).tobytes()).hexdigest() == table[clip_id]["sha256"]
            seen.append(clip_id)
    assert sorted(seen) == list(range(45))


# What is refused


def test_files_mixed_down_and_resampled_are_counted(mixed: Any, tmp_path: Path) -> None:
    rows = [row for row in source_rows(mixed.folder) if row.source in mixed.good]
    result = _pack(rows, tmp_path / "out", max_seconds=1.0)
    assert result.packed > len(mixed.good)  # some are cut: files are counted, not clips
    infos = [soundfile.info(mixed.folder / name) for name in mixed.good]
    mixed_down = sum(info.channels > 1 for info in infos)
    resampled = sum(info.samplerate != 16000 for info in infos)
    said = remarks(result.shard_set)
    assert f"{mixed_down} of {len(infos)} files have several channels: a clip is their mean" in said
    assert f"{resampled} of {len(infos)} files were resampled to 16000 Hz" in said


def test_nothing_usable(mixed: Any, tmp_path: Path) -> None:
    rows = [row for row in source_rows(mixed.folder) if row.source in mixed.bad]
    with pytest.raises(
        UserError, match=r"12 files, none of them usable: 4 truncated or damaged, .*for example click\.wav"
    ):
        _pack(rows, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no files to pack"):
        _pack([], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codec": "mp3"}, "codec mp3"),
        ({"min_seconds": 0.0321}, "min_seconds 0.0321, but a log-mel needs 0.0322 s or more"),
        ({"max_file_hours": float("inf")}, "max_file_hours inf, but it must be a finite time"),
        ({"max_seconds": 0.15}, "max_seconds 0.15"),
        ({"max_seconds": float("nan")}, "max_seconds nan"),
        ({"workers": -1}, "-1 workers"),
        ({"clips_per_shard": 0}, "0 clips per shard"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_options_out_of_range(rows: list[SourceRow], tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _pack(rows, tmp_path / "out", **options)
    assert not list(tmp_path.glob("out*"))


def test_an_option_out_of_range_is_refused_before_the_source_is_listed(cli: Any, tmp_path: Path) -> None:
    done = cli("shard", tmp_path / "gone", tmp_path / "out", "--max-seconds", 0)
    assert done.code == 1 and "max_seconds 0, but it must be between 0.2" in done.err


@pytest.mark.parametrize("name", ["000000000001.wav", "9" * 12 + ".index", "x" * 96 + ".wav"])
def test_headers_are_tarfiles(name: str) -> None:
    for size in (0, 7, 512, 35_000, 8**11 - 1):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uname, info.gname = size, 0o444, OWNER, OWNER
        assert member_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
        assert tarfile.TarInfo.frombuf(member_header(name, size), "ascii", "strict").size == size


def test_a_rejected_file_does_not_stop_the_others(cli: Callable[..., Any], tmp_path: Path, write_tone: Tone) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/good.wav", write_tone(1.0, 16000, 440), 16000)
    (tmp_path / "in/bad.wav").write_bytes(b"RIFF")
    done = cli("shard", tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert done.code == 0 and "1 clip (1 train)" in done.out and "rejected 1: not audio" in done.out
