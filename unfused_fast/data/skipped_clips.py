"""Clips that count as silence in a run because they cannot be read or decoded, up to `--skip-bad` of them a process.

Ours: such a clip stays in its batch as samples of value 0, so that an epoch still covers every clip once, in the same
batches and order, and each row of the memory bank is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfused_fast.console import console
from unfused_fast.data.damaged_clips import damage, damaged_clips, with_stand_in
from unfused_fast.data.order import Order, Reading, index_lines
from unfused_fast.data.reading_errors import unreadable
from unfused_fast.distributed import ALONE, Ranks
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.shard_files import clip_key
from unfused_fast.shards.sets.table import ShardSet


class SkippedClips:
    """Those that the processes of a run have come upon, counted for each; where there are none, nothing is done."""

    def __init__(self, limit: int = 0, ranks: Ranks = ALONE) -> None:
        """`limit` is how many distinct ones this process may come upon."""
        self.limit, self._ranks = limit, ranks
        self._found: list[dict[int, str]] = [{} for _ in range(ranks.world_size)]
        self.silent = frozenset[int]()
        """Ids of clips that are not read any more."""
        self.news = False
        """Whether the other processes do not know yet of all that this one found."""

    def find(
        self, error: Exception, split: str, reading: Reading, rows: slice, codec: str, samples: NDArray[np.int64]
    ) -> None:
        """Looks for the clips that stopped DALI, which are silent from now on; names each once.

        Args:
            rows: of the batch that could not be read, among the clips of `reading`.
            samples: of each clip of the set.

        Raises:
            UserError: there are none, or more than `limit` in all.
        """
        told = unreadable(split, reading, rows, error)
        if not self.limit:
            raise told from error
        found = {clip.clip_id: str(clip) for clip in damaged_clips(reading, rows, codec, samples, self.silent)}
        own = self._found[self._ranks.rank]
        count = len(own.keys() | found.keys())
        if not found or count > max(self.limit, len(own)):
            what = f"{count} clips cannot be read" if found else "no clip was found that cannot be read alone"
            raise UserError(f"{told}; {what}, --skip-bad is {self.limit}") from error
        self._name(found)
        own |= found
        self.silent |= found.keys()
        self.news = True

    def among(self, clip_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) ids -> (n,) which of them are silent."""
        return np.isin(clip_ids, sorted(self.silent))

    def without(self, order: Order, codec: str, samples: NDArray[np.int64]) -> Order:
        """The order with a sound clip in place of each silent one. Raises UserError where none is sound."""
        changed = with_stand_in(order, codec, samples, self.silent)
        if changed is None:
            raise UserError(
                f"{order[0][0].parent}: of the clips that are left to read in the epoch none can be read or decoded; "
                "unfused-fast check says what is wrong"
            )
        return changed

    def tell(self) -> None:
        """Lets every process know what all of them found. All call it together."""
        texts = self._ranks.texts(json.dumps(list(self._found[self._ranks.rank].items())))
        for rank, text in enumerate(texts):
            found = {int(clip_id): str(named) for clip_id, named in json.loads(text)}
            self._name(found)
            self._found[rank] |= found
        self.silent |= self._known
        self.news = False

    @property
    def _known(self) -> frozenset[int]:
        return frozenset(clip_id for found in self._found for clip_id in found)

    def _name(self, found: Mapping[int, str]) -> None:
        known = self._known
        for clip_id, named in found.items():
            if clip_id not in known:
                console.print(f"{named}; replaced by silence", style="yellow")

    def notes(self) -> dict[str, Any]:
        """For the JSON of a checkpoint: the ids that each process found; nothing where there are none."""
        return {"skipped": [sorted(found) for found in self._found]} if self._known else {}

    def load(self, state: Mapping[str, Any], shards: ShardSet) -> None:
        """Counts on from a checkpoint's notes. Clips of the train split that are mended are read again."""
        for rank, ids in enumerate(state.get("skipped", [])):
            self._found[rank % len(self._found)] |= dict.fromkeys(ids, "")
        if known := self._known:
            codec, samples = shards.manifest.codec, shards.clips.column("samples").to_numpy()
            self.silent |= {
                line.clip_id
                for tar in shards.shard_paths("train")
                for line in index_lines(tar, cut_short=True)
                if line.clip_id in known and damage(tar, line, codec, int(samples[line.clip_id])) is not None
            }

    def result(self) -> dict[str, Any]:
        """For result.json: how many clips, of all processes, and their keys."""
        known = sorted(self._known)
        if known:
            console.print(f"{len(known)} clips could not be read and counted as silence", style="yellow")
        return {"skipped": {"clips": len(known), "keys": list(map(clip_key, known))}}
