"""Clips of a set, read from its tars by their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from unfused_fast.errors import UserError
from unfused_fast.shards.audio.codec import decode_clip
from unfused_fast.shards.sets.shard_files import KEY_DIGITS, clip_key, index_path, read_index, read_members
from unfused_fast.shards.sets.table import ShardSet


def read_clips(shards: ShardSet, clip_ids: Collection[int]) -> Iterator[tuple[int, bytes, NDArray[np.int16]]]:
    """Id, stored bytes and samples of some clips, in order of their ids; of a tar that holds none of them only the
    index is read. Raises UserError: a clip is in no tar, or cannot be decoded.
    """
    wanted, codec = {clip_key(clip_id) for clip_id in clip_ids}, shards.manifest.codec
    left = set(wanted)
    for tar in (tar for split in shards.manifest.splits for tar in shards.shard_paths(split)):
        samples = [members for members in read_index(index_path(tar)) if members[0].name[:KEY_DIGITS] in wanted]
        for members, content in zip(samples, read_members(tar, samples), strict=True):
            try:
                pcm = decode_clip(content[codec])
            except (KeyError, ValueError):
                continue  # named below
            key = members[0].name[:KEY_DIGITS]
            left.discard(key)
            yield int(key), content[codec], pcm
        if not left:
            return
    raise UserError(
        f"{shards.directory}: clip {int(min(left))} is in no shard, or cannot be decoded; unfused-fast check "
        f"{shards.directory} reports what is wrong"
    )
