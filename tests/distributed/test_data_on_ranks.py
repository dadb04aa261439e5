"""The clips of several ranks: one first pass and one cache for all, shards that cannot be read, disks that are full."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rank_jobs import run_jobs
from same_runs import log_of

from unfused_fast.shards.sets.shard_files import read_index


@pytest.fixture
def copy_without_caches(tones: Path, tmp_path: Path) -> Path:
    """A copy of the set, to be damaged."""
    return Path(shutil.copytree(tones, tmp_path / "copy", ignore=shutil.ignore_patterns("*.cache")))


def test_ranks_make_one_cache_that_any_number_of_them_reads(
    copy_without_caches: Path, tiny: list[str], tmp_path: Path
) -> None:
    """The bytes that one process makes; `auto` maps them from the disk where one rank lacks the memory."""
    alone = shutil.copytree(copy_without_caches, tmp_path / "alone")
    runs = [(2, copy_without_caches), (1, alone), (4, copy_without_caches)]
    command, flags = ["train", "pretrain"], [*tiny, "--epochs", "1", "--data", "resident"]
    jobs = [
        {"ranks": ranks, "arguments": [*command, str(shards), *flags, "--out", str(tmp_path / f"run-{number}")]}
        for number, (ranks, shards) in enumerate(runs)
    ]
    little = ["train", "pretrain", str(copy_without_caches), *tiny, "--epochs", "1", "--out", str(tmp_path / "little")]
    *ends, last = run_jobs([*jobs, {"ranks": 2, "arguments": little, "little": True}])
    assert all(end["code"] == 0 for job in [*ends, last] for end in job), [*ends, last]
    assert "data.store: auto is mmap" in last[0]["said"]
    said = [re.sub(r"\s+", " ", job[0]["said"]) for job in ends]
    assert "log-mels of 60 clips, computed once on 2 ranks" in said[0] and "from the audio" in said[0]
    assert all("from the cache" in text for text in said[2:]) and "a process) ready in" in said[2]
    found = [sorted(path for path in shards.glob("log-mel-*/*")) for shards in (copy_without_caches, alone)]
    assert [path.name for path in found[0]] == ["frames.npy", "manifest.json"]
    assert [path.read_bytes() for path in found[0]] == [path.read_bytes() for path in found[1]]
    losses = [log_of(tmp_path / f"run-{number}")[0]["loss"] for number in range(3)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_ranks_that_share_no_folder_make_a_cache_each(
    copy_without_caches: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Copies of a set under one name: on neither machine a cache; then on the first alone; on the second alone."""
    machines = [tmp_path / name for name in ("first", "second", "third", "fourth")]
    for machine in machines:
        shutil.copytree(copy_without_caches, machine / "set")
    first, second, third, fourth = map(str, machines)
    flags = [*tiny, "--epochs", "1", "--data", "resident", "--out"]
    pairs = [(first, second), (second, third), (fourth, third)]
    jobs = [
        {"ranks": 2, "in": pair, "arguments": ["train", "pretrain", "set", *flags, str(tmp_path / f"run-{number}")]}
        for number, pair in enumerate(pairs)
    ]
    ends = run_jobs(jobs)
    assert all(end["code"] == 0 for job in ends for end in job), ends
    said = [re.sub(r"\s+", " ", job[0]["said"]) for job in ends]
    assert all("log-mels of 60 clips, computed once data" in text for text in (said[0], said[2])), said
    assert "from the cache" in said[1] and "computed once" not in said[1]
    made = [{path.name: path.read_bytes() for path in machine.glob("set/log-mel-*/*")} for machine in machines]
    assert made[0].keys() == {"frames.npy", "manifest.json"} and made[1:] == made[:1] * 3
    losses = [log_of(tmp_path / f"run-{number}")[0]["loss"] for number in range(3)]
    assert losses == [losses[0]] * 3


def test_a_rank_killed_in_the_first_pass_leaves_nothing(
    copy_without_caches: Path, tiny: list[str], tmp_path: Path
) -> None:
    command = ["train", "pretrain", str(copy_without_caches), *tiny, "--data", "resident", "--epochs", "1", "--out"]
    before = sorted(copy_without_caches.iterdir())
    ((first, second),) = run_jobs([{"ranks": 2, "killed": True, "arguments": [*command, str(tmp_path / "a")]}])
    assert first["code"] == 1 and second["code"] == -9
    assert "error: another process of this run ended or does not answer" in re.sub(r"\s+", " ", first["said"])
    assert sorted(copy_without_caches.iterdir()) == before and not (tmp_path / "a").exists()


def test_a_disk_that_is_full_for_one_rank(copy_without_caches: Path, tiny: list[str], tmp_path: Path) -> None:
    """In the first pass for the second, in saves for the first: one sentence, nothing left, and it goes on later."""
    other = Path(shutil.copytree(copy_without_caches, tmp_path / "other"))
    out, flags = (
        tmp_path / "run",
        [*tiny, "--data", "resident", "--epochs", "1", "--resume", "--out", str(tmp_path / "run")],
    )
    sets = [(other, "pass"), (copy_without_caches, "saves"), (copy_without_caches, "")]
    jobs = [
        {"ranks": 2, "full": full, "arguments": ["train", "pretrain", str(shards), *flags]} for shards, full in sets
    ]
    *refused, later = run_jobs(jobs)
    advice = "make room, set UNFUSED_CACHE", "earlier checkpoints are intact, so free space and continue with --resume"
    for what, (first, second) in zip(advice, refused, strict=True):
        said = re.sub(r"\s+", " ", first["said"])
        assert said.count("error: ") == 1 and f"written (No space left on device); {what}" in said, said
        assert first["code"] == second["code"] == 1 and not second["said"], (first, second)
    assert not list(other.glob("log-mel-*")) and [end["code"] for end in later] == [0, 0]
    assert (out / "result.json").exists() and not list(out.rglob("*.partial"))


def test_what_one_rank_cannot_read_all_say_once(copy_without_caches: Path, tiny: list[str], tmp_path: Path) -> None:
    """A shard of the second rank ends early: found by it alone, before training; or in the first pass."""
    tar = sorted(copy_without_caches.glob("train-*.tar"))[-1]
    members = read_index(tar.with_suffix(".idx"))[-3]
    whole = tar.read_bytes()
    audio = next(member for member in members if member.extension in ("wav", "flac"))
    broken = {
        "truncated": whole[: members[0].offset],
        "cannot be read or decoded": whole[: audio.offset] + bytes(audio.size) + whole[audio.offset + audio.size :],
    }
    for number, (reason, content) in enumerate(broken.items()):
        tar.write_bytes(content)
        out = tmp_path / f"run-{number}"
        command = ["train", "pretrain", str(copy_without_caches), *tiny, "--data", "resident", "--out", str(out)]
        ((first, second),) = run_jobs([{"ranks": 2, "arguments": command}])
        assert first["code"] == second["code"] == 1 and not second["said"], (first, second)
        text = re.sub(r"\s+", " ", first["said"])
        assert text.count("error: ") == 1 and reason in text and tar.name in text, text
        assert not list(copy_without_caches.glob("log-mel-*")) and not out.exists()


def test_what_one_rank_cannot_read_in_a_pass_all_say_once_saved(
    copy_without_caches: Path, tiny: list[str], tmp_path: Path
) -> None:
    tar, out = sorted(copy_without_caches.glob("train-*.tar"))[-1], tmp_path / "run"
    flags = ["--data", "stream", "--set", "bank.fill=pass", "--save-every", "9epochs", "--out", str(out)]
    command = ["train", "pretrain", str(copy_without_caches), *tiny, *flags]
    (ends,) = run_jobs([{"ranks": 2, "gone": str(tar), "arguments": command}])
    for end in ends:
        said = re.sub(r"\s+", " ", end["said"])
        assert end["code"] == 1, said
        assert f"error: {tar}" in said and "; epoch 1 is the last one saved, continue with --resume" in said, said


def test_ranks_skip_the_clips_that_cannot_be_read(tiny: list[str], copy_without_caches: Path, tmp_path: Path) -> None:
    """A shard ends before its last three clips: they are left out on any number of ranks, and named once."""
    tar = sorted(copy_without_caches.glob("train-*.tar"))[-1]
    lost = [members[0] for members in read_index(tar.with_suffix(".idx"))][-3:]
    tar.write_bytes(tar.read_bytes()[: lost[0].offset])
    flags = ["--epochs", "2", "--data", "stream", "--skip-bad", "3", "--set", "train.batch_size=17"]
    flags += ["--set", "optim.lr=0.01"]  # as in KINDS: at larger ones rounding grows tenfold in a few steps
    command = ["train", "pretrain", str(copy_without_caches), *tiny, *flags, "--out"]
    outs = {ranks: tmp_path / f"on-{ranks}" for ranks in (1, 2)}
    jobs = [{"ranks": ranks, "arguments": [*command, str(out)]} for ranks, out in outs.items()]
    for job, ends in zip(jobs, run_jobs(jobs), strict=True):
        assert [end["code"] for end in ends] == [0] * job["ranks"], ends
        keys = [member.name.partition(".")[0] for member in lost]
        assert [re.sub(r"\s+", " ", ends[0]["said"]).count(f"clip {key} of {tar.name}: ") for key in keys] == [1, 1, 1]
        assert all(not end["said"] for end in ends[1:])
        out = outs[job["ranks"]]
        assert json.loads((out / "result.json").read_text())["skipped"] == {"clips": 3, "keys": keys}
    for wanted, found in zip(*map(log_of, outs.values()), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
