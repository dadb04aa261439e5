"""Several processes that share the features of frozen encoders: the same bits as one, and one sentence of an error."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ranks as harness
import soundfile
import torch
from outcomes import Cli
from rank_jobs import run_jobs

import unfused_fast
from unfused_fast.commands.launching import launcher
from unfused_fast.data.stream import Loader
from unfused_fast.distributed.shares import Share
from unfused_fast.shards.sets.shard_files import read_index
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.features import load_encoder

OF_COMMANDS = {
    "linear": ((1, 4), ["train", "linear", "--epochs", "2"]),
    "linear, in train mode": ((1, 2), ["train", "linear", "--epochs", "2", "--set", "eval.encoder_mode=train"]),
    "evaluate": ((1, 2), ["evaluate", "--knn", "--seeds", "2"]),
    "distill": ((1, 2), ["train", "distill", "--epochs", "1"]),
    "all": ((1, 2), ["train", "all", "--epochs", "1"]),
}
"""Numbers of ranks, and the command, which gets a set, an encoder where it takes one, and OUT."""
CHANGING = {"seconds", "run", "clips_per_second", "start_seconds", "first_epoch_seconds"}


@pytest.mark.parametrize(
    ("rows", "ranks", "block"), [(60, 4, 8), (60, 3, 1), (7, 4, 8), (0, 2, 8), (64, 8, 8), (65, 2, 32)]
)
def test_shares_in_blocks_are_all_rows_once(rows: int, ranks: int, block: int) -> None:
    parts = Share(1, ranks, block).parts(rows)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.start % block == 0 or part.start == rows for part in parts)
    blocks = [-(-(part.stop - part.start) // block) for part in parts]
    assert max(blocks) - min(blocks) <= 1 and Share(1, ranks, block).of(rows) == parts[1]


@pytest.fixture(scope="module")
def outs(
    tones: Path, pretrained: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], Path]:
    """`outs[kind, ranks]`: the folder that each command wrote on each number of ranks."""
    folder, jobs = tmp_path_factory.mktemp("outs"), dict[tuple[str, int], Any]()
    for kind, (numbers, arguments) in OF_COMMANDS.items():
        for ranks in numbers:
            given = [] if kind == "all" else ["--teacher" if kind == "distill" else "--encoder", str(pretrained)]
            heads = ["--device", "cpu", "--set", "eval.epochs=5"]
            flags = tiny if kind in ("distill", "all") else heads
            rest = [str(tones), *given, "--out", str(folder / f"{kind}-{ranks}"), *flags]
            jobs[kind, ranks] = {"ranks": ranks, "arguments": [*arguments, *rest]}
    for (kind, ranks), ends in zip(jobs, run_jobs([*jobs.values()]), strict=True):
        assert [end["code"] for end in ends] == [0] * ranks, (kind, ends)
        assert all(not end["said"] for end in ends[1:]), "rank 0 alone speaks"
    return {(kind, ranks): folder / f"{kind}-{ranks}" for kind, ranks in jobs}


@pytest.mark.parametrize("kind", OF_COMMANDS)
def test_any_number_of_ranks_has_the_same_result(outs: dict[tuple[str, int], Path], kind: str) -> None:
    one, *others = (outs[kind, ranks] for ranks in OF_COMMANDS[kind][0])
    table = {"evaluate": "predictions.parquet", "distill": "pseudo_labels.parquet"}.get(kind)
    for other in others:
        assert sorted(path.name for path in other.iterdir()) == sorted(path.name for path in one.iterdir())
        if table is not None:
            assert pq.read_table(other / table).equals(pq.read_table(one / table))
        if kind not in ("distill", "all"):  # which train networks: test_ranks.py
            name = "evaluation.json" if kind == "evaluate" else "result.json"
            wanted, found = (json.loads((out / name).read_text()) for out in (one, other))
            assert {key: value for key, value in found.items() if key not in CHANGING} == {
                key: value for key, value in wanted.items() if key not in CHANGING
            }


def test_features_are_the_same_bits_on_any_number_of_ranks(tones: Path, pretrained: Path, tmp_path: Path) -> None:
    """Three ranks too, which do not divide the partitions of an epoch; rows are those of each clip alone."""
    copied = Path(shutil.copytree(tones, tmp_path / "copy", ignore=shutil.ignore_patterns("*.cache")))
    job = {"check": "features", "folder": str(tmp_path), "shards": str(copied), "encoder": str(pretrained)}
    for ends in run_jobs([{**job, "ranks": ranks} for ranks in (3, 1, 2, 4)]):
        assert [end["code"] for end in ends] == [0] * len(ends), ends
    shards, encoder = open_shards(copied), load_encoder(pretrained, torch.device("cpu"))
    for kind, (split, options) in harness.FEATURES.items():
        one, *others = (np.load(tmp_path / f"{kind}-{ranks}.npy") for ranks in (1, 2, 3, 4))
        assert all(np.array_equal(one, other) for other in others), kind
        loader = Loader(
            shards, split, encoder.config, device=torch.device("cpu"), batch_size=1, statistics=encoder.log_mel
        )
        first, missing = shards.first_id(split), options.get("left_out", ())
        with torch.no_grad():
            for batch in loader.whole_clips():
                assert batch.frame_counts is not None
                if (clip := int(batch.clip_ids)) not in missing:
                    wanted = encoder.features(batch.views[0], batch.frame_counts, "encoder", "maxmean")
                    rounded = 1e-2 if kind == "resident" else 1e-5  # log-mels in float16
                    np.testing.assert_allclose(one[clip - first], wanted[0], atol=rounded, rtol=rounded)


def test_a_benchmark_is_the_same_on_two_ranks(
    tones: Path, unlabelled: Path, pretrained: Path, tiny_any: list[str], tmp_path: Path
) -> None:
    """Of a task that is there, one whose set has no folds, and one that is missing; the second time all is found."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "tut").symlink_to(tones)
    (data / "us8k").symlink_to(unlabelled)
    others = ["--methods", "simclr", "--pretrain-on", str(tones), "--pretrain-epochs", "1"]
    flags = ["--teacher", str(pretrained), "--tasks", "tut,us8k,ic", "--epochs", "1", *others, *tiny_any, "--out"]
    runs = [(1, "one"), (2, "two"), (2, "two")]
    jobs = [{"ranks": ranks, "arguments": ["lape", str(data), *flags, str(tmp_path / out)]} for ranks, out in runs]
    ends = run_jobs(jobs)
    assert all(end["code"] == 0 for job in ends for end in job), ends
    assert all(not end["said"] for job in ends for end in job[1:]), "rank 0 alone speaks"
    assert "already finished" in ends[2][0]["said"]
    one, two = (json.loads((tmp_path / name / "lape.json").read_text())["tasks"] for name in ("one", "two"))
    assert [row["state"] for row in two] == ["done", "wrong", "missing"]
    for wanted, found in zip(one, two, strict=True):
        rounded = {"test", "standard_error", "interval", "macro_f1", "by_fraction", "runs", "methods"} & set(wanted)
        assert {key: found[key] for key in set(found) - rounded} == {key: wanted[key] for key in set(wanted) - rounded}


def test_a_comparison_is_the_same_on_two_ranks(tones: Path, tiny_any: list[str], tmp_path: Path) -> None:
    """Where MoCo wants a longer queue than there are clips; what two ranks finished one finds, and makes none again."""
    methods = ["--methods", "simclr,moco", "--set", "method.queue=1000", "--set", "eval.epochs=5", "--epochs", "1"]
    given = ["compare", str(tones), "--tasks", str(tones), *methods, *tiny_any, "--out"]
    runs = [(2, "two"), (1, "one"), (1, "two")]
    jobs = [{"ranks": ranks, "arguments": [*given, str(tmp_path / out)]} for ranks, out in runs]
    ends = run_jobs(jobs)
    assert all(end["code"] == 0 for job in ends for end in job), ends
    assert not ends[0][1]["said"], "rank 0 alone speaks"
    assert ends[2][0]["said"].count("already finished") == 3
    one, two = (json.loads((tmp_path / name / "compare.json").read_text())["rows"] for name in ("one", "two"))
    assert [row["state"] for row in two] == ["done", "done", "done", "failed"]
    for wanted, found in zip(one[:2], two[:2], strict=True):
        assert found == wanted, "baselines are the same bits"
    assert two[3]["failed"] == one[3]["failed"] and "method.queue = 1000" in two[3]["failed"][0]["reason"]
    assert Path(two[2]["runs"][0]).name == Path(one[2]["runs"][0]).name
    log = [json.loads(line) for line in (Path(two[2]["runs"][0]) / "log.jsonl").read_text().splitlines()]
    assert [0 < line["collectives_share"] <= 1 for line in log] == [True], "of the epoch, not of what was before"
    assert two[2]["mean"]["valid"]["mean"] == pytest.approx(one[2]["mean"]["valid"]["mean"], abs=0.2)
    assert {path.name for path in (tmp_path / "two").iterdir()} >= {"compare.json", "compare.md", "compare.png"}


def test_embeddings_are_the_same_bits_on_any_number_of_ranks(
    tone_rows: list[SourceRow], pretrained: Path, tmp_path: Path
) -> None:
    """Also of a run that the last of two ranks stops, and three finish; rows are those of each file alone."""
    assert isinstance(tone_rows[0].path, Path)
    folder = tone_rows[0].path.parent
    given = {"check": "embed", "folder": str(folder), "encoder": str(pretrained)}
    runs = [(1, "on-1.npz"), (2, "on-2.npz"), (4, "on-4.parquet"), (2, "stopped.npz"), (3, "stopped.npz")]
    jobs = [{**given, "ranks": ranks, "out": str(tmp_path / name)} for ranks, name in runs]
    jobs[3]["stops"] = 2
    ends = run_jobs(jobs)
    assert all(end["code"] == 0 for job in ends for end in job), ends
    # six blocks of eight files of the first rank, two of the second
    assert [end["said"].strip() for end in ends[3]] == [
        f"{tmp_path / 'stopped.npz'}: stopped; 64 files saved; run the same command again to continue"
    ] * 2
    with np.load(tmp_path / "on-1.npz") as one, np.load(tmp_path / "on-2.npz") as two:
        with np.load(tmp_path / "stopped.npz") as gone_on:
            for name in ("embeddings", "path", "seconds"):
                assert np.array_equal(one[name], two[name]) and np.array_equal(one[name], gone_on[name])
        four = pq.read_table(tmp_path / "on-4.parquet")
        assert np.array_equal(np.stack(four["embedding"].to_pylist()).astype(np.float32), one["embeddings"])
        embedder = unfused_fast.load(pretrained, device="cpu")
        for row, path in zip(one["embeddings"], sorted(folder.iterdir()), strict=True):
            wanted = embedder.embed(soundfile.read(path, dtype="float32")[0], 16000)[0]
            np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob("*.partial"))


def test_devices_starts_processes_for_embed_too(
    cli: Cli, pretrained: Path, tone_rows: list[SourceRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of two that were started one says what was done."""
    assert isinstance(tone_rows[0].path, Path)
    started, out = list[int](), tmp_path / "x.parquet"
    monkeypatch.setattr(launcher, "_run_here", lambda count, *more: started.append(count) or 0)
    command = ["embed", tone_rows[0].path.parent, "--encoder", pretrained, "--out", out, "--device", "cpu"]
    assert cli(*command, "--devices", 2).code == 0 and started == [2] and not out.exists()
    ((first, second),) = run_jobs([{"ranks": 2, "arguments": [*map(str, command), "--workers", "1"]}])
    assert first["said"].count(f"{out}: 96 files") == 1 and len(pq.read_table(out)) == 96, first
    assert second == {"code": 0, "said": ""}


def test_an_error_of_one_rank_ends_all_with_one_sentence(tones: Path, pretrained: Path, tmp_path: Path) -> None:
    """Of a shard whose clips the second rank reads, and of an OUT that is there."""
    copied = Path(shutil.copytree(tones, tmp_path / "copy", ignore=shutil.ignore_patterns("*.cache")))
    tar = sorted(copied.glob("train-*.tar"))[-1]
    audio = next(member for member in read_index(tar.with_suffix(".idx"))[-3] if member.extension in ("wav", "flac"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: audio.offset] + bytes(audio.size) + whole[audio.offset + audio.size :])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes").touch()
    flags = ["--encoder", str(pretrained), "--device", "cpu", "--data", "stream", "--out"]
    commands = {
        "cannot be read or decoded": ["train", "linear", str(copied), *flags, str(tmp_path / "linear")],
        f"{tar.name}: it cannot be read": ["evaluate", str(copied), *flags, str(tmp_path / "evaluation")],
        "taken: it exists and is not an evaluation": ["evaluate", str(tones), *flags, str(taken)],
        "taken: it exists and is not a run": ["train", "linear", str(tones), *flags, str(taken)],
    }
    jobs = [{"ranks": 2, "arguments": arguments} for arguments in commands.values()]
    for reason, (first, second) in zip(commands, run_jobs(jobs), strict=True):
        said = re.sub(r"\s+", " ", first["said"])
        assert first["code"] == second["code"] == 1 and not second["said"], (first, second)
        assert said.count("error: ") == 1 and reason in said and "Traceback" not in said, said
    assert not (tmp_path / "linear").exists() and not list(tmp_path.glob("evaluation*"))


def test_a_rank_that_is_killed_ends_the_others(tones: Path, pretrained: Path, tmp_path: Path) -> None:
    flags = ["--encoder", str(pretrained), "--device", "cpu", "--data", "stream", "--no-baselines"]
    arguments = ["evaluate", str(tones), *flags, "--out", str(tmp_path / "evaluation")]
    ((first, second),) = run_jobs([{"ranks": 2, "killed": True, "arguments": arguments}])
    assert first["code"] == 1 and second["code"] == -9
    assert "error: another process of this run ended or does not answer" in re.sub(r"\s+", " ", first["said"])
    assert not list(tmp_path.glob("evaluation*"))
