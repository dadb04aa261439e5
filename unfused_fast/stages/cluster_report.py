"""Report on the clusters of a pre-training run: sizes, most central clips, and how well clusters match labels.

N clips of the train split, n of them that the run read, D size of a projection, K clusters. Labels are read here only,
never in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unfused_fast.clustering import (
    BANK,
    Generation,
    RowSpread,
    cluster_sizes,
    clustered_points,
    generation_name,
    normalised_mutual_information,
    own_similarities,
    row_spread,
)
from unfused_fast.config import from_flat
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import NO_LABEL, ShardSet
from unfused_fast.training import Position, load_checkpoint, read_description


class Clusters(NamedTuple):
    """The last clustering of a run, on the CPU."""

    epoch: int
    points: Tensor
    """(N, D) unit rows of the memory bank as saved with that epoch, in the space that was clustered."""
    spread: RowSpread
    """Of the bank's rows."""
    assignments: Tensor
    """(N,) int64: the targets of that epoch."""
    k: int
    first_id: int
    """Clip id of row 0."""
    read: Tensor
    """(n,) rows of the clips that were read; rows of those that the run left out are copies of others."""


def last_clusters(run: Path, shards: ShardSet | None) -> Clusters:
    """Reads the bank generation of the run's newest sound checkpoint at the end of an epoch; reports why newer ones are
    not used. Raises UserError for anything but such a run, for one without such a checkpoint, and where `shards` is not
    the set that it was trained on.
    """
    recorded = read_description(run)
    if recorded is None or recorded["stage"] != "pretrain":
        found = "no config.json" if recorded is None else f"a run of stage {recorded['stage']}"
        raise UserError(f"{run}: {found}, but clusters needs a run of train pretrain; give its directory")
    if shards is not None and recorded["shards"] != shards.manifest.digest:
        raise UserError(
            f"{shards.directory}: {run} was trained on another set (their digests differ); pass that one as --shards"
        )
    _, state, unused = load_checkpoint(run / "checkpoints", _fault)
    for sentence in unused:
        console.print(f"{sentence}; these are the clusters of epoch {state['epoch']}", style="yellow")
    bank = Generation(run / BANK / generation_name(state["epoch"]))
    rows, assignments = bank.rows(), bank.assignments()
    points = clustered_points(rows, from_flat(recorded["config"]))
    first_id = bank.manifest.first_clip_id
    left_out = [int(clip_id) - first_id for clip_id in recorded["inputs"].get("left_out", "").split(",") if clip_id]
    read = torch.from_numpy(np.setdiff1d(np.arange(len(rows)), left_out))
    return Clusters(int(state["epoch"]), points, row_spread(rows), assignments, int(state["k"]), first_id, read)


def _fault(state: dict[str, Any]) -> str | None:
    """Why a checkpoint has no generation: it holds the bank itself, which is partly of the next epoch."""
    position = Position(state["epoch"], state.get("batch", 0))
    if not position.batch and state.get("bank") != "here":
        return None
    return (
        f"{position.name} was saved within epoch {state['epoch'] + 1}, whose memory bank is not complete yet; "
        "continue with --resume to the end of that epoch"
    )


def describe(clusters: Clusters, shards: ShardSet | None, top: int) -> dict[str, Any]:
    """Of the clips that were read: totals and, largest first, each non-empty cluster: size, share, its `top` most
    central clips, and with labels the most frequent one and purity, the share of the cluster's labelled clips with that
    label.

    The most central clips have the largest cosine to the mean direction of the cluster, in the space that was
    clustered. Cosines and spread are of the bank as saved after the epoch; the log's are of the bank that was clustered
    before it. Clips are named by source where a set is given, else by clip id. Labels of a multi-label set are not
    read: purity needs one label per clip.
    """
    read, k = clusters.read, clusters.k
    ids = clusters.assignments[read]
    counts = torch.bincount(ids, minlength=k)
    similarities = own_similarities(clusters.points, clusters.assignments, k)[read]
    # by cluster, then from the most central, ties by clip
    order = torch.argsort(similarities, descending=True, stable=True)
    order = order[torch.argsort(ids[order], stable=True)]
    starts = (counts.cumsum(dim=0) - counts).tolist()
    clips = None if shards is None else shards.clips_in("train").take(read.numpy())
    names = () if shards is None else shards.manifest.label_names
    labels = torch.full((0,), NO_LABEL)
    if clips is not None:
        labels = torch.tensor(clips.column("label").to_numpy(), dtype=torch.int64)
    known = torch.nonzero(labels != NO_LABEL)[:, 0]
    ours, theirs = ids[known], labels[known]
    joint = torch.bincount(ours * len(names) + theirs, minlength=k * len(names)).reshape(k, len(names))
    found = []
    for cluster in torch.argsort(counts, descending=True, stable=True).tolist():
        size = int(counts[cluster])
        if not size:
            break
        rows = order[starts[cluster] : starts[cluster] + min(top, size)].tolist()
        entry: dict[str, Any] = {
            "cluster": cluster,
            "clips": size,
            "share": round(size / len(ids), 6),
            "mean_cosine": round(float(similarities[order[starts[cluster] : starts[cluster] + size]].mean()), 4),
            "central": [
                {
                    "clip_id": clusters.first_id + int(read[row]),
                    **({} if clips is None else {"source": clips["source"][row].as_py()}),
                    "cosine": round(float(similarities[row]), 4),
                }
                for row in rows
            ],
        }
        if len(known):
            labelled, most = int(joint[cluster].sum()), int(joint[cluster].argmax())
            entry["label"] = names[most] if labelled else None
            entry["purity"] = round(int(joint[cluster, most]) / labelled, 4) if labelled else None
        found.append(entry)
    shape = cluster_sizes(counts)
    totals: dict[str, Any] = {
        "epoch": clusters.epoch,
        "clips": len(ids),
        "clusters": len(found),
        "empty_clusters": shape.empty,
        "perplexity": round(shape.perplexity, 2),
        "largest_cluster": round(shape.largest_share, 4),
        "mean_cosine": round(float(similarities.mean()), 4),
        **{name: round(value, 4) for name, value in clusters.spread._asdict().items()},
    }
    if len(known):
        totals["labelled_clips"] = len(known)
        totals["label_nmi"] = round(normalised_mutual_information(ours, theirs), 4)
        totals["purity"] = round(int(joint.amax(dim=1).sum()) / len(known), 4)
    return {**totals, "sizes": counts.tolist(), "found": found}
