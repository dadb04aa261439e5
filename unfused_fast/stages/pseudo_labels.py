"""Pseudo-labels of target data: the frozen teacher's features, clustered (paper section 3, part 2).

N target clips, K pseudo-classes. The target's labels are never read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from unfused_fast.clustering import Points, match_clusters, pseudo_label_kmeans, resolve_pca_dim
from unfused_fast.config import Config
from unfused_fast.data import SkippedClips, Window, key
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.stages.features import extract, load_encoder
from unfused_fast.training import Options, train_clips

PSEUDO_LABELS = "pseudo_labels.parquet"
"""File of a run: those of the last clustering."""


def pseudo_labels(
    config: Config,
    shards: ShardSet,
    teacher: Path,
    device: torch.device,
    epoch: int = 0,
    previous: Tensor | None = None,
    skipped: SkippedClips | None = None,
) -> tuple[Tensor, int]:
    """Clusters the target's train split with the frozen teacher -> (N,) pseudo-labels on the device, and K.

    K is `pseudo.k`, or the number of class names in the manifest: their count alone, as in the paper (K = t).

    Args:
        epoch: before which they are refreshed; 0: the first time. Random starts and windows are drawn by it.
        previous: (N,) the pseudo-labels before; clusters keep the names of most of their clips.
        skipped: as of Loader.
    """
    k = len(shards.manifest.label_names) if config.pseudo.k == "auto" else config.pseudo.k
    if k < 2:
        raise UserError(
            f"{shards.directory}: the set names {k} classes, so K is not known; give it with --set pseudo.k=N (at "
            "least 2)"
        )
    if k > (clips := train_clips(shards)):
        raise UserError(
            f"pseudo.k = {k}, but the train split has {clips} clips; use --set pseudo.k=N with N up to {clips}"
        )
    frozen, kind = load_encoder(teacher, device), config.pseudo.feature
    pool = "mean" if kind.startswith("block") else frozen.config.model.pool
    settings, note, store, seed = config.pseudo, "teacher features", config.data.store, config.train.seed
    window = Window(settings.seconds, settings.crop, seed, epoch) if settings.seconds else None
    parts = [
        # `train` is read again by the student
        extract(
            frozen,
            shards,
            split,
            kind,
            pool,
            device,
            note,
            store,
            read_again=split == "train",
            window=window,
            skipped=skipped,
        )
        for split in ("train", *(split for split in settings.splits if split != "train"))
    ]
    features = torch.cat(parts)
    found = pseudo_label_kmeans(
        features,
        k,
        pca_dim=resolve_pca_dim(settings.pca_dim, len(features)),
        whiten=settings.whiten,
        iterations=settings.iterations,
        n_init=settings.n_init,
        seed=key(seed, epoch) >> 1 if epoch else seed,
    )
    labels = found.assignments[:clips]
    if previous is not None:
        labels = match_clusters(labels, previous, k, Points(features))[labels]
    return labels, k


def pseudo_labels_together(
    config: Config,
    shards: ShardSet,
    teacher: Path,
    options: Options,
    skipped: SkippedClips,
    epoch: int = 0,
    before: Tensor | None = None,
) -> tuple[Tensor, int]:
    """pseudo_labels of rank 0, on every rank."""
    found = list[Tensor]()

    def cluster() -> int:
        on_gpu = [options.device] if options.device.type == "cuda" else []
        with torch.random.fork_rng(on_gpu):  # what the student draws is not to depend on which rank does this
            targets, k = pseudo_labels(config, shards, teacher, options.device, epoch, before, skipped)
        found.append(targets)
        return k

    k = int(options.ranks.first(cluster))
    if not found:
        found.append(torch.empty(train_clips(shards), dtype=torch.int64, device=options.device))
    return options.ranks.from_first(found[0]), k


def labels_digest(labels: Tensor) -> str:
    """sha256 of pseudo-labels (N,) int64 that were given."""
    return hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()


def write_pseudo_labels(path: Path, shards: ShardSet, targets: Tensor) -> None:
    """clip_id, key, pseudo_label: one row a clip of the train split."""
    clips = shards.clips_in("train")
    pq.write_table(
        pa.table(
            {"clip_id": clips.column("clip_id"), "key": clips.column("key"), "pseudo_label": targets.cpu().numpy()}
        ),
        path,
    )
