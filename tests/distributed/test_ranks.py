"""Several processes that train together: the same run as one, on any number of them; what they say of each other."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from collapsing import COLLAPSES
from method_kinds import sets
from rank_jobs import run_jobs
from same_runs import assert_same_run, log_of

from unfused_fast.clustering.bank_files import Generation, open_bank
from unfused_fast.distributed.ranks import Ranks
from unfused_fast.distributed.shared_layers import gather_rows, share_layers

Start = Callable[..., "subprocess.Popen[str]"]
Cli = Callable[..., Any]
RANKS = (1, 2, 4)
DECAR_V1 = "model.encoder=audiontt data.crop_seconds=0.95 cluster.algo=pca_kmeans cluster.pca_dim=8"
BESIDE = "views.same_crop=false views.local=1 bank.encoder=follower method.ema=0.9 train.batch_size=17 optim.lr=0.01"
SGD = sets("optim.name=sgd optim.lr=0.007")
"""AdamW makes of a gradient that is 0 but for rounding, as before a BatchNorm, a whole step."""
STREAMED = "optim.lr=0.01 data.norm=running bank.view=training cluster.k=4,6 bank.init_mode=train train.batch_size=17"
KINDS = {
    "pretrain": ["pretrain", *sets("optim.lr=0.01 bank.view=separate")],
    "one view, streamed, running norm, two heads": ["pretrain", "--data", "stream", *sets(STREAMED)],
    "beside simclr": ["pretrain", *sets(f"loss.instance=simclr {BESIDE}")],
    "beside barlow": ["pretrain", *sets(f"loss.instance=barlow {BESIDE}")],
    "decar-v1": ["pretrain", "--preset", "decar-v1", *sets(DECAR_V1)],
    "distill": ["distill", *SGD, *sets("distill.contrast=0 pseudo.refresh_epochs=2")],
    "distill with a contrast": ["distill", *SGD],
}
"""Name -> stage and flags. Sixty clips: the last batch of an epoch is partial, and shares of a batch differ in size."""
FOUR = "pretrain", "distill"
"""Kinds that are trained on four ranks too, and for three epochs; the others on one and two, for two."""
SIGNS = {"instance_loss", "alignment", "uniformity", "diagonal", "off_diagonal"}
"""Of an instance term, in the log."""


def ranks_of(kind: str) -> tuple[int, ...]:
    return RANKS if kind in FOUR else RANKS[:2]


def parts_of(run: Path) -> list[dict[str, float]]:
    """Of each epoch the seconds of its parts."""
    return [json.loads(line)["parts"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(
    tones: Path, pretrained: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """`trained(kind, ranks)`: a finished run."""
    folder = tmp_path_factory.mktemp("ranks")

    def out(kind: str, ranks: int) -> Path:
        return folder / f"{kind.replace(' ', '-')}-{ranks}"

    jobs = []
    for kind, (stage, *flags) in KINDS.items():
        more = ["--teacher", str(pretrained)] if stage == "distill" else []
        for ranks in ranks_of(kind):
            epochs = "3" if kind in FOUR else "2"
            command = ["train", stage, str(tones), *more, "--out", str(out(kind, ranks)), "--epochs", epochs]
            jobs.append({"ranks": ranks, "arguments": [*command, *tiny, *flags]})
    for job, ends in zip(jobs, run_jobs(jobs), strict=True):
        assert [end["code"] for end in ends] == [0] * job["ranks"], (job, ends)
        assert all(not end["said"] for end in ends[1:]), "rank 0 alone speaks"
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ranks_trains_the_same(trained: Callable[[str, int], Path], kind: str) -> None:
    one, *others = (trained(kind, ranks) for ranks in ranks_of(kind))
    assert all("collectives" not in parts for parts in parts_of(one))
    for other in others:
        for wanted, found in zip(log_of(one), log_of(other), strict=True):
            assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5), "the loss of each epoch"
            rounded = {"mean_cosine", "mean_direction", "effective_rank", "first_direction"} | SIGNS
            rounded &= set(wanted)
            spread = {name: wanted[name] for name in rounded}
            assert {name: found[name] for name in rounded} == pytest.approx(spread, rel=1e-4, abs=1e-4)
            exact = set(wanted) - rounded - {"loss"}
            assert {name: found[name] for name in exact} == {name: wanted[name] for name in exact}, "clusters, rates"
        shares = [json.loads(line)["collectives_share"] for line in (other / "log.jsonl").read_text().splitlines()]
        assert len(shares) == len(log_of(one))
        assert all(0 < share <= 1 for share in shares), "of the epoch, not of what came before"
        if KINDS[kind][0] == "pretrain":
            banks = [open_bank(run) for run in (one, other)]
            assert torch.equal(banks[0].assignments(), banks[1].assignments())
            torch.testing.assert_close(banks[0].rows(), banks[1].rows(), rtol=0, atol=1e-4)


def test_a_run_goes_on_on_another_number_of_ranks(
    trained: Callable[[str, int], Path], tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Stopped within an epoch on two ranks, to the end on two: the same bits; on one or four, rounded differently."""
    stage, *flags = KINDS["pretrain"]
    whole = trained("pretrain", 2)
    stopped = [tmp_path / f"on-{ranks}" for ranks in RANKS]
    command = ["train", stage, str(tones), *tiny, *flags, "--epochs", "3", "--out"]
    begun = run_jobs([{"ranks": 2, "arguments": [*command, str(out)], "stop_after": 5} for out in stopped])
    assert all(end["code"] == 130 for ends in begun for end in ends), begun
    assert "stopped after batch 2 of epoch 2, saved" in begun[0][0]["said"]
    ended = run_jobs(
        [
            {"ranks": ranks, "arguments": [*command, str(out), "--resume"]}
            for ranks, out in zip(RANKS, stopped, strict=True)
        ]
    )
    assert all(end["code"] == 0 for ends in ended for end in ends), ended
    assert_same_run(stopped[1], whole)
    for ranks, out, ends in zip((1, 4), stopped[::2], ended[::2], strict=True):
        assert f"on {ranks} ranks now, 2 before" in re.sub(r"\s+", " ", ends[0]["said"])
        losses = [[row["loss"] for row in log_of(run)] for run in (out, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_generation_of_two_ranks_is_read_by_four_and_a_damaged_one_left(
    trained: Callable[[str, int], Path], tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    """The last generation of a finished run is spoilt: its last epoch is trained again, from the one before."""
    stage, *flags = KINDS["pretrain"]
    whole = trained("pretrain", 2)
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    (out / "result.json").unlink()
    chunk = out / "bank.zarr/gen-000003/embeddings/c/0/0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    command = ["train", stage, str(tones), *tiny, *flags, "--epochs", "3", "--out", str(out), "--resume"]
    (ends,) = run_jobs([{"ranks": 4, "arguments": command}])
    said = re.sub(r"\s+", " ", ends[0]["said"])
    assert [end["code"] for end in ends] == [0] * 4, ends
    assert "not as they were written" in said and "resuming after epoch 2" in said
    assert log_of(out)[-1]["loss"] == pytest.approx(log_of(whole)[-1]["loss"], rel=1e-5)
    found, wanted = (Generation(run / "bank.zarr/gen-000003") for run in (out, whole))
    assert torch.equal(found.assignments(), wanted.assignments())
    torch.testing.assert_close(found.rows(), wanted.rows(), rtol=0, atol=1e-4)


def test_ranks_that_do_not_divide_the_partitions_are_refused(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    command = ["train", "pretrain", str(tones), *tiny, "--out", str(tmp_path / "run")]
    ((first, *others),) = run_jobs([{"ranks": 3, "arguments": command}])
    said = (
        "error: 3 processes cannot share data.partitions = 8 evenly; use 2 or 4 processes, or --set data.partitions=9, "
        "which changes the batches"
    )
    assert first["code"] == 1 and first["said"].startswith(said) and len(first["said"].splitlines()) == 1
    assert [end["code"] for end in others] == [1, 1] and not any(end["said"] for end in others)
    assert not (tmp_path / "run").exists()


def test_no_rank_ends_before_the_last_save_is_written(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """Who started them takes an end for a fault, and would end rank 0 at its work."""
    command = ["train", "pretrain", str(tones), *tiny, "--out", str(tmp_path / "run")]
    slow = {"ranks": 2, "arguments": command, "stop_after": 2, "slow_saves": str(tmp_path / "run" / "checkpoints")}
    between = {"ranks": 2, "arguments": [*command[:-1], str(tmp_path / "other")], "stop_between": True}
    ends, others = run_jobs([slow, between])
    assert [end["code"] for end in [*ends, *others]] == [130] * 4, "all stop at the same step, whichever got the signal"
    assert all(re.search(r"at the end: epoch-\S+json", end["said"]) for end in ends), ends


def test_layers_of_a_shared_batch_are_those_of_the_whole(tmp_path: Path) -> None:
    """BatchNorm, dropout, gradients and gathered rows against torch's own layers on the whole batch, in float64."""
    for ends in run_jobs([{"ranks": 3, "check": "layers"}, {"ranks": 2, "check": "error"}]):
        assert [end["code"] for end in ends] == [0] * len(ends), ends


def test_each_rank_holds_its_rows_of_the_bank(tmp_path: Path) -> None:
    """Cover, stand-ins, clusters, and what one number of ranks saves and another loads (bank_on_ranks.py)."""
    jobs = [{"ranks": ranks, "check": "bank", "folder": str(tmp_path)} for ranks in (2, 4, 1, 3)]
    for ends in run_jobs(jobs):
        assert [end["code"] for end in ends] == [0] * len(ends), ends


def test_collapsed_clusters_stop_every_rank(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "pretrain", str(tones), "--out", str(out), "--epochs", "8", *tiny, *COLLAPSES]
    ((first, second),) = run_jobs([{"ranks": 2, "flat": True, "arguments": arguments}])
    assert first["code"] == second["code"] == 1, first["said"] + second["said"]
    assert "error: epoch 3: the clusters have collapsed" in first["said"] and "Traceback" not in second["said"]
    assert sorted(path.name for path in (out / "checkpoints").glob("*.json"))[-1] == "epoch-000002.json"


def test_parts_of_a_batch_are_ranks_without_shared_statistics(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    """train.accumulate=2 on one process takes the parts that two ranks take at once with model.sync_bn = false."""
    values = "model.sync_bn=false model.dropout=0 optim.lr=0.05 bank.init_mode=eval train.batch_size=20"
    values += " data.partitions=2"  # equal ones of the 60 clips, so that ranks have 10 clips of each batch
    flags = [*tiny, *sets(values), "--epochs", "1"]
    command = ["train", "pretrain", str(tones), *flags, "--out"]
    ends = run_jobs(
        [
            {"ranks": 1, "arguments": [*command, str(tmp_path / "parts"), "--set", "train.accumulate=2"]},
            {"ranks": 2, "arguments": [*command, str(tmp_path / "ranks")]},
            {"ranks": 1, "arguments": [*command, str(tmp_path / "whole")]},
        ]
    )
    assert all(end["code"] == 0 for job in ends for end in job), ends
    parts, ranks, whole = (log_of(tmp_path / name)[0]["loss"] for name in ("parts", "ranks", "whole"))
    assert parts == pytest.approx(ranks, rel=1e-5) and parts != pytest.approx(whole, rel=1e-4)


def test_batches_of_drawn_clips_of_which_a_process_may_have_one_or_none(
    tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    values = "bank.fill=pass data.sampler=uniform_clusters loss.instance=simclr train.batch_size=4"
    command = ["train", "pretrain", str(tones), *tiny, *sets(values), "--epochs", "1", "--out", str(tmp_path / "run")]
    alone = {"ranks": 2, "arguments": [*command, *sets("model.sync_bn=false")]}
    (refused, _), trained = run_jobs([alone, {"ranks": 2, "arguments": command}])
    said = "error: model.sync_bn = False, but data.sampler = uniform_clusters may draw a single clip"
    assert refused["code"] == 1 and said in refused["said"], refused
    assert [end["code"] for end in trained] == [0, 0], trained
    assert math.isfinite(log_of(tmp_path / "run")[0]["instance_loss"])


def test_gradients_in_bf16_are_near(tones: Path, tiny: list[str], tmp_path: Path) -> None:
    command = ["train", "pretrain", str(tones), *tiny, "--epochs", "2", "--out"]
    run_jobs(
        [
            {"ranks": 2, "arguments": [*command, str(tmp_path / name), "--set", f"train.gradients={name}"]}
            for name in ("fp32", "bf16")
        ]
    )
    fp32, bf16 = (log_of(tmp_path / name)[0]["loss"] for name in ("fp32", "bf16"))
    assert fp32 != bf16 and bf16 == pytest.approx(fp32, rel=0.01)


def test_gradients_of_gathered_rows_are_summed_in_the_layout_that_nccl_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses what is not contiguous; gloo sums it."""
    ranks, summed = Ranks(), list[torch.Tensor]()
    ranks.sizes = [3, 3]
    monkeypatch.setattr(Ranks, "together", True)
    monkeypatch.setattr(ranks, "gather_parts", lambda rows, sizes: torch.cat([rows, rows]))
    monkeypatch.setattr(ranks, "sum", lambda tensor: (summed.append(tensor), tensor)[1])
    rows, factors = torch.randn(3, 5, requires_grad=True), torch.randn(5, 6)
    (gather_rows(rows, ranks).T * factors).sum().backward()
    assert summed[0].is_contiguous() and torch.equal(summed[0], factors.T)
    assert rows.grad is not None and torch.equal(rows.grad, factors.T[:3])


def test_a_rank_without_clips_sends_statistics_as_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's SyncBatchNorm sends those of bfloat16 rows in float32, and for no rows zeros in the type of its input."""
    seen = list[torch.dtype]()
    monkeypatch.setattr(torch.nn.SyncBatchNorm, "forward", lambda norm, rows: seen.append(rows.dtype))
    monkeypatch.setattr(Ranks, "together", True)
    shared = share_layers(torch.nn.Sequential(torch.nn.BatchNorm1d(2)), Ranks(device=torch.device("cuda")), True)
    for clips in (0, 3):
        shared(torch.zeros(clips, 2, dtype=torch.bfloat16))
    assert seen == [torch.float32, torch.bfloat16]
