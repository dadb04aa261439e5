"""Splits that --split makes, and what is said of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.remarks import remarks
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.splits import parsed_shares, with_shares


def test_labels_that_a_split_lacks_are_named(tone_rows: list[SourceRow], tmp_path: Path) -> None:
    rows = [row for row in tone_rows if row.split != "test" or row.label == "low"]
    said = remarks(pack(rows, tmp_path / "set", workers=0).shard_set)
    assert said == ["2 of 3 labels have no clip in split test: high, middle"]


def _rows(count: int, per_group: int, labels: int, several: bool = False) -> list[SourceRow]:
    """Groups hold clips of one label; of `several` labels, two neighbours."""
    made = []
    for number in range(count):
        group = number // per_group
        names = tuple(f"l{(group + more) % labels}" for more in range(1 + several)) if labels else ()
        label = None if several or not names else names[0]
        name = f"{number:04d}.wav"
        made.append(SourceRow(Path(name), name, label, group=f"g{group}", labels=names if several else ()))
    return made


@pytest.mark.parametrize(
    ("per_group", "labels", "several"), [(1, 0, False), (1, 5, False), (7, 4, False), (3, 6, True)]
)
@pytest.mark.parametrize("text", ["70/10/20", "80/20", "33.4/33.3/33.3"])
def test_made_splits(per_group: int, labels: int, several: bool, text: str) -> None:
    rows, shares = _rows(840, per_group, labels, several), parsed_shares(text)
    split, _ = with_shares(rows, shares, 3)
    assert [row.source for row in split] == [row.source for row in rows]
    splits_of: dict[str | None, set[str]] = {}
    for row in split:
        splits_of.setdefault(row.group, set()).add(row.split)
    assert {len(found) for found in splits_of.values()} == {1}
    counts = Counter(row.split for row in split)
    assert all(abs(counts[name] - share * 840) <= per_group for name, share in shares.items())
    if labels and not several:  # of each label the same shares, but for one group in each split
        each = Counter((row.label, row.split) for row in split)
        assert all(
            abs(each[f"l{label}", name] - share * 840 / labels) <= 2 * per_group
            for label in range(labels)
            for name, share in shares.items()
        )
    assert with_shares(rows, shares, 3)[0] == split != with_shares(rows, shares, 4)[0]


def test_files_that_are_no_audio_are_not_counted() -> None:
    """They would be lost from a split, whole ones where few files are recordings."""
    audio = [SourceRow(Path("x"), f"{number}.wav", group=f"{number}") for number in range(10)]
    others = [SourceRow(Path("x"), f"{number}.txt") for number in range(90)]
    copy = SourceRow(Path("x"), "9.wav (2)", group="9")
    alone, _ = with_shares([*audio, copy], parsed_shares("80/20"), 0)
    split, said = with_shares([*others, *audio, copy], parsed_shares("80/20"), 0)
    assert split[90:] == alone and {row.split for row in split[:90]} == {"train"}
    assert Counter(row.split for row in alone)["test"] in (2, 3)
    assert said.endswith("; 90 files without the ending of a recording not counted")


def test_every_label_that_is_tested_is_trained() -> None:
    rows = [SourceRow(Path(f"{n}.wav"), f"{n}.wav", f"l{n % 40}") for n in range(100)]
    split, _ = with_shares(rows, parsed_shares("40/20/40"), 0)
    assert {row.label for row in split if row.split == "train"} == {row.label for row in rows}


@pytest.mark.parametrize(
    "text", ["70/10", "70/10/20/0", "70/-10/40", "0/50/50", "a/b", "100", "nan/10/20", "70/10/20.1"]
)
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"--split .*give percentages above 0 that add up to 100"):
        parsed_shares(text)


def test_splits_that_cannot_be_made() -> None:
    rows = _rows(20, 1, 2)
    with pytest.raises(UserError, match=r"has splits already: 19 train, 1 test; leave --split out"):
        with_shares([*rows[:19], SourceRow(Path("x"), "x", split="test")], parsed_shares("80/20"), 0)
    with pytest.raises(UserError, match=r"valid, test would be empty: .* too few groups \(1\)"):
        with_shares(_rows(20, 20, 1), parsed_shares("70/10/20"), 0)


@pytest.fixture
def table(tmp_path: Path, write_tone: Callable[..., Any]) -> Path:
    """24 files of two labels and twelve speakers; the first is cut in three clips."""
    lines = ["path,label,group,note"]
    for number in range(24):
        soundfile.write(tmp_path / f"{number}.wav", write_tone(0.6 if number == 0 else 0.2, 16000, 300 + number), 16000)
        lines.append(f"{number}.wav,{'' if number == 5 else 'ab'[number // 2 % 2]},s{number // 2},x")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    return tmp_path / "t.csv"


def test_shard_makes_splits_and_says_what_it_did(cli: Callable[..., Any], table: Path, tmp_path: Path) -> None:
    tables = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = cli(
            "shard", table, tmp_path / name, "--split", "60/20/20", "--seed", seed, "--max-seconds", "0.2", "--json"
        )
        assert done.code == 0, done.err
        tables.append(pq.read_table(tmp_path / name / "clips.parquet").to_pylist())
    assert tables[0] == tables[1] != tables[2]
    for clips in tables:
        splits_of: dict[str, set[str]] = {}
        for clip in clips:
            splits_of.setdefault(clip["group"], set()).add(clip["split"])
        assert {len(found) for found in splits_of.values()} == {1} and len(splits_of) == 12
        files = Counter({clip["source"]: clip["split"] for clip in clips}.values())
        assert all(
            abs(files[split] - wanted) <= 2 for split, wanted in (("train", 14.4), ("valid", 4.8), ("test", 4.8))
        )
    assert "--split 60/20/20: " in done.err and "12 whole groups, 2 labels" in done.err
    assert done.err.count("columns not read: note") == 1
    assert json.loads(done.out)["notes"] == [
        "1 of 24 files were longer than 0.2 s and cut into 3 clips (--max-seconds 0.2)",
        "1 of 26 clips have no label",
    ]


def test_the_same_sound_in_two_splits_is_said_and_all_copies_are_named(
    cli: Callable[..., Any], table: Path, tmp_path: Path
) -> None:
    for number in (2, 3):
        (tmp_path / f"{number}.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    table.write_text("path,split\n1.wav,train\n2.wav,train\n3.wav,test\n4.wav,test\n")
    done = cli("shard", table, tmp_path / "set", "--json")
    assert json.loads(done.out)["notes"] == [
        "recordings with an identical copy in another split: 1; unfused-fast check lists them"
    ]
    checked = cli("check", tmp_path / "set")
    named = re.findall(r"same as (\d\.wav \(\w+\)), (\d\.wav \(\w+\))", " ".join((checked.out + checked.err).split()))
    assert {part for pair in named for part in pair} <= {
        f"{n}.wav ({s})" for n, s in zip("123", ("train", "train", "test"), strict=True)
    }
    assert len(named) == 2
