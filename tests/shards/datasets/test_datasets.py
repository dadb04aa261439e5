"""What all adapters have in common, validation splits, and `shard --dataset` and `--list`."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import DATASETS, dataset_rows
from unfused_fast.shards.datasets.dataset import PATH
from unfused_fast.shards.datasets.layout import files_below, walk
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows
from unfused_fast.shards.sources.splits import class_balanced, with_validation


@pytest.fixture
def tut(miniature: Callable[[str], Path]) -> Path:
    """Of 40 listed files one is missing and one is no audio."""
    root = miniature("tut2018")
    (root / "audio/airport-paris-0-0-a.wav").unlink()
    (root / "audio/bus-paris-10-0-a.wav").unlink()
    (root / "audio/bus-paris-10-0-a.wav").write_text("this is text\n" * 50)
    return root


def test_a_data_set_is_packed(cli: Callable[..., Any], tut: Path, tmp_path: Path) -> None:
    done = cli("shard", "--dataset", "tut2018", tut, tmp_path / "out", "--workers", 1, "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["clips"] == 38 and summary["splits"] == {"train": 19, "valid": 9, "test": 10}
    assert summary["labels"] == 10 and sum(summary["rejected"].values()) == 1
    said = " ".join(done.err.split())
    assert "tut2018: 1 file of evaluation_setup not here, such as audio/airport-paris-0-0-a.wav." in said
    assert "tut2018: Clips of train: 29; published: 6,122." in said
    assert "tut2018: No published validation split: of 29 clips of train 10 held out, by whole groups." in said
    clips = open_shards(tmp_path / "out").clips.to_pylist()
    groups = {split: {row["group"] for row in clips if row["split"] == split} for split in ("train", "valid", "test")}
    assert not groups["valid"] & (groups["train"] | groups["test"])
    assert cli("check", tmp_path / "out").code == 0


def test_archives_pack_as_the_folder_they_unpack_to(cli: Callable[..., Any], tut: Path, tmp_path: Path) -> None:
    """One zip for audio, one tar.gz for the lists, with what no archive may hold."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with zipfile.ZipFile(downloads / "audio.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tut / "audio").iterdir()):
            archive.write(path, f"audio/{path.name}")
        archive.writestr("../evil\x1b[2J.wav", b"x")
    with tarfile.open(downloads / "meta.tar.gz", "w:gz") as lists:
        lists.add(tut / "evaluation_setup", "evaluation_setup")
    digests = []
    for source, out in ((tut, tmp_path / "a"), (downloads, tmp_path / "b")):
        done = cli("shard", "--dataset", "tut2018", source, out, "--workers", 1, "--json")
        assert done.code == 0, done.err
        digests.append(json.loads(done.out)["digest"])
    assert digests[0] == digests[1]
    said = " ".join(done.err.split())
    assert "tut2018: 1 file in archives not read: audio.zip/../evil\\x1b[2J.wav (" in said and "\x1b" not in said


def test_list_has_every_set_and_label_variant_of_the_papers(cli: Callable[..., Any]) -> None:
    listed = {about["name"]: about for about in json.loads(cli("shard", "--list", "--json").out)}
    assert {name: {variant["classes"] for variant in about["variants"]} for name, about in listed.items()} == {
        "audioset": {527}, "fsd50k": {200}, "librispeech-speaker": {585, 251}, "voxceleb1": {1251},
        "speechcommands-v1": {12, 30}, "speechcommands-v2": {35, 12}, "voxforge": {6}, "iemocap": {4}, "nsynth": {11},
        "tut2018": {10}, "urbansound8k": {10}, "birdsong": {2}, "folder": {None}, "csv": {None},
    }  # fmt: skip
    for name, about in listed.items():
        assert set(about) == {
            "name", "task", "classes", "clips", "variants", "licence", "source", "layout", "options", "not_verified",
        }  # fmt: skip
        assert all(about[key] for key in ("task", "licence", "source", "layout", "variants"))
        assert (about["classes"], about["clips"]) == (about["variants"][0]["classes"], about["variants"][0]["clips"])
        for variant in about["variants"]:
            given = {key: "some/where" if value == PATH else value for key, value in variant["options"].items()}
            assert DATASETS[name].chosen(given).items() >= given.items()
    text = cli("shard", "--list").out
    assert "official split: 11 classes; clips: 289,205 train, 12,678 valid, 4,096 test; --option test=test" in text
    assert "--option test=test|valid" in text and "--option sample=all|N" in text
    assert all(dataset.layout in text for dataset in DATASETS.values())


def test_walk_ends_in_loops_and_passes_over_clutter(tmp_path: Path, wav: Callable[..., None]) -> None:
    for name in ("b/one.wav", "b/deep/two.WAV", ".hidden/x.wav", "__MACOSX/._one.wav", "a/._one.wav", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b/deep/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "c").symlink_to(tmp_path / "b", target_is_directory=True)
    assert [(here.relative_to(tmp_path).as_posix(), names) for here, names in walk(tmp_path)] == [
        (".", []),
        ("a", ["notes.txt"]),
        ("b", ["one.wav"]),
        ("b/deep", ["two.WAV"]),
    ]
    assert files_below(tmp_path, ".wav") == {"b/one.wav", "b/deep/two.WAV"}


def test_folder_and_csv_are_what_comes_without_a_name(
    cli: Callable[..., Any], tmp_path: Path, wav: Callable[..., None]
) -> None:
    for name in ("dog/1.wav", "cat/2.wav", "3.wav"):
        wav(tmp_path / "audio" / name)
    table = tmp_path / "list.csv"
    table.write_text("path,label,split,group\naudio/3.wav,x,test,g\naudio/dog/1.wav,y,train,h\n")
    assert dataset_rows("folder", tmp_path / "audio", {}).rows == source_rows(tmp_path / "audio")
    labelled = dataset_rows("folder", tmp_path / "audio", {"labels": "folders"}).rows
    labels = [(row.source, row.label) for row in labelled]
    assert labels == [("3.wav", None), ("cat/2.wav", "cat"), ("dog/1.wav", "dog")]
    listed = dataset_rows("csv", table, {})  # a test and no valid: nothing is held out of train
    assert listed.rows == source_rows(table) and listed.notes == []
    done = cli("shard", "--dataset", "csv", table, tmp_path / "out", "--json")
    assert done.code == 0 and json.loads(done.out)["clips"] == 2, done.err
    assert open_shards(tmp_path / "out").manifest.dataset == {"name": "csv", "options": {}}
    with pytest.raises(UserError, match="no such folder; folder needs this layout"):
        dataset_rows("folder", table, {})
    with pytest.raises(UserError, match="use --dataset folder"):
        dataset_rows("csv", tmp_path, {})


def test_what_cannot_be_asked(cli: Callable[..., Any], tut: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such data set; there are: " + ", ".join(DATASETS) in cli("shard", "--dataset", "mnist", tut, out).error
    assert "own labels" in cli("shard", "--dataset", "tut2018", tut, out, "--labels-from-folders").error
    assert "no such option" in cli("shard", "--dataset", "tut2018", tut, out, "--option", "a=b").error
    assert "want key=value" in cli("shard", "--dataset", "tut2018", tut, out, "--option", "a").error
    assert "name it with --dataset" in cli("shard", tut, out, "--option", "a=b").error
    assert (
        "no such folder; tut2018 needs this layout"
        in cli("shard", "--dataset", "tut2018", tmp_path / "gone", out).error
    )
    for given in ((), (tut,)):
        done = cli("shard", *given)
        assert done.code == 2 and ("missing OUT" if given else "missing SOURCE and OUT") in done.err
    assert not out.exists()


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("folder", "csv")])
def test_every_adapter_refuses_another_folder_with_its_layout(name: str, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("no audio")
    with pytest.raises(UserError) as caught:
        dataset_rows(name, tmp_path, {})
    assert str(tmp_path) in str(caught.value) and DATASETS[name].layout in str(caught.value)


def _rows(groups: dict[str, tuple[str, int]], split: str = "train") -> list[SourceRow]:
    return [
        SourceRow(Path(f"{group}{number}"), f"{group}{number}", label, split, group)
        for group, (label, count) in groups.items()
        for number in range(count)
    ]


def test_validation_takes_whole_groups_of_every_label() -> None:
    groups = {f"s{number}": ("cat" if number % 2 else "dog", 1 + number % 3) for number in range(60)}
    rows = _rows(groups) + _rows({"t": ("dog", 4)}, "test")
    made = with_validation(rows)
    assert [row.source for row in made] == [row.source for row in rows]
    splits = {group: {row.split for row in made if row.group == group} for group in (*groups, "t")}
    assert all(len(found) == 1 for found in splits.values()) and splits["t"] == {"test"}
    for label in ("cat", "dog"):
        counts = Counter(row.split for row in made if row.label == label)
        assert 0.08 < counts["valid"] / (counts["valid"] + counts["train"]) < 0.15
    assert with_validation(rows) == made


def test_validation_at_its_limits() -> None:
    made = with_validation(_rows({"a": ("dog", 50), "b": ("dog", 30), "c": ("dog", 40), "lone": ("cat", 9)}))
    assert {row.group for row in made if row.split == "valid"} == {"b"}  # the smallest; cat keeps its only group
    single = [SourceRow(Path(str(number)), str(number)) for number in range(100)]
    assert Counter(row.split for row in with_validation(single)) == {"train": 90, "valid": 10}


def test_class_balanced_is_flatter_than_chance_and_hardly_moves_with_a_gap() -> None:
    frequent = {f"f{number}": ["common"] for number in range(900)}
    rare = {f"r{number}": [f"rare{number % 10}"] for number in range(100)}
    taken = class_balanced(frequent | rare, 110, 3)
    counts = Counter((frequent | rare)[name][0] for name in taken)
    assert counts == {"common": 10} | {f"rare{number}": 10 for number in range(10)}
    assert taken == class_balanced(dict(reversed((frequent | rare).items())), 110, 3)
    assert taken != class_balanced(frequent | rare, 110, 4)
    lost = min(name for name in taken if name.startswith("f"))
    del frequent[lost]
    assert len(taken - class_balanced(frequent | rare, 110, 3)) == 1
