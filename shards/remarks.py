"""What a finished set is, where it is otherwise than its maker may think: one sentence each, with the count."""

from __future__ import annotations

import pyarrow.compute as pc

from unfused_fast.shards.split_names import unread_splits
from unfused_fast.shards.table import ShardSet


def remarks(shard_set: ShardSet) -> list[str]:
    """Sentences about files that were cut, clips without a label or a fold, splits that are not read."""
    manifest, clips = shard_set.manifest, shard_set.clips
    pieces = pc.value_counts(clips["source"]).field("counts")
    said = []
    cut = pc.filter(pieces, pc.greater(pieces, 1))
    if len(cut):
        said.append(
            f"{len(cut)} of {len(pieces)} files were longer than {manifest.max_seconds:g} s and cut into "
            f"{pc.sum(cut).as_py()} clips (--max-seconds {manifest.max_seconds:g})"
        )
    without = pc.sum(pc.equal(pc.list_value_length(clips["labels"]), 0)).as_py()
    if without and manifest.label_names:
        said.append(f"{without} of {clips.num_rows} clips have no label")
    if 0 < clips["fold"].null_count < clips.num_rows:
        said.append(f"{clips['fold'].null_count} of {clips.num_rows} clips have no fold")
    if unread := unread_splits({name: split.clips for name, split in manifest.splits.items()}):
        said.append(unread)
    return said
