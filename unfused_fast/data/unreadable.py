"""Clips that cannot be read or decoded: found before a run, which then leaves them out, or reported when one stops the
run.

Ours: an epoch covers each readable clip once, in full batches, as if the set held only those, so that order, crops
and masks stay functions of (seed, epoch, clip id) on every store and number of ranks. Ids do not change: the bank keeps
a row for each clip of the split, and that of one left out holds a copy of another's.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.console import console, counted, progress_bar
from unfused_fast.errors import UserError, cause
from unfused_fast.shards.audio.codec import decode_clip
from unfused_fast.shards.packing.workers import available_cores
from unfused_fast.shards.sets.shard_files import Member, check_index, clip_key, index_path
from unfused_fast.shards.sets.table import ShardSet

SHORTAGES = {
    os.strerror(errno.EAGAIN): "no more threads may be started: end other processes, or raise their limit (ulimit -u)",
    os.strerror(errno.EMFILE): "raise the limit of open files (ulimit -n)",
    os.strerror(errno.ENOMEM): "free memory, or use a smaller train.batch_size",
    r"CUDA allocation failed|Can't allocate \d+ bytes on device \d+": (
        "end other processes on the GPU, or use a smaller train.batch_size"
    ),
}
"""Errors of the system and of the GPU (CUDABadAlloc in DALI's cuda_error.h), of which no shard is the cause, as regular
expressions, and what to do."""


def find_unreadable(shards: ShardSet, split: str, limit: int) -> list[int]:
    """Ids of the clips of a split that cannot be read or decoded, each reported once. Reads the whole split, unless
    `limit` is 0: then nothing is searched, and such a clip stops the run.

    Raises UserError for more than `limit`, and where no clip can be read.
    """
    if not limit:
        return []
    codec, lengths = shards.manifest.codec, shards.clips.column("samples").to_pylist()
    found, total = list[int](), shards.manifest.splits[split].clips
    with progress_bar() as progress, ThreadPoolExecutor(available_cores()) as pool:
        task = progress.add_task(f"reading {split} for --skip-bad", total=total, note="")
        for tar in shards.shard_paths(split):
            samples = check_index(tar, index_path(tar), cut_short=True)
            ids = [int(members[0].name.partition(".")[0]) for members in samples]
            many = len(ids)
            reasons = pool.map(_damage, [tar] * many, samples, [codec] * many, [lengths[number] for number in ids])
            for clip_id, reason in zip(ids, reasons, strict=True):
                progress.advance(task)
                if reason is not None:
                    found.append(clip_id)
                    console.once(f"clip {clip_key(clip_id)} of {tar.name}: {reason}; left out", style="yellow")
    if len(found) > limit:
        raise UserError(
            f"{shards.directory}: {counted(len(found), 'clip')} of {split} cannot be read, --skip-bad is {limit}; "
            f"unfused-fast check {shards.directory} reports what is wrong"
        )
    if len(found) == total:
        raise UserError(f"{shards.directory}: no clip of {split} can be read or decoded; pack it again")
    return found


def read_clip(tar: Path, members: list[Member], codec: str, samples: int) -> NDArray[np.int16]:
    """(samples,) PCM16 of a clip of a shard. Raises ValueError with the reason, in one line: its audio or its id cannot
    be read.
    """
    contents = {}
    try:
        with tar.open("rb") as file:
            for member in members:
                if member.extension in (codec, "index"):
                    file.seek(member.offset)
                    contents[member.extension] = file.read(member.size)
                    if len(contents[member.extension]) < member.size:
                        raise ValueError(f"the shard ends before byte {member.offset + member.size}")
        pcm = decode_clip(contents[codec])
    except KeyError:
        raise ValueError(f"it has no .{codec} member") from None
    except (OSError, ValueError) as error:
        said = getattr(error.__cause__, "error_string", None) or cause(error)  # libsndfile's message
        raise ValueError(" ".join(said.split())[:200]) from error
    if len(pcm) != samples:
        raise ValueError(f"{len(pcm)} samples, but the clips table has {samples}")
    if contents.get("index") != members[0].name.partition(".")[0].encode():
        raise ValueError("its .index member is that of another clip")
    return pcm


def _damage(tar: Path, members: list[Member], codec: str, samples: int) -> str | None:
    """Why read_clip cannot read a clip; None: it can."""
    try:
        read_clip(tar, members, codec, samples)
    except ValueError as error:
        return str(error)
    return None


def stand_ins(clips: int, left_out: Sequence[int], first: int) -> tuple[Tensor, Tensor]:
    """Rows (M,) of the M clips that are left out of a split of `clips` clips from id `first` on, and rows (M,) of the
    readable ones whose values each of them gets.

    Ours: of readable clips at equal steps through the split, so that clusters keep their shares. The rows next to a
    truncated shard would stand for hundreds of clips each, and be clusters of their own.
    """
    lost = np.array(left_out, np.int64) - first
    kept = np.setdiff1d(np.arange(clips), lost)
    copied = kept[np.arange(len(lost)) * len(kept) // max(1, len(lost))]
    return torch.from_numpy(lost), torch.from_numpy(copied)


def fill_left_out(rows: Tensor, left_out: Sequence[int], first: int) -> None:
    """Gives each clip that is left out the row of its stand-in, in rows (N, D) of a split whose first id is `first`."""
    if left_out:
        lost, copied = (part.to(rows.device) for part in stand_ins(len(rows), left_out, first))
        rows[lost] = rows[copied]


def left_out_input(left_out: Sequence[int]) -> dict[str, str]:
    """For the inputs that a run records: it resumes with the same clips only. Empty where none is left out."""
    return {"left_out": ",".join(map(str, left_out))} if left_out else {}


def skipped(left_out: Sequence[int]) -> dict[str, Any]:
    """For result.json: how many clips were left out, and their keys."""
    if left_out:
        console.print(f"left out as unreadable: {counted(len(left_out), 'clip')}", style="yellow")
    return {"skipped": {"clips": len(left_out), "keys": list(map(clip_key, left_out))}}


def reading_error(split: str, near: list[str], tars: list[str], error: Exception) -> UserError:
    """The error for a batch that could not be read: the system's, or of a shard.

    Ours: DALI does not always name the file. It reads ahead, so the message names, among the shards of this batch and
    the next, `near`, those in DALI's error or that are truncated, or else a few of them. While the graph is built, DALI
    opens the first of all `tars`.
    """
    for words, advice in SHORTAGES.items():
        if found := re.search(words, str(error)):
            return UserError(f"split {split} cannot be read: {found[0]}; {advice}")
    suspects = [tar for tar in near if tar in str(error)] or [tar for tar in near if not _whole(Path(tar))]
    suspects = suspects or [tar for tar in tars if tar in str(error)][:1] or near
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("Assert", "Error", "Unsupported"))]
    reason = (reasons or lines or [type(error).__name__])[-1][:200]
    folder, names = Path(near[0]).parent, [Path(tar).name for tar in suspects]
    which = f"{suspects[0]}: it" if len(names) == 1 else f"{folder}: one of {', '.join(names[:4])}"
    return UserError(
        f"{which}{' ...' if len(names) > 4 else ''} cannot be read or decoded (split {split}: {reason}); unfused-fast "
        f"check {folder} reports what is wrong"
    )


def _whole(tar: Path) -> bool:
    try:
        return bool(check_index(tar, index_path(tar)))
    except UserError:
        return False
