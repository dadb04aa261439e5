"""AudioSet in miniature: tables as published, audio as people keep it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import dataset_rows
from unfused_fast.shards.datasets.audioset import DATASET

HEADER = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids={0}, num_segs={0}, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
"""
LABELS = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/t/dd00088,"Gargling"
3,/m/0l15bq,"Clatter"
4,/m/07rv4dm,"Clatter"
"""
BALANCED = [("--PJHxphWEs", "/m/09x0r,/t/dd00088"), ("_ABCDEFGHIJ", "/m/0l15bq"), ("YAbcdefghij", "/m/07rv4dm")]
UNBALANCED = [("---1_cCGK4M", "/m/05zppz,/m/09x0r"), ("zzzzzzzzzzz", "/m/09x0r"), ("missing1234", "/m/09x0r")]
EVAL = [("-0RWZT-miFs", "/m/09x0r")]
AUDIO = [
    "balanced_train_segments/--PJHxphWEs_30.000_40.000.wav",  # EVAR: the id is the first 11 characters
    "balanced_train_segments/_ABCDEFGHIJ.flac",
    "audiocaps/YYAbcdefghij.wav",  # a Y before an id that begins with one
    "---1_cCGK4M.WAV",
    "audiocaps/Yzzzzzzzzzzz_0_10.wav",
    "eval_segments/-0RWZT-miFs.wav",
]


def _table(root: Path, name: str, lines: list[tuple[str, str]]) -> None:
    text = "".join(f'{video}, 30.000, 40.000, "{mids}"\n' for video, mids in lines)
    (root / name).write_text(HEADER.format(len(lines)) + text)


@pytest.fixture
def root(tmp_path: Path, wav: Callable[..., None]) -> Path:
    _table(tmp_path, "balanced_train_segments.csv", BALANCED)
    _table(tmp_path, "unbalanced_train_segments.csv", UNBALANCED)
    _table(tmp_path, "eval_segments.csv", EVAL)
    (tmp_path / "class_labels_indices.csv").write_text(LABELS)
    for name in AUDIO:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        wav(path.with_suffix(".wav"), 48000, 2)
        if path.suffix != ".wav":
            path.with_suffix(".wav").rename(path)
    return tmp_path


def test_clips_are_found_however_their_files_are_named(root: Path) -> None:
    found = DATASET.discover(root, {})
    assert [(row.source, row.label, row.labels, row.split, row.group) for row in found.rows] == [
        (AUDIO[0], None, ("Speech", "Gargling"), "train", "--PJHxphWEs"),
        (AUDIO[1], None, ("Clatter (/m/0l15bq)",), "train", "_ABCDEFGHIJ"),
        (AUDIO[2], None, ("Clatter (/m/07rv4dm)",), "train", "YAbcdefghij"),
        (AUDIO[3], None, ("Male speech, man speaking", "Speech"), "train", "---1_cCGK4M"),
        (AUDIO[4], None, ("Speech",), "train", "zzzzzzzzzzz"),
        (AUDIO[5], None, ("Speech",), "test", "-0RWZT-miFs"),
    ]
    assert all(row.path.is_file() for row in found.rows if isinstance(row.path, Path))
    notes = " ".join(found.notes)
    assert "balanced: 3 of 3 listed clips are here (100.0%)." in notes
    assert "unbalanced: 2 of 3 listed clips are here (66.7%)." in notes
    assert "eval_segments.csv lists 1 clips; published: 20,371." in notes
    assert "class_labels_indices.csv names 5 classes; published: 527." in notes
    assert "1 names belong to several classes" in notes and "it is not whole" not in notes


def test_choice_of_tables(root: Path) -> None:
    for given, splits in (
        ({"split": "balanced"}, {"train": 3, "test": 1}),
        ({"split": "unbalanced", "eval": "none"}, {"train": 2}),
    ):
        assert Counter(row.split for row in DATASET.discover(root, given).rows) == splits
    (root / "metadata").mkdir()
    for name in ("class_labels_indices.csv", "balanced_train_segments.csv"):
        (root / name).rename(root / "metadata" / name)
    (root / "eval_segments.csv").unlink()
    assert len(DATASET.discover(root, {"eval": "none"}).rows) == 5
    with pytest.raises(UserError, match=r"no eval_segments\.csv here.*or say --option eval=none"):
        DATASET.discover(root, {})
    (root / "unbalanced_train_segments.csv").unlink()
    with pytest.raises(UserError, match=r"no unbalanced_train_segments\.csv here.*or say --option split=balanced"):
        DATASET.discover(root, {"eval": "none"})


def test_files_that_are_not_listed_and_copies_are_left_out_and_said(root: Path, wav: Callable[..., None]) -> None:
    wav(root / "holiday.wav")
    wav(root / "zz copies/--PJHxphWEs.wav")
    _table(root, "unbalanced_train_segments.csv", [*UNBALANCED, BALANCED[0]])
    found = DATASET.discover(root, {})
    assert len(found.rows) == 6 and len({row.source for row in found.rows}) == 6
    notes = " ".join(found.notes)
    assert "2 audio files left out: not listed, or a further copy, such as holiday.wav." in notes
    assert "1 clips are listed twice; the first line counts." in notes


def test_a_table_that_was_cut_is_said(root: Path) -> None:
    table = root / "balanced_train_segments.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    notes = DATASET.discover(root, {}).notes
    assert "balanced_train_segments.csv has 2 clips, but its second line says 3: it is not whole." in notes


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("/t/dd00088", "/m/nothing", r"line 4: '/m/nothing' is no class of class_labels_indices\.csv"),
        ('"/m/09x0r,/t/dd00088"', "/m/09x0r,/t/dd00088", "line 4 is .* but a line must be like"),
        ("--PJHxphWEs,", "PJHx,", "line 4 is .* but a line must be like"),
    ],
)
def test_lines_that_are_not_published_ones(root: Path, old: str, new: str, words: str) -> None:
    table = root / "balanced_train_segments.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UserError, match=words):
        DATASET.discover(root, {})


def test_another_folder(root: Path) -> None:
    for name in AUDIO:
        (root / name).unlink()
    with pytest.raises(
        UserError, match="0 audio files, but none is named by a listed video; audioset needs this layout: ROOT/"
    ):
        DATASET.discover(root, {})


@pytest.fixture
def uneven(tmp_path: Path, wav: Callable[..., None]) -> Path:
    """30 clips of speech, four of gargling and clatter each."""
    lines = [(f"speech{number:05d}", "/m/09x0r") for number in range(30)]
    lines += [(f"gargle{number:05d}", "/t/dd00088,/m/09x0r") for number in range(4)]
    lines += [(f"clatter{number:04d}", "/m/0l15bq") for number in range(4)]
    _table(tmp_path, "balanced_train_segments.csv", lines)
    _table(tmp_path, "eval_segments.csv", EVAL)
    (tmp_path / "class_labels_indices.csv").write_text(LABELS)
    for video, _ in lines + EVAL:
        (tmp_path / f"{video}.wav").write_bytes(b"")
    return tmp_path


def test_sample_is_class_balanced_seeded_and_listed(uneven: Path) -> None:
    given = {"split": "balanced", "sample": "12"}
    found = DATASET.discover(uneven, given)
    train = [row for row in found.rows if row.split == "train"]
    # By hand: gargling brings speech along, so 4 gargling, 4 clatter, and 4 of speech alone fill the 12.
    assert Counter(name for row in train for name in row.labels) == {
        "Speech": 8,
        "Gargling": 4,
        "Clatter (/m/0l15bq)": 4,
    }
    assert [row.group for row in found.rows if row.split == "test"] == ["-0RWZT-miFs"]
    text = found.files["audioset-sample.csv"]
    assert text == "ytid\n" + "".join(f"{row}\n" for row in sorted(str(row.group) for row in train))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert found.files["audioset-sample.csv.sha256"] == f"{digest}  audioset-sample.csv\n"
    assert any(digest in note and "12 of 38 train clips, seed 0" in note for note in found.notes)
    assert DATASET.discover(uneven, given) == found
    assert DATASET.discover(uneven, {**given, "seed": "1"}).files != found.files
    assert dataset_rows("audioset", uneven, given).files == found.files


def test_sample_is_of_what_is_there(uneven: Path) -> None:
    (uneven / "gargle00000.wav").unlink()
    given = {"split": "balanced", "eval": "none"}
    assert len(DATASET.discover(uneven, {**given, "sample": "37"}).rows) == 37
    for size in ("38", "0"):
        with pytest.raises(UserError, match="37 train clips are here; want 1 to 37"):
            DATASET.discover(uneven, {**given, "sample": size})
    with pytest.raises(UserError, match="sample=half: audioset takes one of all, N"):
        DATASET.discover(uneven, {"sample": "half"})
    with pytest.raises(UserError, match="the seed is of the sample; add --option sample=N"):
        DATASET.discover(uneven, {"seed": "4"})
