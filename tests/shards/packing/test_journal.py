"""What an unfinished set keeps of its pack: it is resumed by the same request only, and damage there is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from remote_files import bytes_of
from stopped_packs import pack_alone, stopped

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.merge import merge
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow


def test_an_unfinished_set_is_resumed_only_by_the_same_request(
    rows: list[SourceRow], packed: ShardSet, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped(rows, out)
    with pytest.raises(UserError, match=r"started with different options \(seed 0 there, 3 now\)"):
        pack_alone(rows, out, clips_per_shard=10, seed=3)
    with pytest.raises(UserError, match=r"files 45 there, 44 now; sources"):
        pack_alone(rows[:-1], out, clips_per_shard=10, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfused_fast.shards.packing.options.SCHEMA_VERSION", 99)
        with pytest.raises(
            UserError, match=r"program unfused-fast \S+, schema 5 there, unfused-fast \S+, schema 99 now"
        ):
            pack_alone(rows, out, clips_per_shard=10)
    again = pack_alone(rows, out, clips_per_shard=10, overwrite=True)
    assert again.shards_made == again.shards == 6
    assert bytes_of(out) == bytes_of(packed.directory)


DAMAGED_REQUESTS = [
    *(b"", b"{", b"\0\xff\1", b"5", b"null", b"[]", b"[" * 100_000),
    *(b'{"owner": "x"}', b'{"owner": 5, "request": {}}'),
]


@pytest.mark.parametrize("shards", [False, True])
def test_a_request_that_cannot_be_read(rows: list[SourceRow], packed: ShardSet, tmp_path: Path, shards: bool) -> None:
    """Also where no shard was made, but headers, which may be of other files, were read."""
    out, request = tmp_path / "out", tmp_path / "out.partial/journal/request.json"
    stopped(rows, out)
    for path in [] if shards else [*request.parent.glob("*.parquet"), *request.parent.parent.glob("train*")]:
        path.unlink()
    for content in DAMAGED_REQUESTS:
        request.write_bytes(content)
        for resume in (False, True):
            with pytest.raises(
                UserError, match=r"not an unfinished set that this version can resume; delete it, or .* --overwrite"
            ):
                pack_alone(rows, out, clips_per_shard=10, resume=resume)
    pack_alone(rows, out, clips_per_shard=10, overwrite=True)
    assert bytes_of(out) == bytes_of(packed.directory)


FOREIGN_LINES = [
    *(b"5", b"null", b"{}", b"[0,[[5]]]", b"[0, [5]]", b"[[], []]", b"[0, []]", b"[7, [[5, 16000]]]", b"\xff\xfe"),
    *(b"[" * 9999, b'[0, [["no reason", ""]]]'),
    b"[0," + json.dumps([[5, 0, []]] * 45).encode() + b"]",
    b"[[], 0, {}]",
    b'["train-000000", 0, []]',
    b'["train-000000", -1, {"train-000000.tar": [], "train-000000.idx": []}]',
    b'["train-000000", 0, {"train-000000.tar": 5, "train-000000.idx": 5}]',
]


@pytest.mark.parametrize("alone", [False, True])
def test_foreign_lines_in_the_journal(rows: list[SourceRow], packed: ShardSet, tmp_path: Path, alone: bool) -> None:
    out, journal, lines = tmp_path / "out", tmp_path / "out.partial/journal", b"\n".join(FOREIGN_LINES)
    stopped(rows, out)
    for name in ("headers.jsonl", "sent.jsonl"):
        path = journal / name
        path.write_bytes(lines if alone or not path.exists() else path.read_bytes() + b"\n" + lines + b"\n")
    assert pack_alone(rows, out, clips_per_shard=10).shards_made == 3
    assert bytes_of(out) == bytes_of(packed.directory)


@pytest.mark.parametrize(("before", "after"), [(0.3, 12), (0, 0.3), (12, 0.3)])
def test_files_that_change_while_a_pack_is_stopped(
    rows: list[SourceRow], tmp_path: Path, before: float, after: float
) -> None:
    """One that grew, one that was empty and one that was too long: the set is that of the files as they are now."""
    changing = tmp_path / "changing.wav"
    rows = [replace(rows[0], path=changing), *rows[1:]]
    soundfile.write(changing, np.zeros(round(16000 * before)), 16000)
    stopped(rows, tmp_path / "out")
    soundfile.write(changing, np.full(round(16000 * after), 0.5), 16000)
    assert pack_alone(rows, tmp_path / "out", clips_per_shard=10).rejected == {}
    pack_alone(rows, tmp_path / "anew", clips_per_shard=10)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "anew")


def _about(value: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({"unfused": json.dumps(value)})


DAMAGED_NOTES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no metadata": lambda table: table.replace_schema_metadata(None),
    "a number": _about(5),
    "null": _about(None),
    "other rejections": _about({"rejected": [5], "bytes": 5}),
    "other bytes": _about({"rejected": [], "bytes": None}),
    "a column less": lambda table: table.drop_columns(["samples"]),
    "another type": lambda table: table.set_column(0, "split", pa.array([1] * table.num_rows)),
    "a row less": lambda table: table.slice(1).replace_schema_metadata(table.schema.metadata),
}


@pytest.fixture(scope="module")
def sound(rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unfinished set and two parts of it; not to be written to."""
    folder = tmp_path_factory.mktemp("sound")
    stopped(rows, folder / "out")
    for number in (1, 2):
        pack_alone(rows, folder / f"part{number}", part=(number, 2), clips_per_shard=10)
    return folder


@pytest.mark.parametrize("kind", [*DAMAGED_NOTES, "cut", "a page", "the index"])
def test_damaged_notes_and_indexes(
    rows: list[SourceRow], packed: ShardSet, sound: Path, tmp_path: Path, kind: str
) -> None:
    """In an unfinished set the shard is made again; a part is refused, before anything is linked."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    parts = [tmp_path / "part1", tmp_path / "part2"]
    for folder in (tmp_path / "out.partial", parts[0]):
        path = folder / "journal/train-000001.parquet"
        data = bytearray(path.read_bytes())
        if kind in DAMAGED_NOTES:
            pq.write_table(DAMAGED_NOTES[kind](pq.read_table(path)), path)
        elif kind == "the index":
            index = folder / "train-000001.idx"
            index.write_text(index.read_text().replace("json", "j on", 1))
        else:
            data[4:400] = bytes(396)
            path.write_bytes(data[: len(data) // 2] if kind == "cut" else data)
    assert pack_alone(rows, tmp_path / "out", clips_per_shard=10).shards_made == 4
    assert bytes_of(tmp_path / "out") == bytes_of(packed.directory)
    with pytest.raises(
        UserError, match=r"part1: train-000001.tar or its index is missing or damaged; copy the part again or pack"
    ):
        merge(parts, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))
