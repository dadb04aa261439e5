"""`unfused-fast peek`: numbers against the rows that were packed, clips against their samples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from unfused_fast.explore.peek import contents, examples_of
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows


def test_the_table_counts_what_was_packed(packed: ShardSet, rows: list[SourceRow]) -> None:
    table = {(row["split"], row["label"]): row for row in contents(packed)}
    lengths = [soundfile.info(row.path).duration for row in rows if (row.split, row.label) == ("train", "dog")]
    found = table["train", "dog"]
    assert found["clips"] == len(lengths)
    expected = (sum(lengths), min(lengths), float(np.median(lengths)), max(lengths))
    assert np.allclose([found[name] for name in ("seconds", "shortest", "median", "longest")], expected, atol=1e-3)
    assert table["train", "(no label)"]["clips"] == 1
    assert sum(row["clips"] for (_, label), row in table.items() if label == "(all)") == len(rows)


def test_a_multi_label_clip_counts_for_each_label_and_an_unlabelled_set_has_a_row_a_split(
    rows: list[SourceRow], tmp_path: Path
) -> None:
    tagged = [SourceRow(row.path, row.source, labels=("x", "y") if n % 2 else ("y",)) for n, row in enumerate(rows[:6])]
    made = pack(tagged, tmp_path / "tagged", workers=0).shard_set
    bare = [SourceRow(row.path, row.source, split=row.split) for row in rows[:6]]
    plain = pack(bare, tmp_path / "plain", workers=0).shard_set
    found = {row["label"]: row["clips"] for row in contents(made)}
    assert found == {"(all)": 6, "x": 3, "y": 6}
    assert {row["label"] for row in contents(plain)} == {"(all)"}


def test_sheet_and_clips_are_those_of_the_set(
    cli: Any, packed: ShardSet, rows: list[SourceRow], tmp_path: Path
) -> None:
    sheet, folder = tmp_path / "deep" / "sheet.png", tmp_path / "play"
    done = cli("peek", packed.directory, "--out", sheet, "--play-to", folder, "--examples", 2, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert sheet.read_bytes().startswith(b"\x89PNG") and sheet.stat().st_size > 10_000
    assert sorted(map(str, folder.iterdir())) == sorted(told["clips"])
    packed_from = {Path(row.source).stem: row for row in rows}
    names = [path.stem.split("-") for path in folder.iterdir()]
    assert sorted(label for label, _, _ in names) == sorted(["bird", "cat", "dog"] * 2 + ["no_label"])
    for path in folder.iterdir():
        label, clip_id, stem = path.stem.split("-")
        assert packed_from[stem].label == (None if label == "no_label" else label)
        assert packed.clips["source"][int(clip_id)].as_py() == packed_from[stem].source
        assert np.abs(soundfile.read(path)[0] - soundfile.read(packed_from[stem].path)[0]).max() < 1e-4


def test_names_of_files_are_safe_whatever_the_labels(cli: Any, rows: list[SourceRow], tmp_path: Path) -> None:
    odd = [
        SourceRow(row.path, row.source, label) for row, label in zip(rows, ("../up", "a/b c", "$x$ é"), strict=False)
    ]
    pack(odd, tmp_path / "odd", workers=0)
    done = cli("peek", tmp_path / "odd", "--out", tmp_path / "odd.png", "--play-to", tmp_path / "play")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "play").iterdir())) == 3
    assert all(path.name.isascii() and " " not in path.name for path in (tmp_path / "play").iterdir())
    assert not (tmp_path / "up").exists()


def test_many_classes_are_spread_over_the_alphabet(rows: list[SourceRow], tmp_path: Path) -> None:
    many = [SourceRow(row.path, row.source, f"class{n:02d}") for n, row in enumerate(rows[:24])]
    shown = {clip.label for clip in examples_of(pack(many, tmp_path / "many", workers=0).shard_set, 1)}
    assert shown == {f"class{n:02d}" for n in range(0, 24, 2)}


@pytest.mark.parametrize(
    ("old", "new"),
    [(r"\b00000000", "00100000"), (r"\bwav (\d.*?)wav\b", r"txt \1txt"), (r"\bwav \d+", "wav 512")],
    ids=["other ids", "no audio", "not the audio"],
)
def test_a_clip_that_is_not_where_the_index_says(cli: Any, copy: Path, old: str, new: str) -> None:
    index = copy / "train-000000.idx"
    index.write_text(re.sub(old, new, index.read_text()))
    done = cli("peek", copy, "--out", copy.parent / "sheet.png")
    said = r"copy: clip \d is in no shard, or cannot be decoded; unfused-fast check \S+copy reports what is wrong"
    assert done.code == 1 and re.search(said, done.error), done.err


def test_a_sheet_that_cannot_be_written(cli: Any, packed: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cli("peek", packed.directory, "--out", tmp_path / "file" / "sheet.png")
    assert done.code == 1 and "name a .png with --out" in done.error


def test_silence_is_dark_beside_sound(cli: Any, tmp_path: Path) -> None:
    """All log-mels of a sheet have one scale."""
    for name, level in (("0 loud", 0.3), ("1 silent", 0.0)):
        (tmp_path / "source").mkdir(exist_ok=True)
        noise = np.random.default_rng(0).uniform(-level, level, 16000)
        soundfile.write(tmp_path / "source" / f"{name}.wav", noise, 16000)
    pack(source_rows(tmp_path / "source"), tmp_path / "set", workers=0)
    assert cli("peek", tmp_path / "set", "--out", tmp_path / "sheet.png").code == 0
    halves = np.array_split(imread(tmp_path / "sheet.png")[..., :3], 2, axis=1)
    order = [row["source"] for row in open_shards(tmp_path / "set").clips.to_pylist()]
    brightness = dict(zip(order, (half.mean() for half in halves), strict=True))
    assert brightness["1 silent.wav"] < 0.8 * brightness["0 loud.wav"]
