"""Whether stage 2 can be made better than stage 1 on a set: each choice that could be to blame, one at a time.

Judged by validation, stage 1's encoder of the same seed beside it; test is shown, and chooses nothing. The purity of
the pseudo-labels, the share of clips whose pseudo-class has their label as its commonest, is read after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from study_setup import Study
from torch import Tensor

from unfused_fast.clustering import normalised_mutual_information
from unfused_fast.errors import UserError
from unfused_fast.evaluation import ablate, cells_of
from unfused_fast.evaluation.ablation import Cell
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.distillation import PSEUDO_LABELS

SEARCHED: dict[str, list[Any]] = {
    "train.epochs": [5, 50],
    "optim.lr": [3e-5, 3e-3],
    "distill.init": ["random"],
    "distill.teacher_share": [0.0],
    "distill.contrast": [0.0],
    "distill.kl_temperature": [1.0],
    "distill.detach_teacher": [False],
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


def search_cells(study: Study) -> list[Cell]:
    """`recommended`, and each value by itself. Raises UserError for one that does not go with the study's settings."""
    return cells_of(study.recommended(), "distill", SEARCHED, True)


def search(study: Study, target: ShardSet) -> dict[str, Any]:
    """Runs every cell; scores, shares of 1, of stage 1 by seed that has an encoder, and of each cell. What failed is
    named.
    """
    out, pool = study.folder("search", target), study.pool
    summary = ablate(search_cells(study), "distill", study.shards, target, out, study.size.seeds, pool)
    stage1 = dict[int, Mapping[str, float]]()
    for seed in sorted({seed for row in summary["rows"] for seed in row["seeds"]}):
        configs = study.recommended(seed)
        encoder = pool.pretrain(configs["pretrain"], study.shards)
        stage1[seed] = pool.linear(configs["linear"], target, encoder).result
    return {
        "task": study.task(target),
        "stage1": {name: [scores[name] for scores in stage1.values()] for name in ("valid", "test")},
        "rows": [_row(row, stage1, target) for row in summary["rows"]],
        "labels": _with_labels(study, target, stage1),
    }


def _row(row: Mapping[str, Any], stage1: Mapping[int, Mapping[str, float]], target: ShardSet) -> dict[str, Any]:
    of_runs = [pseudo_label_scores(Path(runs[1]), target) for runs in row["runs"]]
    valid = row["valid"]["values"]
    return {
        "settings": row["settings"],
        "purity": [purity for purity, _ in of_runs],
        "nmi": [nmi for _, nmi in of_runs],
        "valid": valid,
        "test": row["test"]["values"],
        "gain": [score - stage1[seed]["valid"] for seed, score in zip(row["seeds"], valid, strict=True)],
        "failed": [one["reason"] for one in row["failed"]],
    }


def _with_labels(study: Study, target: ShardSet, stage1: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Scores of stage 2 where its pseudo-labels are the labels, over the seeds that did not fail. Ours: by no
    clustering can `recommended` be expected to do better.
    """
    found: dict[str, Any] = {"purity": [1.0], "nmi": [1.0], "valid": [], "test": [], "gain": [], "failed": []}
    for seed, before in stage1.items():
        configs = study.recommended(seed)
        teacher = study.pool.pretrain(configs["pretrain"], study.shards)
        try:
            student = study.pool.distill(configs["distill"], target, teacher, labels_of(target))
            scores = study.pool.linear(configs["linear"], target, student).result
        except UserError as error:
            found["failed"].append(str(error))
            continue
        found["valid"].append(scores["valid"])
        found["test"].append(scores["test"])
        found["gain"].append(scores["valid"] - before["valid"])
    return found


def labels_of(target: ShardSet) -> Tensor:
    """(N,) int64, the labels of the train split; a set where one is missing is refused before."""
    return torch.from_numpy(target.clips_in("train").column("label").to_numpy().astype("int64"))


def pseudo_label_scores(run: Path, target: ShardSet) -> tuple[float, float]:
    """Purity and NMI of a run's pseudo-labels with the labels of the same clips."""
    found = torch.from_numpy(pq.read_table(run / PSEUDO_LABELS).column("pseudo_label").to_numpy().copy())
    truth = labels_of(target)
    width = int(truth.max()) + 1
    joint = torch.bincount(found * width + truth, minlength=(int(found.max()) + 1) * width).view(-1, width)
    return float(joint.amax(dim=1).sum()) / len(truth), normalised_mutual_information(found, truth)
