"""What open_shards says about sets that are none, unfinished, of another version, or put together wrongly."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import CLIPS_SCHEMA, ShardSet, open_shards


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_set_opens_as_it_was_packed(packed: ShardSet) -> None:
    opened = open_shards(packed.directory)
    assert opened.manifest == packed.manifest
    assert opened.clips.equals(packed.clips)
    assert opened.clips.schema.equals(CLIPS_SCHEMA)
    assert list(opened.manifest.splits) == ["train", "valid", "test", "extra"]
    assert [info.clips for info in opened.manifest.splits.values()] == [24, 7, 7, 7]
    assert opened.manifest.label_names == ("bird", "cat", "dog")
    assert opened.manifest.sample_rate == 16000 and opened.manifest.schema_version == 5
    assert opened.manifest.written_by.startswith("unfused-fast ")


def test_splits_are_runs_of_ids(packed: ShardSet) -> None:
    start = 0
    for split, info in packed.manifest.splits.items():
        rows = packed.clips_in(split)
        assert rows["clip_id"].to_pylist() == list(range(start, start + info.clips))
        assert set(rows["split"].to_pylist()) == {split}
        assert sum(rows["seconds"].to_pylist()) == pytest.approx(info.seconds)
        assert [path.name for path in packed.shard_paths(split)] == list(info.shards)
        start += info.clips
    with pytest.raises(UserError, match="no split tset, it has train, valid, test, extra"):
        packed.shard_paths("tset")


def test_digest_is_the_sha256_of_the_documented_lines(packed: ShardSet) -> None:
    lines = [json.dumps(["bird", "cat", "dog"])]
    for row in packed.clips.to_pylist():
        names = ("clip_id", "split", "label", "labels", "group", "fold", "samples", "source", "sha256")
        lines.append(json.dumps([row[name] for name in names]))
    assert packed.manifest.digest == hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def _table(folder: Path, clips: pa.Table) -> None:
    pq.write_table(clips, folder / "clips.parquet")


def _splits(folder: Path, **changes: Any) -> None:
    """Changes splits; None leaves one out."""
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    changed = {name: {**splits[name], **(changes.get(name, {}) or {})} for name in splits}
    _edit(folder, splits={name: info for name, info in changed.items() if changes.get(name, info) is not None})


def _with_a_file_at_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def _with_a_broken_name(folder: Path) -> None:
    """As a flipped bit in a table without compression makes it."""
    clips = pq.read_table(folder / "clips.parquet")
    names = pa.array([b"\xff" + name.encode() for name in clips["source"].to_pylist()]).view(pa.string())
    _table(folder, clips.set_column(clips.schema.names.index("source"), "source", names))


AGAIN = "pack the set again with --overwrite"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shutil.rmtree, "copy: no such folder; check the path, or make .*: unfused-fast shard FOLDER .*copy$"),
        (
            lambda copy: (copy / "manifest.json").unlink(),
            r"copy: a folder, but not a shard set \(no manifest.json\); if .*: unfused-fast shard .*copy SHARDS$",
        ),
        (_with_a_file_at_its_place, "copy: is a file, but a shard set is a folder; .*unfused-fast shard SOURCE OUT"),
        (lambda copy: _edit(copy, schema_version=1), rf"of version 5 \(its schema version is 1\); {AGAIN}"),
        (
            lambda copy: (copy / "manifest.json").write_text("[]"),
            f"manifest.json: not a manifest of version 5.*{AGAIN}",
        ),
        (lambda copy: (copy / "manifest.json").write_text("{"), "manifest.json: cannot be read"),
        (lambda copy: _edit(copy, sample_rate=24000), "wav at 24000 Hz, but a set holds wav or flac at 16000 Hz"),
        (lambda copy: _edit(copy, surprise=1), "manifest.json: .*surprise"),
        (lambda copy: _edit(copy, splits={"train": {}}), "manifest.json: not a manifest of version 5"),
        (lambda copy: _splits(copy, train={"clips": "24"}), "manifest of version 5 .*'train' has '24' clips of"),
        (lambda copy: _splits(copy, train={"seconds": None}), "manifest of version 5 .*'train' has 24 clips of None s"),
        *(
            (
                lambda copy, given=given: _edit(copy, log_mel=given),
                f"manifest of version 5 .*but it needs a finite mean and a std above 0.*{AGAIN}",
            )
            for given in (
                {"mean": -4.0, "std": 0},
                {"mean": -4.0, "std": -1.0},
                {"mean": float("nan"), "std": 1.0},
                {"mean": -4.0, "std": float("inf")},
                {"mean": "-4", "std": 1.0},
                {"mean": -4.0},
            )
        ),
        (lambda copy: _edit(copy, log_mel="none"), "not a manifest of version 5"),
        (lambda copy: _edit(copy, label_names="abc"), "its label_names are 'abc', not a list of texts"),
        (lambda copy: _edit(copy, label_names=["a", "b", 3]), "not a list of texts"),
        (_with_a_broken_name, r"clips.parquet: cannot be read \(.*UTF"),
        (lambda copy: (copy / "train-000001.tar").unlink(), "train-000001.tar: missing, but manifest.json lists it"),
        (lambda copy: (copy / "valid-000000.idx").unlink(), "valid-000000.idx: missing"),
        (
            lambda copy: _splits(copy, train={"clips": 23}),
            "clips.parquet: has 24 train.* but manifest.json has 23 train",
        ),
        (lambda copy: _splits(copy, extra=None), "clips.parquet: .*7 extra.*different sets"),
        (lambda copy: _table(copy, pq.read_table(copy / "clips.parquet").slice(1)), "its ids are not its row numbers"),
        (lambda copy: _table(copy, pa.table({"clip_id": [0]})), r"clips.parquet: its columns \(clip_id\)"),
        (lambda copy: (copy / "clips.parquet").write_bytes(b"PAR1"), "clips.parquet: cannot be read"),
        (lambda copy: (copy / "clips.parquet").unlink(), "clips.parquet: cannot be read"),
    ],
)
def test_what_is_no_set_or_not_whole(copy: Path, change: Callable[[Path], object], said: str) -> None:
    change(copy)
    with pytest.raises(UserError, match=said):
        open_shards(copy)
