"""Stage 2 on pseudo-labels of another's making, in place of clusters of the teacher's features."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from same_runs import assert_same_run
from torch import Tensor

from unfused_fast.commands.flags import pairs
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import preset, with_values
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.distillation import distill
from unfused_fast.training.options import Options

OPTIONS = Options(torch.device("cpu"))


@pytest.fixture
def config(tiny: list[str]) -> Config:
    values = pairs([word for word in tiny if "=" in word])
    return with_values(preset("recommended", "distill"), {**values, "train.epochs": 2})


def labels_of(run: Path) -> Tensor:
    return torch.from_numpy(pq.read_table(run / "pseudo_labels.parquet").column("pseudo_label").to_numpy().copy())


def test_the_teachers_own_give_the_same_student(config: Config, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    shards = open_shards(tones)
    distill(config, shards, pretrained, tmp_path / "clustered", OPTIONS)
    own = labels_of(tmp_path / "clustered")
    distill(config, shards, pretrained, tmp_path / "given", OPTIONS, own)
    assert_same_run(tmp_path / "clustered", tmp_path / "given")
    other = own.flip(0)
    distill(config, shards, pretrained, tmp_path / "other", OPTIONS, other)
    assert torch.equal(labels_of(tmp_path / "other"), other)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "given", tmp_path / "other")
    resume = dataclasses.replace(OPTIONS, resume=True)
    with pytest.raises(UserError, match="pseudo_labels"):
        distill(config, shards, pretrained, tmp_path / "given", resume, other)


def test_what_does_not_fit_is_refused(config: Config, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    shards = open_shards(tones)
    clips = shards.manifest.splits["train"].clips
    for given in (torch.zeros(clips - 1, dtype=torch.int64), torch.full((clips,), -1)):
        with pytest.raises(UserError, match="want one a clip, none negative, and no refreshing"):
            distill(config, shards, pretrained, tmp_path / "run", OPTIONS, given)
    refreshed = with_values(config, {"pseudo.refresh_epochs": 1})
    with pytest.raises(UserError, match=r"refresh_epochs = 1; want one a clip"):
        distill(refreshed, shards, pretrained, tmp_path / "run", OPTIONS, torch.zeros(clips, dtype=torch.int64))
    assert not (tmp_path / "run").exists()
