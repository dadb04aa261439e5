"""`--skip-bad`: clips that cannot be read or decoded count as silence, are named once, counted and listed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcomes import Cli, refused, same_checkpoint
from same_runs import assert_same_run
from stopping import signalled_after

from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import Member, read_index
from unfused_fast.shards.sources.row import SourceRow

GARBLED, LOST = [7], [57, 58, 59]
"""Clips of the train split that are made unreadable: in the middle of a FLAC, and where a shard ends early."""
STORES = ("stream", "resident")
Spoil = Callable[..., Path]


@pytest.fixture(scope="module")
def sets(tone_rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same clips as FLAC and as WAV."""
    folder = tmp_path_factory.mktemp("sets")
    for codec in ("flac", "wav"):
        pack(tone_rows, folder / codec, workers=0, codec=codec, clips_per_shard=25, statistics=log_mel_statistics)
    return {codec: folder / codec for codec in ("flac", "wav")}


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copied(sets: dict[str, Path], tmp_path: Path) -> Spoil:
    """`copied("flac", name)`: a copy of a set, without log-mels."""
    return lambda codec, name: Path(
        shutil.copytree(sets[codec], tmp_path / name, ignore=shutil.ignore_patterns("*.cache"))
    )


def audio(shards: Path, clip: int) -> tuple[Path, Member]:
    """The shard of a train clip, and its audio member."""
    for tar in sorted(shards.glob("train-*.tar")):
        for members in read_index(tar.with_suffix(".idx")):
            if members[0].name.startswith(f"{clip:09d}."):
                return tar, next(member for member in members if member.extension in ("flac", "wav"))
    raise AssertionError(f"{shards} has no train clip {clip}")


def overwrite(shards: Path, clip: int, part: slice) -> None:
    """Zeros in a part of a clip's audio member."""
    tar, member = audio(shards, clip)
    start, stop, _ = part.indices(member.size)
    with tar.open("r+b") as file:
        file.seek(member.offset + start)
        file.write(bytes(stop - start))


def garble(shards: Path, clip: int) -> None:
    size = audio(shards, clip)[1].size
    overwrite(shards, clip, slice(size // 3, 2 * size // 3))


def cut(shards: Path) -> None:
    """The shard of LOST ends in the middle of the first of them."""
    tar, member = audio(shards, LOST[0])
    tar.write_bytes(tar.read_bytes()[: member.offset + member.size // 2])


def damaged(copied: Spoil, codec: str, name: str = "damaged") -> tuple[Path, list[int]]:
    """A set that is damaged before a run begins, and which of its clips are."""
    shards = copied(codec, name)
    cut(shards)
    if codec == "wav":  # whose samples may be anything
        return shards, LOST
    garble(shards, *GARBLED)
    return shards, GARBLED + LOST


def silent(copied: Spoil, clips: list[int], name: str = "silent") -> Path:
    """The WAV set in which the samples of these clips are zeros."""
    shards = copied("wav", name)
    for clip in clips:
        overwrite(shards, clip, slice(44, None))
    return shards


def result(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def named(err: str) -> list[int]:
    """The clips that standard error names, in order."""
    return [int(key) for key in re.findall(r"^clip (\d{9}) of train-\d{6}.tar: .+; replaced by silence$", err, re.M)]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("codec", ["flac", "wav"])
def test_a_damaged_clip_is_a_silent_one(pretrain: Cli, copied: Spoil, tmp_path: Path, codec: str, store: str) -> None:
    """Weights, optimiser and generators are, bit for bit, those of a run on clips that are silent."""
    shards, clips = damaged(copied, codec)
    done = pretrain(shards, tmp_path / "out", "--data", store, "--skip-bad", len(clips))
    assert done.code == 0, done.err
    assert sorted(named(done.err)) == clips, "each is named once"
    assert result(tmp_path / "out")["skipped"] == {"clips": len(clips), "keys": [f"{clip:09d}" for clip in clips]}
    assert not list(shards.glob("log-mel-*")) and not list(tmp_path.glob("cache/**/log-mel-*"))
    assert ("held for this run and not kept" in done.err) == (store == "resident")
    assert pretrain(silent(copied, clips), tmp_path / "wanted", "--data", store).code == 0
    same_checkpoint(tmp_path / "out", tmp_path / "wanted")


@pytest.mark.parametrize("store", STORES)
def test_no_clip_is_skipped_unasked(pretrain: Cli, copied: Spoil, tmp_path: Path, store: str) -> None:
    shards, name = copied("flac", "damaged"), audio(copied("flac", "sound"), *GARBLED)[0].name
    garble(shards, *GARBLED)
    refused(
        pretrain(shards, tmp_path / "out", "--data", store), name, f"unfused-fast check {shards} says what is wrong"
    )
    cut(shards)
    refused(pretrain(shards, tmp_path / "out", "--data", store), audio(shards, LOST[0])[0], "truncated")


@pytest.mark.parametrize("store", STORES)
def test_one_clip_too_many(pretrain: Cli, copied: Spoil, tmp_path: Path, store: str) -> None:
    shards, clips = damaged(copied, "flac")
    done = pretrain(shards, tmp_path / "out", "--data", store, "--skip-bad", len(clips) - 1)
    refused(done, f"{len(clips)} clips cannot be read, --skip-bad is {len(clips) - 1}", shards)
    assert set(named(done.err)) < set(clips)


def test_a_set_without_a_sound_clip(pretrain: Cli, copied: Spoil, tmp_path: Path) -> None:
    shards = copied("wav", "damaged")
    for tar in shards.glob("train-*.tar"):
        tar.write_bytes(tar.read_bytes()[:1024])
    done = pretrain(shards, tmp_path / "out", "--data", "stream", "--skip-bad", 100)
    refused(done, f"{shards}: of the clips that are left to read in the epoch none can be read or decoded")


def test_a_clip_too_many_within_an_epoch_and_going_on(pretrain: Cli, copied: Spoil, tmp_path: Path) -> None:
    """One clip is skipped; all other clips of its shard break later. What was done is saved, and with the shard mended
    but for that clip --resume counts on and ends as the run that was never stopped.
    """
    shards, flags = copied("flac", "damaged"), ["--data", "stream", "--set", "train.batch_size=4", "--skip-bad", 2]
    garble(shards, *GARBLED)
    tar = audio(shards, *GARBLED)[0]
    kept = tar.read_bytes()
    assert pretrain(shards, tmp_path / "whole", *flags).code == 0
    out = tmp_path / "out"
    with signalled_after(20):  # in the second epoch
        stopped = pretrain(shards, out, *flags)
    assert stopped.code == 130 and named(stopped.err) == GARBLED
    newest = sorted((out / "checkpoints").glob("*.json"))[-1]
    assert json.loads(newest.read_text())["skipped"] == [GARBLED]
    for clip in range(25):
        garble(shards, clip)
    over = pretrain(shards, out, *flags, "--resume")
    assert over.code == 1 and "--skip-bad is 2" in over.error and "the last one saved" in over.error, over.err
    tar.write_bytes(kept)
    done = pretrain(shards, out, *flags, "--resume")
    assert done.code == 0, done.err
    assert named(stopped.err + done.err) == GARBLED, "it is named once"
    assert result(out)["skipped"] == {"clips": 1, "keys": [f"{GARBLED[0]:09d}"]}
    assert_same_run(out, tmp_path / "whole")


def test_resume_counts_on(pretrain: Cli, copied: Spoil, tmp_path: Path) -> None:
    """What was skipped before a stop counts after it, even where it is mended meanwhile."""
    shards, out, flags = copied("flac", "damaged"), tmp_path / "out", ["--data", "stream", "--skip-bad", 1]
    kept = audio(shards, *GARBLED)[0].read_bytes()
    garble(shards, *GARBLED)
    with signalled_after(4):
        assert pretrain(shards, out, *flags).code == 130
    audio(shards, *GARBLED)[0].write_bytes(kept)
    garble(shards, 30)
    refused(pretrain(shards, out, *flags, "--resume"), "2 clips cannot be read, --skip-bad is 1")
    done = pretrain(shards, out, "--data", "stream", "--skip-bad", 2, "--resume")
    assert done.code == 0 and named(done.err) == [30], done.err
    assert result(out)["skipped"]["keys"] == [f"{GARBLED[0]:09d}", f"{30:09d}"]


@pytest.mark.parametrize("store", STORES)
def test_a_sound_set_trains_the_same(pretrain: Cli, copied: Spoil, tmp_path: Path, store: str) -> None:
    shards = copied("flac", "sound")
    for name, flags in (("without", []), ("with", ["--skip-bad", 3])):
        assert pretrain(shards, tmp_path / name, "--data", store, *flags).code == 0
    assert_same_run(tmp_path / "with", tmp_path / "without")
    assert result(tmp_path / "with")["skipped"] == {"clips": 0, "keys": []}


def test_all_stages(cli: Cli, tiny: list[str], copied: Spoil, tmp_path: Path) -> None:
    """Each stage lists the train clips that it skipped; a score never comes from one."""
    shards, clips = damaged(copied, "flac")
    command = ["train", "all", shards, "--epochs", 2, *tiny, "--data", "stream"]
    done = cli(*command, "--out", tmp_path / "out", "--skip-bad", len(clips))
    assert done.code == 0, done.err
    for stage in ("pretrain", "distill", "linear-distill"):
        assert result(tmp_path / "out" / stage)["skipped"]["keys"] == [f"{clip:09d}" for clip in clips]
    (tar,) = shards.glob("test-*.tar")
    member = read_index(tar.with_suffix(".idx"))[3][0]
    with tar.open("r+b") as file:
        file.seek(member.offset)
        file.write(bytes(member.size))
    shutil.rmtree(tmp_path / "out" / "linear-distill")
    refused(cli(*command, "--out", tmp_path / "out", "--skip-bad", 9, "--resume"), tar.name, "split test")
