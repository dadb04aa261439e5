"""Stage 1 stops, saved, when nearly all clips are in one cluster time after time; sound runs never do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from collapsing import COLLAPSES, FlatProjector
from method_kinds import sets
from stopping import stopped_after
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unfused_fast.clustering.scores import COLLINEAR, IN_A_ROW, LARGEST_SHARE, Collapse, Collapsed
from unfused_fast.config.fields import Config
from unfused_fast.models import audiontt as model
from unfused_fast.shards.demo import union_rows
from unfused_fast.shards.packing.pack import pack

Cli = Callable[..., Any]
SAID = (
    "epoch 3: the clusters have collapsed: 3 clusterings in a row had at least 95% of the clips in one of 4 clusters "
    "(now 100.0%), which leaves nothing to learn; start again with --overwrite and --set optim.lr=1e-13 (now 1e-12), "
    "or more clips a batch (train.batch_size), or --set cluster.empty=split; epoch 2 is the last one saved"
)


@pytest.fixture
def flat(cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`flat(*flags)`: a run of a network whose projections are all the same."""
    monkeypatch.setattr(model, "Projector", FlatProjector)
    command = ["train", "pretrain", tones, "--out", tmp_path / "run", "--epochs", 8, *tiny, *COLLAPSES]
    return lambda *flags: cli(*command, *flags)


def last(run: Path) -> Any:
    return json.loads(sorted((run / "checkpoints").glob("*.json"))[-1].read_text())


@pytest.mark.parametrize("saved", [[], ["--save-every", "5epochs"], ["--set", "bank.fill=pass"]])
def test_a_collapsed_run_stops_saved(flat: Cli, tmp_path: Path, saved: list[str]) -> None:
    """What was not to be saved yet is saved too. Going on ends in the same way."""
    ended = flat(*saved)
    assert ended.code == 1 and ended.error == SAID
    run = tmp_path / "run"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["largest_cluster"] for line in log] == [1.0, 1.0], "of the epochs that were trained"
    state = last(run)
    assert (state["epoch"], state["batch"], state["collapsed"]) == (2, 0, 2) and not (run / "result.json").exists()
    again = flat(*saved, "--resume")
    assert again.code == 1 and again.error == SAID
    assert last(run) == state
    if not saved:
        with stopped_after(1):
            assert flat("--overwrite").code == 130
        assert flat("--resume").error == SAID, "the count goes on with the run"


def test_only_a_row_counts() -> None:
    collapse = Collapse(Config())
    for share in (1.0, LARGEST_SHARE, LARGEST_SHARE - 1e-6, 0.99, 0.99, 0.5):
        collapse.check(share, 4, epoch=1)
    for epoch in range(1, 5):
        collapse.check(1.0, 1, epoch)
    assert collapse.in_a_row == 0 and IN_A_ROW == 3, "one cluster alone, as pic may find, never collapses"
    collapse.check(0.95, 4, epoch=7)
    collapse.check(0.96, 4, epoch=8)
    with pytest.raises(Collapsed, match=r"epoch 9: .* one of 4 clusters \(now 97\.0%\)"):
        collapse.check(0.97, 4, epoch=9)
    assert collapse.in_a_row == 2, "as a checkpoint of epoch 8 has it"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 of the recordings that come with the package, of both kinds, all for training."""
    rows = union_rows()
    packed = pack(rows[:: len(rows) // 128][:128], tmp_path_factory.mktemp("recordings") / "set", workers=0)
    return packed.shard_set.directory


@pytest.mark.parametrize(("mode", "warned"), [("eval", True), ("train", False)])
def test_a_collinear_bank_is_warned_about_once(
    cli: Cli, recordings: Path, tmp_path: Path, mode: str, warned: bool
) -> None:
    """Filled in eval mode, the first bank goes through BatchNorm layers that have no statistics yet."""
    sizes = "model.channels=8 model.dim=256 model.proj_hidden=256 model.proj_dim=64 cluster.k=16 train.batch_size=32"
    flags = ["--device", "cpu", "--epochs", 2, *sets(f"{sizes} bank.init_mode={mode}")]
    done = cli("train", "pretrain", recordings, "--out", tmp_path / "run", *flags)
    assert done.code == 0
    said = [line for line in done.err.splitlines() if "nearly collinear" in line]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert (log[0]["mean_direction"] >= COLLINEAR) == warned
    assert [line.startswith("warning: epoch 1:") for line in said] == ([True] if warned else [])
    assert all("--set bank.init_mode=train" in line for line in said)
    tensorboard = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()["scalars"]
    assert any("effective_rank" in tag for tag in tensorboard)
