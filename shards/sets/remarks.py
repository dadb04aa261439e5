"""Properties of a finished set that its maker may not expect: one sentence each, with a count."""

from __future__ import annotations

import pyarrow.compute as pc

from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.split_names import unread_splits


def remarks(shard_set: ShardSet) -> list[str]:
    """Sentences about files that were cut, mixed down or resampled, constant clips, clips without a label or a fold,
    labels missing from a split, the same sound in several splits, splits that are not read.
    """
    manifest, clips = shard_set.manifest, shard_set.clips
    of_file = [("file_channels", "max"), ("file_rate_hz", "max"), ("clip_id", "count")]
    files = clips.group_by("source").aggregate(of_file)
    sentences = []
    cut = pc.filter(files["clip_id_count"], pc.greater(files["clip_id_count"], 1))
    if len(cut):
        sentences.append(
            f"{len(cut)} of {len(files)} files were longer than {manifest.max_seconds:g} s and cut into "
            f"{pc.sum(cut).as_py()} clips (--max-seconds {manifest.max_seconds:g})"
        )
    if mixed := pc.sum(pc.not_equal(files["file_channels_max"], 1)).as_py():
        sentences.append(f"{mixed} of {len(files)} files have several channels: a clip is their mean")
    if resampled := pc.sum(pc.not_equal(files["file_rate_hz_max"], manifest.sample_rate)).as_py():
        sentences.append(f"{resampled} of {len(files)} files were resampled to {manifest.sample_rate} Hz")
    if constant := pc.sum(clips["constant"]).as_py():
        sentences.append(f"{constant} of {clips.num_rows} clips are constant, such as digital silence")
    without = pc.sum(pc.equal(pc.list_value_length(clips["labels"]), 0)).as_py()
    if without and manifest.label_names:
        sentences.append(f"{without} of {clips.num_rows} clips have no label")
    for split in manifest.splits if len(manifest.splits) > 1 else ():
        of_split = clips.filter(pc.equal(clips["split"], split))
        there = set(pc.list_flatten(of_split["labels"]).to_pylist())
        lacking = [name for number, name in enumerate(manifest.label_names) if number not in there and there]
        if lacking:
            shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            sentences.append(
                f"{len(lacking)} of {len(manifest.label_names)} labels have no clip in split {split}: {shown}"
            )
    spread = clips.group_by("sha256").aggregate([("split", "count_distinct")])["split_count_distinct"]
    if repeated := pc.sum(pc.greater(spread, 1)).as_py():
        sentences.append(
            f"recordings with an identical copy in another split: {repeated}; unfused-fast check lists them"
        )
    if 0 < clips["fold"].null_count < clips.num_rows:
        sentences.append(f"{clips['fold'].null_count} of {clips.num_rows} clips have no fold")
    if unread := unread_splits({name: split.clips for name, split in manifest.splits.items()}):
        sentences.append(unread)
    return sentences
