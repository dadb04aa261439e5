"""Report on the clusters of a pre-training run: sizes, most central clips, and how well clusters match labels.

Labels are read here only, never in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from unfused_fast.clustering import (
    cluster_sizes,
    clustered_points,
    normalised_mutual_information,
    open_bank,
    own_similarities,
    row_spread,
)
from unfused_fast.config import from_flat
from unfused_fast.console import console
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import NO_LABEL, ShardSet
from unfused_fast.training import Position, load_checkpoint, read_description


def describe_clusters(run: Path, shards: ShardSet | None, top: int) -> dict[str, Any]:
    """The last clusters of a run, of the clips that were read: totals and, largest first, each non-empty cluster: size,
    share, its `top` most central clips, and with labels the most frequent one and purity, the share of the cluster's
    labelled clips with that label.

    Reads the bank generation of the newest sound checkpoint at the end of an epoch; reports why newer ones are not
    used. Its clusters are the targets of that epoch; cosines and spread are of the bank as saved after it, in log.jsonl
    of the bank that was clustered before it. The most central clips have the largest cosine to the mean direction of
    the cluster, in the space that was clustered. Clips are named by source where a set is given, else by clip id.
    Labels of a multi-label set are not read: purity needs one label per clip.

    Raises UserError for anything but a run of train pretrain, for one without such a checkpoint, and where `shards` is
    not the set that it was trained on.
    """
    recorded = read_description(run)
    if recorded is None or recorded["stage"] != "pretrain":
        what = "no config.json" if recorded is None else f"a run of stage {recorded['stage']}"
        raise UserError(f"{run}: {what}, but clusters needs a run of train pretrain; give its directory")
    if shards is not None and recorded["shards"] != shards.manifest.digest:
        raise UserError(
            f"{shards.directory}: {run} was trained on another set (their digests differ); pass that one as --shards"
        )
    _, state, unused = load_checkpoint(run / "checkpoints", _fault)
    for sentence in unused:
        console.print(f"{sentence}; these are the clusters of epoch {state['epoch']}", style="yellow")
    bank = open_bank(run, state["epoch"])
    rows, assignments, k, first_id = bank.rows(), bank.assignments(), int(state["k"]), bank.manifest.first_clip_id
    left_out = [int(clip_id) - first_id for clip_id in recorded["inputs"].get("left_out", "").split(",") if clip_id]
    read = torch.from_numpy(np.setdiff1d(np.arange(len(rows)), left_out))  # rows of others are copies
    points = clustered_points(rows, from_flat(recorded["config"]))
    similarities, ids = own_similarities(points, assignments, k)[read], assignments[read]
    counts = torch.bincount(ids, minlength=k)
    # by cluster, then from the most central, ties by clip
    order = torch.argsort(similarities, descending=True, stable=True)
    members = torch.split(order[torch.argsort(ids[order], stable=True)], counts.tolist())
    clips = None if shards is None else shards.clips_in("train").take(read.numpy())
    names = () if shards is None else shards.manifest.label_names
    labels = torch.full((0,), NO_LABEL)
    if clips is not None:
        labels = torch.tensor(clips.column("label").to_numpy(), dtype=torch.int64)
    known = torch.nonzero(labels != NO_LABEL)[:, 0]
    ours, theirs = ids[known], labels[known]
    joint = torch.bincount(ours * len(names) + theirs, minlength=k * len(names)).reshape(k, len(names))
    found = []
    for cluster in torch.argsort(counts, descending=True, stable=True)[: int((counts > 0).sum())].tolist():
        central = [
            {
                "clip_id": first_id + int(read[row]),
                **({} if clips is None else {"source": clips["source"][row].as_py()}),
                "cosine": round(float(similarities[row]), 4),
            }
            for row in members[cluster][:top].tolist()
        ]
        entry: dict[str, Any] = {
            "cluster": cluster,
            "clips": len(members[cluster]),
            "share": round(len(members[cluster]) / len(ids), 6),
            "mean_cosine": round(float(similarities[members[cluster]].mean()), 4),
            "central": central,
        }
        if len(known):
            labelled, most = int(joint[cluster].sum()), int(joint[cluster].argmax())
            entry["label"] = names[most] if labelled else None
            entry["purity"] = round(int(joint[cluster, most]) / labelled, 4) if labelled else None
        found.append(entry)
    shape = cluster_sizes(counts)
    totals: dict[str, Any] = {
        "epoch": int(state["epoch"]),
        "clips": len(ids),
        "clusters": len(found),
        "empty_clusters": shape.empty,
        "perplexity": round(shape.perplexity, 2),
        "largest_cluster": round(shape.largest_share, 4),
        "mean_cosine": round(float(similarities.mean()), 4),
        **{name: round(value, 4) for name, value in row_spread(rows)._asdict().items()},
    }
    if len(known):
        totals["labelled_clips"] = len(known)
        totals["label_nmi"] = round(normalised_mutual_information(ours, theirs), 4)
        totals["purity"] = round(int(joint.amax(dim=1).sum()) / len(known), 4)
    return {**totals, "sizes": counts.tolist(), "found": found}


def _fault(state: dict[str, Any]) -> str | None:
    """Why a checkpoint has no generation: it holds the bank itself, which is partly of the next epoch."""
    position = Position(state["epoch"], state.get("batch", 0))
    if not position.batch and state.get("bank") != "here":
        return None
    return (
        f"{position.name} was saved within epoch {state['epoch'] + 1}, whose memory bank is not complete yet; "
        "continue with --resume to the end of that epoch"
    )
