"""The description of a shard set: the clips table and the manifest.   N clips.

DIR/manifest.json    written last: a set without it is unfinished
DIR/clips.parquet    row clip_id = the clip with that id; ids of a split are consecutive: train, valid, test, others
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unfused_fast.errors import UserError, unreadable
from unfused_fast.json_files import is_count, is_number, is_scale
from unfused_fast.shards.sets.shard_files import clip_key, index_path
from unfused_fast.shards.sources.split_names import split_rank

SCHEMA_VERSION = 5
MANIFEST, CLIPS, REJECTED, PART = "manifest.json", "clips.parquet", "rejected.csv", "part.json"
NO_LABEL = -1

_COLUMNS: dict[str, pa.DataType] = {
    "clip_id": pa.int64(),
    "key": pa.string(),
    "split": pa.string(),
    "label": pa.int32(),
    "labels": pa.list_(pa.int32()),
    "group": pa.string(),
    "fold": pa.int32(),
    "seconds": pa.float64(),
    "samples": pa.int64(),
    "constant": pa.bool_(),
    "clipped_share": pa.float64(),
    "file_rate_hz": pa.int32(),
    "file_channels": pa.int32(),
    "source": pa.string(),
    "sha256": pa.string(),
    "stored_sha256": pa.string(),
    "start": pa.int64(),
}
_DIGESTED = ["clip_id", "split", "label", "labels", "group", "fold", "samples", "source", "sha256"]
CLIPS_SCHEMA = pa.schema(_COLUMNS)
"""label: index into Manifest.label_names, or NO_LABEL where a clip has none or the set is multi-label. labels: all of
a clip's labels, ascending; for a set with one label a clip, that one. group: what must not be on both sides of a
split. fold: the published cross-validation fold, or null. seconds = samples / 16000. constant: whether all samples are
equal, as in digital silence. clipped_share: of the samples at the file's own rate, those in runs at full scale.
file_rate_hz, file_channels: of the file. source: the file, relative to the source that was packed. sha256: hex, of the
little-endian PCM16. stored_sha256: hex, of the audio member's bytes: FLAC encoders differ in their output, so
the digest of a set leaves it out. Ours: bytes are verified ten times as fast as FLAC is decoded. start: sample of
the file, at 16 kHz, at which the clip begins; null in sets of earlier versions."""
DONE_SCHEMA = pa.schema({name: _COLUMNS[name] for name in _COLUMNS if name not in ("clip_id", "key")})
"""What is known of the clips of a shard before they are numbered."""


@dataclass(frozen=True)
class SplitInfo:
    """One split of a set."""

    shards: tuple[str, ...]
    """Names of the tars, in order of clip_id; each has its index next to it."""
    clips: int
    seconds: float


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. It holds no time and no folder, so that the same input gives the same bytes."""

    codec: str
    """wav or flac: the ending of the audio members."""
    max_seconds: float
    seed: int
    splits: Mapping[str, SplitInfo]
    """In order of clip_id."""
    label_names: tuple[str, ...]
    """Sorted; a label is an index into it. Ours: of every file whose header was readable."""
    digest: str
    """See clips_digest."""
    rejected: int
    """Rows of rejected.csv."""
    log_mel: Mapping[str, float] | None
    """What the `statistics` of pack() gave: mean, std, clips measured; None without any."""
    written_by: str
    request: str = ""
    """The sha256 (hex) of what was asked for, sources and options: the same request gives the same set."""
    dataset: Mapping[str, Any] | None = None
    """Name and options of the adapter that found the clips; None for a folder or CSV."""
    schema_version: int = SCHEMA_VERSION
    sample_rate: int = 16000
    """In hertz."""

    def to_json(self) -> str:
        """Text of manifest.json."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class ShardSet:
    """A finished set on disk, whose parts match each other."""

    directory: Path
    manifest: Manifest
    clips: pa.Table
    """(N rows) CLIPS_SCHEMA; row = clip_id."""

    @property
    def name(self) -> str:
        """The folder's, also of one given as `.`; a link has its own."""
        return self.directory.name if self.directory.name not in ("", "..") else self.directory.resolve().name

    def shard_paths(self, split: str) -> list[Path]:
        """Tars of a split, in order of clip_id; `index_path(tar)` is the index. Raises UserError: no such split."""
        return [self.directory / name for name in self._split(split).shards]

    def clips_in(self, split: str) -> pa.Table:
        """Rows of a split, a view of `clips`. Raises UserError: no such split."""
        return self.clips.slice(self.first_id(split), self._split(split).clips)

    def first_id(self, split: str) -> int:
        """Clip id of a split's first row; the ids of a split are contiguous. Raises UserError: no such split."""
        self._split(split)
        return sum(info.clips for _, info in takewhile(lambda entry: entry[0] != split, self.manifest.splits.items()))

    def _split(self, split: str) -> SplitInfo:
        if split not in self.manifest.splits:
            raise UserError(
                f"{self.directory}: no split {split}, it has {', '.join(self.manifest.splits)}; "
                "name one of these, or pack again from a CSV with a column split"
            )
        return self.manifest.splits[split]


def open_shards(directory: Path) -> ShardSet:
    """Opens a set, after cheap checks: every file is there, and the table matches the manifest.

    Raises:
        UserError: no such directory, unfinished or no shard set, another schema version, malformed manifest or table, a
            missing shard or index, or counts that do not match.
    """
    manifest = read_manifest(directory)
    for info in manifest.splits.values():
        for name in info.shards:
            for path in (directory / name, index_path(directory / name)):
                if not path.is_file():
                    state = "not a file" if path.exists() else "missing"
                    raise UserError(
                        f"{path}: {state}, but {MANIFEST} lists it; copy the whole set again or pack it again"
                    )
    import pyarrow.compute as pc

    clips = read_clips(directory)
    runs = pc.run_end_encode(clips["split"].combine_chunks())
    found = list(zip(runs.values.to_pylist(), np.diff(runs.run_ends.to_numpy(), prepend=0).tolist(), strict=True))
    wanted = [(split, info.clips) for split, info in manifest.splits.items()]
    if found != wanted:
        there, listed = (", ".join(f"{count} {split}" for split, count in parts[:8]) for parts in (found, wanted))
        raise UserError(
            f"{directory / CLIPS}: has {there} clips, but {MANIFEST} has {listed}, in this order: the two come from "
            "different sets; copy the whole set again or pack it again"
        )
    return ShardSet(directory, manifest, clips)


def read_manifest(directory: Path) -> Manifest:
    """Reads manifest.json. Raises UserError: none there, another schema version, or malformed."""
    path = directory / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: {_no_manifest(directory)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error, "copy the set again or pack it again") from error
    try:
        if (version := value.get("schema_version")) != SCHEMA_VERSION:
            raise ValueError(f"its schema version is {version}")
        if set(value) != {field.name for field in fields(Manifest)}:
            raise ValueError(f"its keys are {', '.join(sorted(value))}")
        if value["sample_rate"] != 16000 or value["codec"] not in ("wav", "flac"):
            raise ValueError(f"{value['codec']} at {value['sample_rate']} Hz, but a set holds wav or flac at 16000 Hz")
        splits = {
            name: SplitInfo(**{**value["splits"][name], "shards": tuple(value["splits"][name]["shards"])})
            for name in sorted(value["splits"], key=split_rank)
        }
        for name, info in splits.items():
            if not (is_count(info.clips) and is_number(info.seconds)):
                raise ValueError(f"split {name[:40]!r} has {info.clips!r:.40} clips of {info.seconds!r:.40} s")
        if (log_mel := value["log_mel"]) is not None and not is_scale(log_mel):
            raise ValueError(f"its log_mel is {log_mel!r:.80}, but it needs a finite mean and a std above 0")
        if not isinstance(names := value["label_names"], list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"its label_names are {names!r:.80}, not a list of texts")
        if (dataset := value["dataset"]) is not None and not (
            isinstance(dataset["name"], str) and isinstance(dataset.get("options", {}), dict)
        ):
            raise ValueError("its data set has no name, or options without names")
        for name in (name for info in splits.values() for name in info.shards):
            if Path(name).name != name or not name.endswith(".tar"):
                raise ValueError(f"{name[:80]!r} is not the name of a shard")
        return Manifest(**{**value, "splits": splits, "label_names": tuple(names)})
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: not a manifest of version {SCHEMA_VERSION} ({error}); pack the set again with --overwrite"
        ) from error


def _no_manifest(directory: Path) -> str:
    if directory.is_file():
        return "is a file, but a shard set is a folder; pack one with: unfused-fast shard SOURCE OUT"
    if (directory / PART).is_file():
        return "a part of a set; join all parts with: unfused-fast merge PART... OUT"
    unfinished = directory if directory.suffix == ".partial" else directory.with_name(f"{directory.name}.partial")
    if (unfinished / "journal").is_dir():
        out = unfinished.with_suffix("")
        return f"unfinished; finish it with the same command that started it (OUT is {out})"
    place = shlex.quote(str(directory))
    if not directory.is_dir():
        return f"no such folder; check the path, or make a shard set there with: unfused-fast shard FOLDER {place}"
    found = f"a folder, but not a shard set (no {MANIFEST})"
    return f"{found}; if it holds recordings, pack them first: unfused-fast shard {place} SHARDS"


def read_clips(directory: Path) -> pa.Table:
    """Reads clips.parquet. Raises UserError: missing, malformed, or ids that are not the row numbers."""
    import pyarrow.parquet as pq

    path = directory / CLIPS
    try:
        with pq.ParquetFile(path) as file:
            clips = file.read()
        clips.validate(full=True)
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise unreadable(path, error, "copy the set again or pack it again") from error
    if clips.schema.names == CLIPS_SCHEMA.names[:-1]:  # as earlier versions wrote it
        clips = clips.append_column(CLIPS_SCHEMA.field("start"), pa.nulls(clips.num_rows, pa.int64()))
    if clips.schema.names != CLIPS_SCHEMA.names or clips.schema.types != CLIPS_SCHEMA.types:
        raise UserError(
            f"{path}: its columns ({', '.join(clips.schema.names)}) are not those of version {SCHEMA_VERSION}; "
            "pack the set again"
        )
    if not clips["clip_id"].combine_chunks().equals(pa.array(range(clips.num_rows), pa.int64())):
        raise UserError(f"{path}: its ids are not its row numbers; copy the set again or pack it again")
    return clips


def numbered(clips: pa.Table) -> pa.Table:
    """DONE_SCHEMA of all shards in order -> CLIPS_SCHEMA."""
    ids = range(clips.num_rows)
    columns = {"clip_id": pa.array(ids, pa.int64()), "key": pa.array([clip_key(clip_id) for clip_id in ids])}
    return pa.table(
        [columns[name] if name in columns else clips[name] for name in CLIPS_SCHEMA.names], schema=CLIPS_SCHEMA
    )


def write_clips(directory: Path, clips: pa.Table) -> None:
    """Writes clips.parquet."""
    import pyarrow.parquet as pq

    with (directory / CLIPS).open("wb") as file:  # Python's own file, whose errors have the error number of a full disk
        pq.write_table(clips, file, compression="zstd")


def clips_digest(clips: pa.Table, label_names: Sequence[str]) -> str:
    """The sha256 (hex) that identifies a set's content, the same for both codecs and for any cut into shards.

    Taken over JSON arrays, one a line: the label names; then for each clip in order its clip_id, split, label, labels,
    group, fold, samples, source, sha256.
    """
    digest = hashlib.sha256(json.dumps(list(label_names)).encode() + b"\n")
    for batch in clips.select(_DIGESTED).to_batches(4096):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
