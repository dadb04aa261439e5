"""Sets that the `datasets` library wrote: packed, they are the same bytes as the files that they were made from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hub_server import Repository, hub_server
from outcomes import Cli, refused

from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows

datasets: Any
CLASSES = ["low", "high", "noise"]


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    """Imported where a test runs: it takes seconds."""
    global datasets
    datasets = pytest.importorskip("datasets")


@pytest.fixture
def recordings(tone_rows: list[SourceRow]) -> list[Path]:
    return [Path(str(row.path)) for row in tone_rows[:12]]


def made(paths: Sequence[Path | None], **columns: list[Any]) -> Any:
    """A Dataset whose recordings are inside it, as those of the Hub are."""
    audio = [path and {"bytes": path.read_bytes(), "path": path.name} for path in paths]
    table = datasets.Dataset.from_dict({"audio": audio, **columns})
    return table.cast_column("audio", datasets.Audio(decode=False)).cast_column("audio", datasets.Audio())


def same(first: ShardSet, second: ShardSet) -> None:
    assert first.manifest.digest == second.manifest.digest and first.clips.equals(second.clips)


def packed(cli: Cli, *given: object) -> ShardSet:
    done = cli("shard", *given, "--workers", 1)
    assert done.code == 0, done.err
    return open_shards(Path(str(given[1])))


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_splits_and_classes(
    cli: Cli, recordings: list[Path], pack_rows: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    numbers = [place % 3 for place in range(9)]
    classes = datasets.ClassLabel(names=CLASSES)
    train = made(recordings[:9], label=numbers, speaker=[f"s{place // 3}" for place in range(9)])
    parts = {"train": train.cast_column("label", classes)}
    parts["validation"] = made(recordings[9:], label=[-1, 0, 1], speaker=["t", "t", "u"]).cast_column("label", classes)
    folder = tmp_path / "saved"
    if kind == "parquet":
        (folder / "data").mkdir(parents=True)
        for name, part in parts.items():
            part.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    else:
        datasets.DatasetDict(parts).save_to_disk(folder, num_shards={"train": 2, "validation": 1})
    found = packed(cli, folder, tmp_path / "found", "--option", "group=speaker")
    labels = [*(CLASSES[number] for number in numbers), None, "low", "high"]
    groups = [*(f"s{place // 3}" for place in range(9)), "t", "t", "u"]
    splits = ["train"] * 9 + ["valid"] * 3
    rows = [
        SourceRow(path, f"{split}/{path.name}", label, split, group)
        for path, label, split, group in zip(recordings, labels, splits, groups, strict=True)
    ]
    same(found, open_shards(pack_rows(rows, tmp_path / "wanted")))


def test_lists_of_classes_folds_and_recordings_that_are_not_there(
    cli: Cli, recordings: list[Path], tmp_path: Path
) -> None:
    tags, folds = [[0, 2], [], [1], [1, 1], [0]], [1, 2, 1, 2, 3]
    table = made([*recordings[:4], None], tags=tags, fold=folds, text=["a", "b", "c", "d", "e"])
    table = table.cast_column("tags", datasets.List(datasets.ClassLabel(names=CLASSES)))
    table.save_to_disk(tmp_path / "saved")
    done = cli("shard", tmp_path / "saved", tmp_path / "found", "--workers", 1)
    assert done.code == 0 and "labels are those of column tags" in done.err and "not read: text" in done.err, done.err
    clips = open_shards(tmp_path / "found").clips.to_pylist()
    names = open_shards(tmp_path / "found").manifest.label_names
    labels = {clip["source"].split("/")[1]: {names[label] for label in clip["labels"] or ()} for clip in clips}
    wanted = [{"low", "noise"}, set(), {"high"}, {"high"}]
    assert labels == {path.name: row for path, row in zip(recordings, wanted, strict=False)}
    assert {clip["source"].split("/")[1]: clip["fold"] for clip in clips} == {
        path.name: fold for path, fold in zip(recordings, (1, 2, 1, 2), strict=False)
    }
    assert "has no recording" in (tmp_path / "found" / "rejected.csv").read_text()


def test_what_is_not_known_is_no_label(recordings: list[Path], tmp_path: Path) -> None:
    nan = float("nan")
    made(recordings[:3], label=[1.5, nan, 2.0], group=[nan, 1.0, 2.0]).save_to_disk(tmp_path / "one")
    assert [(row.label, row.group) for row in source_rows(tmp_path / "one")] == [
        ("1.5", None),
        (None, "1.0"),
        ("2.0", "2.0"),
    ]
    made(recordings[:2], labels=[[1.5, nan], [nan]]).save_to_disk(tmp_path / "several")
    assert [row.labels for row in source_rows(tmp_path / "several")] == [("1.5",), ()]


@pytest.mark.parametrize("fold", [-1, 2**31])
def test_folds_that_are_none(recordings: list[Path], tmp_path: Path, fold: int) -> None:
    made(recordings[:2], fold=[1, fold]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=f"row 1 of split train has fold {fold}, but a fold is a whole number"):
        source_rows(tmp_path / "saved")


def test_embed_reads_it_too(cli: Cli, recordings: list[Path], pretrained: Path, tmp_path: Path) -> None:
    import numpy as np

    made(recordings[:3]).save_to_disk(tmp_path / "saved")
    tables = []
    for given in ([tmp_path / "saved"], recordings[:3]):
        out = tmp_path / f"{len(tables)}.npz"
        done = cli("embed", *given, "--encoder", pretrained, "--out", out, "--device", "cpu", "--workers", 1)
        assert done.code == 0, done.err
        tables.append(np.load(out)["embeddings"])
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["saved", "--option", "speed=2"], ["--option speed", "audio, label, group, config"]),
        (["saved", "--option", "label=genre"], ["--option label=genre", "it has audio, label, mood"]),
        (["saved", "--labels-from-folders"], ["a data set has labels of its own", "--option label=NAME"]),
        (["plain"], ["one column of audio is needed, found none among a; save"]),
        (["saved", "--option", "audio=mood"], ["needed, found audio among audio, label, mood; choose one with"]),
        (["uneven"], ["uneven: split test has no column label, which the first split has"]),
        (["hf://spaces/me"], ["want hf://datasets/NAME"]),
    ],
)
def test_what_is_refused(cli: Cli, recordings: list[Path], tmp_path: Path, given: list[str], says: list[str]) -> None:
    whole = made(recordings[:2], label=["a", "b"], mood=[1, 2])
    whole.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": whole, "test": made(recordings[2:3])}).save_to_disk(tmp_path / "uneven")
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "plain")
    place = given[0] if "://" in given[0] else tmp_path / given[0]
    refused(cli("shard", place, tmp_path / "out", *given[1:]), *says)


SEVERAL = """
import sys
from unfused_fast.cli import main

for source, out in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.argv = ["unfused-fast", "shard", source, out, "--workers", "1"]
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
"""


def test_a_set_of_the_hub(cli: Cli, recordings: list[Path], tmp_path: Path) -> None:
    """At a commit, and once more from the cache without a network. In processes, as their settings are read once."""
    table = made(recordings[:6], label=[0, 1, 2, 0, 1, 2]).cast_column("label", datasets.ClassLabel(names=CLASSES))
    (tmp_path / "saved").mkdir()
    table.to_parquet(tmp_path / "saved" / "train.parquet")
    wanted = packed(cli, tmp_path / "saved", tmp_path / "wanted")
    with hub_server() as hub:
        repository = hub.repositories["datasets/me/tones"] = Repository()
        name = "data/train-00000-of-00001.parquet"
        commit = repository.commit("main", {name: (tmp_path / "saved" / "train.parquet").read_bytes()})
        repository.commit("main", {name: b"what main has now"})
        variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        one, none = f"hf://datasets/me/tones@{commit}", "hf://datasets/me/none"
        for out, offline, more in (("online", "0", [none, tmp_path / "none"]), ("offline", "1", [])):
            words = [sys.executable, "-c", SEVERAL, *map(str, [*more, one, tmp_path / out])]
            done = subprocess.run(
                words, capture_output=True, text=True, env={**os.environ, **variables, "HF_HUB_OFFLINE": offline}
            )
            assert done.returncode == 0, done.stderr
            same(open_shards(tmp_path / out), wanted)
            assert done.stdout.split()[:1] == (["1"] if more else [f"{tmp_path / out}:"]), done.stdout
            assert not more or f"{none}: `datasets` cannot read it: " in done.stderr, done.stderr
