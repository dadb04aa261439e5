"""Whether stage 2 can be made better than stage 1 on a set: each choice that could be to blame, one at a time.

Judged by validation, stage 1's encoder of the same seed beside it; test is shown, and chooses nothing. The purity of
the pseudo-labels, the share of clips whose pseudo-class has their label as its commonest, is read after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from study_setup import Study

from unfused_fast.ablation import ablate, cells_of
from unfused_fast.config import Config
from unfused_fast.partitions import normalised_mutual_information
from unfused_fast.pseudo_labels import PSEUDO_LABELS
from unfused_fast.report import mean_and_error
from unfused_fast.settings import Stage, with_values
from unfused_fast.shards.table import NO_LABEL, ShardSet

SEARCHED: dict[str, list[Any]] = {
    "train.epochs": [5, 50],
    "optim.lr": [0.0007, 0.07],
    "distill.init": ["teacher"],
    "distill.detach_teacher": [True],
    "distill.alpha": [0.3, 1.0],
    "distill.beta": [0.0, 0.3],
    "distill.head": ["linear"],
    "pseudo.k": [32, 64],
    "pseudo.feature": ["projector"],
    "pseudo.pca_dim": [0],
    "pseudo.whiten": [False],
    "aug.mixup.ratio": [0.0],
}
"""Field of stage 2 -> values in place of recommended's: how long and how fast, the start, the loss, pseudo-labels."""


def search(study: Study, target: ShardSet) -> dict[str, Any]:
    """Runs every cell; scores by seed of stage 1 and of each, shares of 1. Cells that failed are named."""
    configs = study.recommended()
    cells = cells_of(configs, "distill", SEARCHED, True)
    out, seeds = study.folder("search", target), range(study.size.seeds)
    summary = ablate(cells, "distill", study.shards, target, out, len(seeds), study.pool.options, study.pool)
    stage1 = {seed: _stage1(study, target, configs, seed) for seed in seeds}
    return {
        "task": study.task(target),
        "stage1": {name: [stage1[seed][name] for seed in seeds] for name in ("valid", "test")},
        "rows": [_row(row, stage1, target) for row in summary["rows"]],
        "labels": _with_labels(study, target, configs, stage1),
    }


def _with_labels(
    study: Study, target: ShardSet, configs: dict[Stage, Config], stage1: dict[int, dict[str, float]]
) -> dict[str, Any] | None:
    """Scores of stage 2 where its pseudo-labels are the labels; None where a clip has none. Ours: by no clustering
    can `recommended` be expected to do better.
    """
    labels = torch.from_numpy(target.clips_in("train").column("label").to_numpy().astype("int64"))
    if (labels == NO_LABEL).any():
        return None
    scores = []
    for seed in stage1:
        seeded = {stage: with_values(config, {"train.seed": seed}) for stage, config in configs.items()}
        teacher = study.pool.pretrain(seeded["pretrain"], study.shards)
        student = study.pool.distill(seeded["distill"], target, teacher, labels)
        scores.append(study.pool.linear(seeded["linear"], target, student).result)
    found = {name: [one[name] for one in scores] for name in ("valid", "test")}
    return {
        **found,
        **{
            gain: [mine - stage1[seed][name] for seed, mine in zip(stage1, found[name], strict=True)]
            for gain, name in (("gain", "valid"), ("test_gain", "test"))
        },
    }


def _stage1(study: Study, target: ShardSet, configs: dict[Stage, Config], seed: int) -> dict[str, float]:
    """Scores of stage 1's encoder; its run is there, unless every cell has failed."""
    encoder = study.pool.pretrain(with_values(configs["pretrain"], {"train.seed": seed}), study.shards)
    scores = study.pool.linear(with_values(configs["linear"], {"train.seed": seed}), target, encoder).result
    return {"valid": scores["valid"], "test": scores["test"]}


def _row(row: dict[str, Any], stage1: dict[int, dict[str, float]], target: ShardSet) -> dict[str, Any]:
    of_runs = [pseudo_label_scores(Path(runs[1]), target) for runs in row["runs"]]
    return {
        "settings": row["settings"],
        "purity": [purity for purity, _ in of_runs],
        "nmi": [nmi for _, nmi in of_runs],
        "valid": row["valid"]["values"],
        "test": row["test"]["values"],
        "gain": [
            valid - stage1[seed]["valid"] for seed, valid in zip(row["seeds"], row["valid"]["values"], strict=True)
        ],
        "failed": [one["reason"] for one in row["failed"]],
    }


def pseudo_label_scores(run: Path, target: ShardSet) -> tuple[float, float]:
    """Purity and NMI of a run's pseudo-labels with the labels of the same clips; unlabelled clips are left out."""
    found = torch.from_numpy(pq.read_table(run / PSEUDO_LABELS).column("pseudo_label").to_numpy().copy())
    truth = torch.from_numpy(target.clips_in("train").column("label").to_numpy().astype("int64"))
    known = truth != NO_LABEL
    found, truth = found[known], truth[known]
    width = int(truth.max()) + 1
    joint = torch.bincount(found * width + truth, minlength=(int(found.max()) + 1) * width).view(-1, width)
    return float(joint.amax(dim=1).sum()) / len(truth), normalised_mutual_information(found, truth)


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of best mean validation."""
    return max((row for row in rows if row["valid"]), key=lambda row: mean_and_error(row["valid"])[0])
