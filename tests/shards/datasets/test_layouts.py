"""Every published layout in miniature: its rows, gaps in it, and tables that are not the published ones."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from adapters import refused
from miniatures import SEGMENT_FILES, replaced

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import DATASETS
from unfused_fast.shards.datasets.layout import left_out, not_there
from unfused_fast.shards.sources.row import SourceRow


@dataclass(frozen=True)
class Layout:
    """A miniature, and what is in it by the docstring of its builder."""

    splits: Mapping[str, int]
    """Of the rows that `options` give."""
    labels: int
    groups: int
    row: tuple[str, str | tuple[str, ...], str, str | None, int | None]
    """One of them: source, label or labels, split, group, fold."""
    published: str
    """A note of what differs from the published counts."""
    options: Mapping[str, str] = field(default_factory=dict)
    deeper: str = ""
    """The folder that its archive unpacks to: found from above too."""
    lost: str = ""
    """A file without which only a note says so."""


Miniature = Callable[[str], Path]
SPEECH = "speech_commands_v0.0"
FOUND = {
    "speechcommands-v1": Layout(
        {"train": 66, "valid": 30, "test": 30}, 12, 9,
        ("bed/0a7c2a8d_nohash_1.wav", "unknown", "train", "0a7c2a8d", None),
        "Clips of train: 60; published: 51,088.",
        deeper=f"{SPEECH}1", lost="cat/c1d39ce8_nohash_0.wav",
    ),
    "speechcommands-v2": Layout(
        {"train": 70, "valid": 35, "test": 35}, 35, 3,
        ("visual/b83c1acf_nohash_0.wav", "visual", "valid", "b83c1acf", None),
        "Clips of train: 70; published: 84,843.",
        deeper=f"{SPEECH}2", lost="cat/c1d39ce8_nohash_0.wav",
    ),
    "librispeech-speaker": Layout(
        {"train": 32, "test": 8}, 3, 4,
        ("train-clean-100/103/1241/103-1241-0000.flac", "103", "train", "103-1241", None),
        "Readers: 3; published: 251.",
        {"label": "reader"}, deeper="LibriSpeech",
    ),
    "voxceleb1": Layout(
        {"train": 12, "valid": 3, "test": 3}, 3, 18,
        ("wav/id10001/video14/00001.wav", "id10001", "valid", "video14", None),
        "Clips of train: 12; published: 138,361.",
        lost="wav/id10001/video14/00001.wav",
    ),
    "voxforge": Layout(
        {"train": 60, "valid": 10, "test": 20}, 6, 18,
        ("it/Trunk/borisit-20100101-abc/wav/c-3.wav", "it", "train", "borisit", None),
        "Clips in all languages: 90; published: 176,428.",
    ),
    "iemocap": Layout(
        {"train": 48, "test": 12}, 4, 5,
        ("Session5/sentences/wav/Ses05F_script01_1/Ses05F_script01_1_F201.wav", "sad", "test", "Session5", 5),
        "Clips of session 5 with exc=drop: 12; published: 942.",
        deeper="IEMOCAP_full_release", lost="Session5/sentences/wav/Ses05F_script01_1/Ses05F_script01_1_F201.wav",
    ),
    "nsynth": Layout(
        {"train": 24, "valid": 12, "test": 12}, 3, 12,
        ("nsynth-test/audio/vocal_acoustic_003-040-100.wav", "vocal", "test", "vocal_acoustic_003", None),
        "Clips of train: 24; published: 289,205.",
        lost="nsynth-test/audio/vocal_acoustic_003-040-100.wav",
    ),
    "birdsong": Layout(
        {"train": 16, "test": 4}, 2, 20,
        ("warblrb10k/wav/warblrb10k1.wav", "present", "train", None, None),
        "Lines of warblrb10k_public_metadata.csv, over which the split is made: 10; published: 8,000.",
        lost="warblrb10k/wav/warblrb10k1.wav",
    ),
    "tut2018": Layout(
        {"train": 30, "test": 10}, 10, 40,
        ("audio/bus-paris-13-3-a.wav", "bus", "test", "paris-13", None),
        "Clips of test: 10; published: 2,518.",
        deeper="TUT-urban-acoustic-scenes-2018-development", lost="audio/bus-paris-13-3-a.wav",
    ),
    "urbansound8k": Layout(
        {"train": 100}, 10, 100,
        ("audio/fold3/1043-4-0-0.wav", "drilling", "train", "1043", 3),
        "Clips of train: 100; published: 8,732.",
        deeper="UrbanSound8K", lost="audio/fold3/1043-4-0-0.wav",
    ),
    "audioset": Layout(
        {"train": 5, "test": 1}, 5, 6,
        (SEGMENT_FILES[2], ("Clatter (/m/07rv4dm)",), "train", "YAbcdefghij", None),
        "Lines of eval_segments.csv: 1; published: 20,371.",
    ),
    "fsd50k": Layout(
        {"train": 3, "valid": 1, "test": 2}, 3, 6,
        ("FSD50K.eval_audio/37199.wav", ("Guitar", "Music"), "test", "37199", None),
        "Classes in vocabulary.csv: 6; published: 200.",
        {"clips": "all"}, lost="FSD50K.eval_audio/37199.wav",
    ),
}  # fmt: skip


def shown(row: SourceRow) -> tuple[str, str | tuple[str, ...] | None, str, str | None, int | None]:
    return row.source, row.labels or row.label, row.split, row.group, row.fold


@pytest.mark.parametrize("name", FOUND)
def test_rows(miniature: Miniature, name: str) -> None:
    layout, root, dataset = FOUND[name], miniature(name), DATASETS[name]
    for clutter in ("._mac.wav", "._mac.flac", ".DS_Store"):
        (root / layout.row[0]).with_name(clutter).write_bytes(b"mac")
    found = dataset.discover(root, layout.options)
    assert Counter(row.split for row in found.rows) == layout.splits
    assert len({row.labels or row.label for row in found.rows}) == layout.labels
    assert len({row.group or row.source for row in found.rows}) == layout.groups
    assert len({row.source for row in found.rows}) == len(found.rows)
    assert all(isinstance(row.path, Path) and row.path.is_file() for row in found.rows)
    assert layout.row in map(shown, found.rows) and layout.published in found.notes
    assert dataset.discover(root, layout.options) == found
    if layout.deeper:
        root.rename(root.parent / layout.deeper)
        assert list(map(shown, dataset.discover(root.parent, layout.options).rows)) == list(map(shown, found.rows))


@pytest.mark.parametrize("name", [name for name, layout in FOUND.items() if layout.lost])
def test_a_file_that_is_not_there_is_said_and_moves_no_other(miniature: Miniature, name: str) -> None:
    layout, root = FOUND[name], miniature(name)
    before = DATASETS[name].discover(root, layout.options).rows
    (root / layout.lost).rename((root / layout.lost).with_name("mine.wav"))
    found = DATASETS[name].discover(root, layout.options)
    assert set(map(shown, before)) - set(map(shown, found.rows)) == {
        shown(row) for row in before if row.source == layout.lost
    }
    said = " ".join(found.notes)
    assert re.search(rf"1 (file|clip|turn) .*, such as \S*{Path(layout.lost).stem}", said)
    if name in LISTED:
        assert "1 audio file left out: not in " in said and "mine.wav" in said
        for path in root.rglob("*.wav"):
            path.unlink()
        with pytest.raises(UserError, match=r"none of the files that .* lists is there.*; unpack the audio"):
            DATASETS[name].discover(root, layout.options)


VOX, BIRD, URBAN, TRUTH = (
    "iden_split.txt", "ff1010bird_metadata_2018.csv", "metadata/UrbanSound8K.csv", "FSD50K.ground_truth",
)  # fmt: skip
LISTED = ("voxceleb1", "nsynth", "birdsong", "tut2018", "urbansound8k", "fsd50k")
LISTS, TURNS = "evaluation_setup", "Session1/dialog/EmoEvaluation/Ses01F_script01_1.txt"
BALANCED, NOTES = "balanced_train_segments.csv", "nsynth-train/examples.json"


@pytest.mark.parametrize(
    ("name", "table", "old", "new", "words"),
    [
        ("voxceleb1", VOX, "1 id10000", "4 id10000", "a line must be like 1 id10001/1zcIwhmdeo4/00001.wav"),
        ("birdsong", BIRD, "bird0,0", "bird0,yes", "hasbird of ff1010bird0 is 'yes', not 0 or 1"),
        ("birdsong", BIRD, "hasbird", "bird", "its columns are itemid, bird, but itemid, hasbird are needed"),
        ("tut2018", f"{LISTS}/fold1_train.txt", "\tairport", "", "a line must be like audio/airport-barcelona"),
        ("tut2018", f"{LISTS}/fold1_train.txt", "\tairport", "\tbus", "a line must be like audio/airport-barcelona"),
        ("tut2018", f"{LISTS}/fold1_evaluate.txt", "airport-paris-3-3", "airport-paris-0-0", "is listed twice"),
        ("urbansound8k", URBAN, ",1,0,air", ",11,0,air", "is in fold 11 with classID 0"),
        ("urbansound8k", URBAN, ",0,air", ",1,air", "with classID 1 and class air_conditioner"),
        ("urbansound8k", URBAN, "fsID", "id", "but slice_file_name, fsID, fold, classID, class are needed"),
        ("fsd50k", f"{TRUTH}/dev.csv", ",val", ",validation", "44981 is in split 'validation'"),
        ("fsd50k", f"{TRUTH}/dev.csv", "Bark,Dog", "Bark,Wolf", "100032 has the label 'Wolf'"),
        ("fsd50k", f"{TRUTH}/dev.csv", ",split", "", "but fname, labels, split are needed"),
        (
            "fsd50k",
            f"{TRUTH}/eval.csv",
            '37199,"Guitar',
            "37199\n3",
            "line 2 has 1 fields, not the 3 of fname, labels, mids",
        ),
        ("fsd50k", f"{TRUTH}/vocabulary.csv", "0,Animal,/m/0", "0,Animal", "line 1 has 2 fields, not the 3"),
        (
            "fsd50k",
            f"{TRUTH}/vocabulary.csv",
            "0,Animal",
            "0,Animal, tame",
            "line 1 has 4 fields, not the 3 of number, class",
        ),
        ("audioset", BALANCED, "/t/dd00088", "/m/nothing", "--PJHxphWEs has the label '/m/nothing', which class_label"),
        (
            "audioset",
            BALANCED,
            '"/m/09x0r,/t/dd00088"',
            "/m/09x0r,/t/dd00088",
            "line 4 has 5 fields, not the 4 of",
        ),
        ("iemocap", TURNS, "\tSes01F_script01_1_F000\tneu", " ../../x neu", "no turn and emotion after the times"),
        ("iemocap", TURNS, "F001\t", "F000\t", "Ses01F_script01_1_F000 appears twice"),
        ("speechcommands-v1", "testing_list.txt", "up/c1d39ce8", "up/b83c1acf", "is in the list of valid too"),
        (
            "nsynth",
            NOTES,
            '"bass_acoustic_000-041-100"',
            '"bass_acoustic_000"',
            "a note must be like bass_synth_033-022-050",
        ),
        ("nsynth", NOTES, '"instrument_family_str": "bass"', '"instrument_family_str": 0', "has family 0"),
        ("nsynth", NOTES, "{", "[", "holds no notes"),
    ],
)
def test_tables_that_are_not_the_published_ones(
    miniature: Miniature, name: str, table: str, old: str, new: str, words: str
) -> None:
    root = miniature(name)
    replaced(root / table, old, new)
    with pytest.raises(UserError, match=words) as caught:
        DATASETS[name].discover(root, FOUND[name].options)
    assert Path(table).name in str(caught.value)


def test_names_in_notes_command_no_terminal() -> None:
    said = [*left_out(["\x1b[2J.wav"], "file", "not listed"), *not_there(["a\nb.wav"], "file", "x.csv")]
    assert said == [
        r"1 file left out: not listed, such as \x1b[2J.wav.",
        r"1 file of x.csv not here, such as a\nb.wav.",
    ]


@pytest.mark.parametrize(
    ("name", "table"), [("tut2018", f"{LISTS}/fold1_train.txt"), ("urbansound8k", URBAN), ("nsynth", NOTES)]
)
def test_a_table_that_cannot_be_read_is_named_once(miniature: Miniature, name: str, table: str) -> None:
    path = miniature(name) / table
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError) as caught:
        DATASETS[name].discover(path.parents[len(Path(table).parts) - 1], {})
    assert str(caught.value) == f"{path}: cannot be read (Is a directory); download it again from its publisher"


@pytest.mark.parametrize(
    ("name", "gone", "given", "words"),
    [
        ("tut2018", f"{LISTS}/fold1_evaluate.txt", {}, f"no {LISTS}/fold1_evaluate.txt here"),
        ("nsynth", "nsynth-valid/examples.json", {}, "no nsynth-valid/examples.json here"),
        ("voxceleb1", VOX, {}, "no iden_split.txt here"),
        ("voxceleb1", "wav", {}, "no dev/wav, test/wav here"),
        ("urbansound8k", URBAN, {}, f"no {URBAN} here"),
        ("birdsong", BIRD, {}, f"no {BIRD} here"),
        ("birdsong", "ff1010bird", {}, "no ff1010bird/wav here"),
        ("fsd50k", "FSD50K.eval_audio", {"clips": "all"}, "no FSD50K.eval_audio here"),
        ("audioset", "eval_segments.csv", {}, "no eval_segments.csv here"),
        ("audioset", "unbalanced_train_segments.csv", {"eval": "none"}, "no unbalanced_train_segments.csv here"),
        ("librispeech-speaker", "train-clean-100", {}, "no LibriSpeech/train-clean-100 here"),
        ("speechcommands-v1", "testing_list.txt", {}, "no testing_list.txt here"),
        ("speechcommands-v1", "_background_noise_", {}, r"no _background_noise_/\*.wav, from which protocol=lape"),
        ("speechcommands-v1", "none", {"protocol": "tf12"}, "no speech_commands_test_set_v0.01 with clips here"),
    ],
)
def test_what_is_missing_is_named_with_the_layout(
    miniature: Miniature, name: str, gone: str, given: dict[str, str], words: str
) -> None:
    root = miniature(name)
    if (root / gone).is_dir():
        shutil.rmtree(root / gone)
    else:
        (root / gone).unlink(missing_ok=True)
    with pytest.raises(UserError, match=words) as caught:
        DATASETS[name].discover(root, given)
    assert f"; {name} needs this layout: {DATASETS[name].layout}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("nsynth", {"test": "train"}, "test=train: nsynth takes one of test, valid"),
        ("nsynth", {"pitch": "yes"}, "no such option; it has: test"),
        ("urbansound8k", {"fold": "1"}, "urbansound8k has no such option; it has: none"),
        ("iemocap", {"exc": "keep"}, "exc=keep: iemocap takes one of drop, hap"),
        ("librispeech-speaker", {"split": "chapters"}, "add --option label=reader"),
        ("voxforge", {"protocol": "evar"}, r"go together; PATH is EVAR's evar/metadata/voxforge\.csv"),
        ("voxforge", {"list": "a.csv"}, r"go together; PATH is EVAR's evar/metadata/voxforge\.csv"),
        ("audioset", {"sample": "half"}, "sample=half: audioset takes one of all, N"),
        ("audioset", {"sample": "-1"}, "sample=-1: audioset takes one of all, N"),
        ("audioset", {"sample": "²"}, "sample=²: audioset takes one of all, N"),
        ("fsd50k", {"exclude": ""}, "exclude=: fsd50k takes one of none, PATH"),
        ("audioset", {"seed": "4"}, "the seed belongs to the sample; add --option sample=N"),
    ],
)
def test_options_that_there_are_not(miniature: Miniature, name: str, given: dict[str, str], words: str) -> None:
    refused(words, name, miniature(name), **given)
