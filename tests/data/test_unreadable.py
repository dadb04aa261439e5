"""`--skip-bad`: clips that cannot be read or decoded are found before a run, named once, counted, and left out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcomes import Cli, refused, same_checkpoint
from same_runs import assert_same_run
from stopping import signalled_after

from unfused_fast.config.fields import Config
from unfused_fast.data import stream
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Loader
from unfused_fast.data.unreadable import fill_left_out
from unfused_fast.distributed.shares import Share
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import Member, read_index
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow

GARBLED, LOST = [7], [57, 58, 59]
"""Clips of the train split that are made unreadable: in place, and where a shard ends early."""
Copied = Callable[..., Path]


@pytest.fixture(scope="module")
def sets(tone_rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same clips as FLAC and as WAV."""
    folder = tmp_path_factory.mktemp("sets")
    for codec in ("flac", "wav"):
        pack(tone_rows, folder / codec, workers=0, codec=codec, clips_per_shard=25, statistics=log_mel_statistics)
    return {codec: folder / codec for codec in ("flac", "wav")}


@pytest.fixture
def copied(sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copied:
    """`copied("flac", name)`: a copy of a set, without log-mels."""
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))
    ignored = shutil.ignore_patterns("*.cache")
    return lambda codec, name="copy": Path(shutil.copytree(sets[codec], tmp_path / name, ignore=ignored))


def audio(shards: Path, clip: int, split: str = "train") -> tuple[Path, Member]:
    """The shard of a clip, and its audio member."""
    for tar in sorted(shards.glob(f"{split}-*.tar")):
        for members in read_index(tar.with_suffix(".idx")):
            if members[0].name.startswith(f"{clip:09d}."):
                return tar, next(member for member in members if member.extension in ("flac", "wav"))
    raise AssertionError(f"{shards} has no clip {clip}")


def garble(shards: Path, clip: int, split: str = "train") -> None:
    """Zeros in the first two thirds of a clip's audio member."""
    tar, member = audio(shards, clip, split)
    with tar.open("r+b") as file:
        file.seek(member.offset)
        file.write(bytes(2 * member.size // 3))


def damaged(shards: Path) -> Path:
    """A set of which GARBLED and LOST cannot be read."""
    garble(shards, *GARBLED)
    tar, member = audio(shards, LOST[0])
    tar.write_bytes(tar.read_bytes()[: member.offset + member.size // 2])
    return shards


def result(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def named(err: str) -> list[int]:
    """The clips that standard error names, in order."""
    return [int(key) for key in re.findall(r"^clip (\d{9}) of train-\d{6}.tar: .+; left out$", err, re.M)]


@pytest.mark.parametrize("store", ["stream", "resident"])
def test_a_run_goes_through_the_other_clips(
    cli: Cli, pretrain: Cli, copied: Copied, tmp_path: Path, store: str
) -> None:
    """However they are damaged: FLAC that does not decode trains as WAV whose header is gone, bit for bit."""
    bad = GARBLED + LOST
    for codec in ("flac", "wav"):
        shards = damaged(copied(codec, f"{codec}s"))
        done = pretrain(shards, tmp_path / codec, "--data", store, "--skip-bad", len(bad))
        assert done.code == 0, done.err
        assert named(done.err) == bad, "each is named once"
        assert result(tmp_path / codec)["skipped"] == {"clips": 4, "keys": [f"{clip:09d}" for clip in bad]}
        shown = json.loads(cli("clusters", tmp_path / codec, "--shards", shards, "--top", 60, "--json").out)
        central = sorted(clip["clip_id"] for cluster in shown["found"] for clip in cluster["central"])
        assert central == sorted({*range(60)} - {*bad}) and shown["clips"] == shown["labelled_clips"] == 56
    same_checkpoint(tmp_path / "flac", tmp_path / "wav")
    kept = list(shards.glob("log-mel-*.cache/manifest.json"))
    assert [json.loads(path.read_text())["identity"]["left_out"] for path in kept] == [bad] * (store == "resident")


def test_batches_of_the_other_clips_are_full_and_the_same_everywhere(copied: Copied) -> None:
    bad, clusters = GARBLED + LOST, np.arange(60) % 3

    def loader(share: Share = Share()) -> Loader:  # noqa: B008
        cpu = torch.device("cpu")
        return Loader(shards, "train", Config(), device=cpu, batch_size=16, share=share, left_out=bad)

    shards = open_shards(damaged(copied("wav")))
    whole = list(loader().epoch(1))
    assert [len(batch.clip_ids) for batch in whole] == [16, 16, 16, 8]
    assert sorted(torch.cat([batch.clip_ids for batch in whole]).tolist()) == sorted({*range(60)} - {*bad})
    held = placed(loader(), "resident")
    parts = [list(loader(Share(rank, 2)).epoch(1)) for rank in range(2)]
    for number, (wanted, found) in enumerate(zip(whole, held.epoch(1), strict=True)):
        assert torch.equal(found.clip_ids, wanted.clip_ids)
        torch.testing.assert_close(found.views[0], wanted.views[0], atol=5e-3, rtol=0)
        shared = [part[number] for part in parts]
        assert torch.equal(torch.cat([batch.clip_ids for batch in shared]), wanted.clip_ids)
        assert torch.equal(torch.cat([batch.views[0] for batch in shared]), wanted.views[0])
    drawn = torch.cat([batch.clip_ids for batch in held.epoch(2, clusters=clusters)]).numpy()
    assert len(drawn) == 56 and not set(drawn) & {*bad} and np.ptp(np.bincount(clusters[drawn])) <= 1


def test_clips_left_out_get_the_rows_of_others_all_over_the_split() -> None:
    rows = torch.arange(6.0)[:, None]
    fill_left_out(rows, [10, 13, 14, 15], 10)
    assert rows[:, 0].tolist() == [1, 1, 2, 1, 2, 2]
    rows = torch.arange(100.0)[:, None]
    fill_left_out(rows, range(1040, 1080), 1000)  # a truncated shard
    copies = rows[40:80, 0].int().tolist()
    assert len({*copies}) == 40 and not {*copies} & {*range(40, 80)} and (copies[0], copies[-1]) == (0, 98)


@pytest.mark.parametrize("store", ["stream", "resident"])
def test_no_clip_is_left_out_unasked(pretrain: Cli, copied: Copied, tmp_path: Path, store: str) -> None:
    shards = copied("flac")
    garble(shards, *GARBLED)
    done = pretrain(shards, tmp_path / "out", "--data", store)
    refused(done, audio(shards, *GARBLED)[0].name, f"unfused-fast check {shards} reports what is wrong")
    done = pretrain(damaged(shards), tmp_path / "out", "--data", store)
    refused(done, audio(shards, LOST[0])[0], "truncated")
    done = pretrain(shards, tmp_path / "out", "--data", store, "--skip-bad", 3)
    refused(done, "4 clips of train cannot be read, --skip-bad is 3", shards)


def test_a_set_without_enough_other_clips(pretrain: Cli, copied: Copied, tmp_path: Path) -> None:
    shards, flags = copied("wav"), ["--data", "stream", "--skip-bad", 100]
    for clip in range(50):
        garble(shards, clip)
    refused(pretrain(shards, tmp_path / "out", *flags), "only 10 clips of train can be read", "batch_size = 16")
    for clip in range(50, 60):
        garble(shards, clip)
    refused(pretrain(shards, tmp_path / "out", *flags), f"{shards}: no clip of train can be read or decoded")


def test_resume_needs_the_same_clips(pretrain: Cli, copied: Copied, tmp_path: Path) -> None:
    """Stopped in its second epoch, a run ends as one that was never stopped; one clip more or less is refused."""
    shards, out = copied("flac"), tmp_path / "out"
    flags = ["--data", "stream", "--set", "train.batch_size=4", "--skip-bad", 2]
    tar = audio(shards, *GARBLED)[0]
    sound = tar.read_bytes()
    garble(shards, *GARBLED)
    broken = tar.read_bytes()
    assert pretrain(shards, tmp_path / "whole", *flags).code == 0
    with signalled_after(20):
        assert pretrain(shards, out, *flags).code == 130
    tar.write_bytes(sound)
    refused(pretrain(shards, out, *flags, "--resume"), "left_out was 7, now None")
    tar.write_bytes(broken)
    garble(shards, 9)
    refused(pretrain(shards, out, *flags, "--resume"), "left_out was 7, now 7,9")
    tar.write_bytes(broken)
    done = pretrain(shards, out, *flags, "--resume")
    assert done.code == 0, done.err
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Resource temporarily unavailable", "raise their limit (ulimit -u)"),
        ("Too many open files", "ulimit -n"),
        ("Cannot allocate memory", "free memory"),
        ("CUDA allocation failed", "end other processes on the GPU"),
        ("Can't allocate 202375168 bytes on device 0", "use a smaller train.batch_size"),
    ],
)
def test_what_the_system_lacks_is_not_blamed_on_a_shard(
    pretrain: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, advice: str
) -> None:
    """The text as DALI gives it where no thread can be started."""

    class Pipeline:
        def build(self) -> None:
            raise RuntimeError(
                "Critical error when building pipeline:\nError in CPU operator `nvidia.dali.fn.external_source`,\n"
                f"encountered:\n\n{words}\nCurrent pipeline object is no longer valid.: {words}"
            )

    monkeypatch.setattr(stream, "clip_pipeline", lambda *given, **more: Pipeline())
    done = pretrain(tones, tmp_path / "out", "--data", "stream")
    refused(done, f"split train cannot be read: {words}", advice)
    assert "unfused-fast check" not in done.error


def test_all_stages(cli: Cli, tiny: list[str], copied: Copied, tmp_path: Path) -> None:
    """Each stage lists the train clips that it left out; valid and test must be whole."""
    shards, clips = damaged(copied("flac")), GARBLED + LOST
    command = ["train", "all", shards, "--epochs", 2, *tiny, "--data", "stream", "--out", tmp_path / "out"]
    done = cli(*command, "--skip-bad", len(clips))
    assert done.code == 0, done.err
    for stage in ("pretrain", "distill", "linear-distill"):
        assert result(tmp_path / "out" / stage)["skipped"]["keys"] == [f"{clip:09d}" for clip in clips]
    assert result(tmp_path / "out" / "linear-distill")["clips"]["train"] == 60, "as the set has them"
    garble(shards, 81, "test")
    shutil.rmtree(tmp_path / "out" / "linear-distill")
    refused(cli(*command, "--skip-bad", 9, "--resume"), audio(shards, 81, "test")[0].name, "split test")
