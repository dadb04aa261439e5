"""The files of a set while it is made: shards one after the other, the columns of the clips table, rejected.csv."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unfused_fast.shards.audio_files import Clip, Reason, Rejected
from unfused_fast.shards.clip_codec import SAMPLE_RATE_HZ, decode_clip
from unfused_fast.shards.plan import Piece
from unfused_fast.shards.shard_files import ShardWriter, index_path, read_index, read_members
from unfused_fast.shards.table import CLIPS_SCHEMA, IN_JSON, KEY_DIGITS, NO_LABEL, REJECTED, SplitInfo


class SetWriter:
    """Numbers clips and writes them to shards; as a context manager it closes the last shard, or gives it up."""

    def __init__(self, folder: Path, codec: str, label_names: list[str]) -> None:
        self.folder, self.codec = folder, codec
        self.columns: dict[str, list[Any]] = {name: [] for name in CLIPS_SCHEMA.names}
        self.shard_bytes = 0
        self._label_names = label_names
        self._labels = {name: number for number, name in enumerate(label_names)}
        self._shards: dict[str, list[str]] = {}
        self._writer: ShardWriter | None = None

    def add(self, piece: Piece, clip: Clip) -> None:
        """Writes a clip to the open shard, or to a new one, and gives it the next id."""
        row, clip_id = piece.row, len(self.columns["clip_id"])
        if self._writer is None:
            names = self._shards.setdefault(row.split, [])
            names.append(f"{row.split}-{len(names):06d}.tar")
            self._writer = ShardWriter(self.folder / names[-1])
        values: dict[str, Any] = {
            "clip_id": clip_id,
            "key": f"{clip_id:0{KEY_DIGITS}d}",
            "split": row.split,
            "label": NO_LABEL if row.label is None else self._labels[row.label],
            "labels": sorted(self._labels[name] for name in row.labels or [row.label] if name is not None),
            "group": row.source if row.group is None else row.group,
            "fold": row.fold,
            "seconds": clip.samples / SAMPLE_RATE_HZ,
            "samples": clip.samples,
            "source": row.source,
            "sha256": clip.sha256,
        }
        text = clip_json(values, self._label_names)
        self._writer.add(values["key"], {self.codec: clip.data, "json": text, "index": values["key"].encode()})
        for name, value in values.items():
            self.columns[name].append(value)

    def end_shard(self) -> None:
        """The next clip begins a shard."""
        if self._writer is not None:
            self.shard_bytes += self._writer.close()
            self._writer = None

    def splits(self) -> dict[str, SplitInfo]:
        """What the manifest says of the splits, in order of clip_id."""
        clips, samples = Counter(self.columns["split"]), Counter[str]()
        for split, count in zip(self.columns["split"], self.columns["samples"], strict=True):
            samples[split] += count
        return {
            split: SplitInfo(tuple(names), clips[split], samples[split] / SAMPLE_RATE_HZ)
            for split, names in self._shards.items()
        }

    def first_clips(self, split: str, count: int) -> Iterator[NDArray[np.int16]]:
        """Samples of the first clips of a split, as they were written."""

        def all_clips() -> Iterator[NDArray[np.int16]]:
            for name in self._shards.get(split, []):
                tar = self.folder / name
                for contents in read_members(tar, read_index(index_path(tar))):
                    yield decode_clip(contents[self.codec])

        return islice(all_clips(), count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end_shard()
        elif self._writer is not None:
            self._writer.give_up()


def clip_json(row: Mapping[str, Any], label_names: Sequence[str]) -> bytes:
    """Content of the .json member: clip_id, the columns of `IN_JSON`, and label_names, the names of its labels.

    Ours: clip_id comes first and is padded to `KEY_DIGITS`, so that a clip can be renumbered in its place.
    """
    rest = {name: row[name] for name in IN_JSON} | {"label_names": [label_names[label] for label in row["labels"]]}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False)
    return f'{{"clip_id": {row["clip_id"]:{KEY_DIGITS}d}, {text[1:]}'.encode()


@dataclass
class Rejections:
    """What goes to rejected.csv."""

    rows: list[tuple[str, int, Reason, str]] = field(default_factory=list)
    """Name of the file, number of the piece, reason, text."""

    def add(self, source: str, rejection: Rejected, number: int = 0, pieces: int = 1) -> None:
        """Notes a file, or one of its `pieces`."""
        where = f"piece {number + 1} of {pieces}: " if pieces > 1 else ""
        self.rows.append((source, number, rejection.reason, f"{where}{rejection}"))

    def by_reason(self) -> dict[str, int]:
        """Rows of each reason, most frequent first."""
        counts = Counter(str(reason) for _, _, reason, _ in self.rows)
        return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))

    def write(self, folder: Path) -> None:
        """Writes rejected.csv: path, reason; sorted by path."""
        with (folder / REJECTED).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows((source, text) for source, _, _, text in sorted(self.rows))

    def summary(self, files: int) -> str:
        """One sentence for the case that nothing was usable."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.by_reason().items())
        examples = "; ".join(f"{source} ({text})" for source, _, _, text in sorted(self.rows)[:3])
        return f"{files} files, none of them usable: {reasons}; for example {examples}"
