"""Properties of a finished set that its maker may not expect: one sentence each, with a count."""

from __future__ import annotations

import pyarrow.compute as pc

from unfused_fast.console import counted
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.split_names import unread_splits


def remarks(shard_set: ShardSet) -> list[str]:
    """Sentences about files that were cut, mixed down or resampled, constant clips, clips without a label or a fold,
    labels missing from a split, the same sound in several splits, splits that are not read.
    """
    manifest, clips = shard_set.manifest, shard_set.clips
    of_file = [("file_channels", "max"), ("file_rate_hz", "max"), ("clip_id", "count")]
    files = clips.group_by("source").aggregate(of_file)
    channels, rates, pieces = (files[f"{name}_{how}"].to_numpy() for name, how in of_file)
    unlabelled = pc.list_value_length(clips["labels"]).to_numpy() == 0
    of_files, of_clips = f"{len(files)} files", f"{clips.num_rows} clips"
    limit, cut = manifest.max_seconds, pieces[pieces > 1]
    into = f"{counted(cut.sum(), 'clip')} (--max-seconds {limit:g})"
    sentences = [
        f"{count} of {sentence}"
        for count, sentence in (
            (len(cut), f"{of_files} were longer than {limit:g} s and cut into {into}"),
            ((channels != 1).sum(), f"{of_files} have several channels: a clip is their mean"),
            ((rates != manifest.sample_rate).sum(), f"{of_files} were resampled to {manifest.sample_rate} Hz"),
            (clips["constant"].to_numpy().sum(), f"{of_clips} are constant, such as digital silence"),
            (unlabelled.sum() if manifest.label_names else 0, f"{of_clips} have no label"),
            (clips["fold"].null_count % clips.num_rows, f"{of_clips} have no fold"),
        )
        if count
    ]
    for split in manifest.splits if len(manifest.splits) > 1 else ():
        of_split = clips.filter(pc.equal(clips["split"], split))
        there = set(pc.list_flatten(of_split["labels"]).to_pylist())
        names = manifest.label_names
        lacking = [name for number, name in enumerate(names) if number not in there and there]
        if lacking:
            shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            sentences.append(f"{len(lacking)} of {counted(len(names), 'label')} have no clip in split {split}: {shown}")
    spread = clips.group_by("sha256").aggregate([("split", "count_distinct")])["split_count_distinct"]
    if repeated := pc.sum(pc.greater(spread, 1)).as_py():
        sentences.append(
            f"recordings with an identical copy in another split: {repeated}; unfused-fast check lists them"
        )
    if unread := unread_splits({name: split.clips for name, split in manifest.splits.items()}):
        sentences.append(unread)
    return sentences
