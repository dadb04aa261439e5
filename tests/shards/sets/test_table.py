"""What open_shards says about sets that are none, unfinished, of another version, or put together wrongly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import CLIPS_SCHEMA, ShardSet, open_shards, read_manifest


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        open_shards(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


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
    with pytest.raises(UserError, match="no split tset"):
        packed.clips_in("tset")


def test_digest_is_the_sha256_of_the_documented_lines(packed: ShardSet) -> None:
    lines = [json.dumps(["bird", "cat", "dog"])]
    for row in packed.clips.to_pylist():
        names = ("clip_id", "split", "label", "labels", "group", "fold", "samples", "source", "sha256")
        lines.append(json.dumps([row[name] for name in names]))
    assert packed.manifest.digest == hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def test_no_set(tmp_path: Path) -> None:
    _refused(tmp_path / "gone", "no such folder", "unfused-fast shard")
    _refused(tmp_path, "holds no manifest.json", "not a shard set", "unfused-fast shard")
    (tmp_path / "tones.csv").touch()
    _refused(
        tmp_path / "tones.csv", "tones.csv: is a file, but a shard set is a folder", "unfused-fast shard SOURCE OUT"
    )


def test_other_version(copy: Path) -> None:
    _edit(copy, schema_version=1)
    _refused(copy, "schema version 1", "version 5", "pack the set again")
    (copy / "manifest.json").write_text("[]")
    _refused(copy, "schema version None")


def test_malformed_manifest(copy: Path) -> None:
    _edit(copy, sample_rate=24000)
    _refused(copy, "24000 Hz", "16000 Hz", "pack the set again")
    _edit(copy, surprise=1)
    _refused(copy, "manifest.json", "surprise")
    _edit(copy, splits={"train": {}})
    _refused(copy, "manifest.json", "not a manifest of version 5")
    (copy / "manifest.json").write_text("{")
    _refused(copy, "manifest.json", "cannot be read")


@pytest.mark.parametrize("name", ["train-000001.tar", "valid-000000.idx"])
def test_missing_shard(copy: Path, name: str) -> None:
    (copy / name).unlink()
    _refused(copy, name, "missing")


def test_table_that_is_not_the_manifest_s(copy: Path) -> None:
    manifest = read_manifest(copy)
    splits = json.loads(manifest.to_json())["splits"]
    _edit(copy, splits={**splits, "train": {**splits["train"], "clips": 23}})
    _refused(copy, "clips.parquet", "24 train", "23 train")
    _edit(copy, splits={name: splits[name] for name in ("train", "valid", "test")})
    _refused(copy, "clips.parquet", "7 extra", "different sets")


def test_table_that_is_none(copy: Path) -> None:
    clips = pq.read_table(copy / "clips.parquet")
    pq.write_table(clips.slice(1), copy / "clips.parquet")
    _refused(copy, "clips.parquet", "ids are not its row numbers")
    pq.write_table(pa.table({"clip_id": [0]}), copy / "clips.parquet")
    _refused(copy, "clips.parquet", "columns (clip_id)")
    (copy / "clips.parquet").write_bytes(b"PAR1")
    _refused(copy, "clips.parquet", "cannot be read")
    (copy / "clips.parquet").unlink()
    _refused(copy, "clips.parquet", "cannot be read")
