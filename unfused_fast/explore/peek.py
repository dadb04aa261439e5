"""What is in a shard set, for eyes and ears: a table, a sheet of log-mels, clips as WAV files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unfused_fast.data import log_mel
from unfused_fast.errors import UserError, cause
from unfused_fast.explore.clips import read_clips
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ, encode_clip
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.training import plot_log_mels

CLASSES = 12
"""Most classes on a sheet. Ours: more rows are too small to see anything in."""
NO_LABEL_NAME, ALL = "(no label)", "(all)"


@dataclass(frozen=True)
class PeekClip:
    """A clip to look at."""

    clip_id: int
    label: str
    source: str
    pcm: NDArray[np.int16]


def contents(shards: ShardSet) -> list[dict[str, Any]]:
    """Clips and seconds of each label of each split, and of each split; a clip of several labels counts for each."""
    rows = []
    for split in shards.manifest.splits:
        clips = shards.clips_in(split)
        seconds, labels = clips["seconds"].to_numpy(), clips["labels"].to_pylist()
        rows.append({"split": split, "label": ALL} | _lengths(seconds))
        of_label: dict[str, list[int]] = {}
        for row, ids in enumerate(labels):
            for name in _names(shards, ids):
                of_label.setdefault(name, []).append(row)
        if list(of_label) != [NO_LABEL_NAME]:
            rows += [{"split": split, "label": name} | _lengths(seconds[of_label[name]]) for name in sorted(of_label)]
    return rows


def examples_of(shards: ShardSet, per_class: int) -> list[PeekClip]:
    """The first clips of each class, class by class, of `CLASSES` classes at most, from the first split that has them.

    Ours: the first ids of a split are a random sample of it. Of more classes, those evenly spread over the alphabet are
    taken.
    """
    names = sorted({name for ids in shards.clips["labels"].to_pylist() for name in _names(shards, ids)})
    if len(names) > CLASSES:
        names = [names[number * len(names) // CLASSES] for number in range(CLASSES)]
    chosen: dict[str, list[int]] = {name: [] for name in names}
    for clip_id, ids in enumerate(shards.clips["labels"].to_pylist()):
        for name in _names(shards, ids):
            if len(chosen.get(name, [0] * per_class)) < per_class:
                chosen[name].append(clip_id)
    wanted = {clip_id for ids in chosen.values() for clip_id in ids}
    samples = {clip_id: pcm for clip_id, _, pcm in read_clips(shards, wanted)}
    sources = shards.clips["source"]
    return [
        PeekClip(clip_id, name, sources[clip_id].as_py(), samples[clip_id])
        for name, ids in chosen.items()
        for clip_id in ids
    ]


def write_sheet(path: Path, clips: Sequence[PeekClip], title: str) -> None:
    """A PNG with the log-mel of each clip, a row a class. Raises UserError when it cannot be written."""
    pictures: dict[str, list[tuple[str, float, NDArray[np.float32]]]] = {}
    for clip in clips:
        picture = log_mel(torch.from_numpy(clip.pcm.astype(np.float32) / 32768.0)).numpy()
        name, seconds = f"{clip.clip_id} {clip.source}", len(clip.pcm) / SAMPLE_RATE_HZ
        pictures.setdefault(clip.label, []).append((name, seconds, picture))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_log_mels(path, list(pictures.items()), title)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no format of a picture
        raise UserError(f"{path}: the sheet cannot be written ({cause(error)}); name a .png with --out") from error


def write_clips(folder: Path, clips: Sequence[PeekClip]) -> list[Path]:
    """Writes `<label>-<clip_id>-<source stem>.wav` for each clip. Raises UserError when the folder refuses."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for clip in clips:
            name = f"{_safe(clip.label)}-{clip.clip_id}-{_safe(Path(clip.source).stem)}.wav"
            written.append(folder / name)
            written[-1].write_bytes(encode_clip(clip.pcm, "wav"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({cause(error)}); name another folder") from error
    return written


def _names(shards: ShardSet, ids: Sequence[int]) -> list[str]:
    return [shards.manifest.label_names[label] for label in ids] or [NO_LABEL_NAME]


def _lengths(seconds: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "clips": len(seconds),
        "seconds": round(float(seconds.sum()), 3),
        "shortest": round(float(seconds.min()), 3),
        "median": round(float(np.median(seconds)), 3),
        "longest": round(float(seconds.max()), 3),
    }


def _safe(name: str) -> str:
    """Letters, digits, dot, dash and underscore; short enough for any file system."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:80] or "_"
