"""What only one adapter of speech does: its options, other ways in which people keep its files, notes of its own."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from adapters import found, notes, refused, splits
from miniatures import WORDS_V1, replaced, speech_commands, tone

from unfused_fast.shards.datasets import speechcommands
from unfused_fast.shards.datasets.speechcommands import TEN, V1
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.listed_path import folder_of

Miniature = Callable[[str], Path]
NOISE = "_background_noise_"


# Speech Commands


def _noise(base: Path, **seconds: float) -> None:
    shutil.rmtree(base / NOISE)
    for name, length in seconds.items():
        (base / NOISE).mkdir(exist_ok=True)
        soundfile.write(base / NOISE / f"{name}.wav", np.zeros(round(length * 16000)), 16000)


def test_lape_has_the_natural_unknown_and_silence_in_train_alone(miniature: Miniature) -> None:
    root = miniature("speechcommands-v1")
    _noise(root, pink_noise=60.0, running_tap=2.5, white_noise=0.5)
    (root / NOISE / "broken.wav").write_bytes(b"no audio")
    rows = found("speechcommands-v1", root).rows
    assert {row.label for row in rows} == TEN | {"unknown", "silence"}
    assert Counter(row.label for row in rows if row.split == "test")["unknown"] == 20
    silence = [row for row in rows if row.label == "silence"]
    assert {row.split for row in silence} == {"train"}
    assert Counter(row.group for row in silence) == {f"{NOISE}/pink_noise.wav": 1000, f"{NOISE}/running_tap.wav": 1000}
    for row in silence:
        assert row.span is not None and row.source == f"{row.group}@{row.span[0]:.3f}-{row.span[1]:.3f}"
        assert row.span[0] >= 0 and row.span[1] <= (60.0 if "pink" in row.source else 2.5)
        assert row.span[1] - row.span[0] == pytest.approx(1.0)
    starts = [row.span[0] for row in silence if row.span and "pink" in row.source]
    assert np.histogram(starts, 4, (0, 59))[0].min() > 200  # drawn evenly: 250 expected, sd 14
    said = notes("speechcommands-v1", root)
    assert "Clips of silence: 2,000, all in train as in LAPE." in said
    assert "Silences in _background_noise_/white_noise.wav, 0.5 s long: 0; published: 1,000." in said
    assert "Noise recordings: 4; published: 6." in said
    assert "broken.wav cannot be read, so it gives no silence" in said
    words = found("speechcommands-v1", root, protocol="words").rows
    assert {row.label for row in words} == V1.words and not any(row.span for row in words)


def test_tf12_takes_its_own_test_archive_and_the_tap_for_valid(miniature: Miniature) -> None:
    root = miniature("speechcommands-v2")
    _noise(root, exercise_bike=2.0, running_tap=2.7)
    for name in ("yes/c1d39ce8_nohash_0", "_unknown_/bed_d21fd169_nohash_0", "_silence_/pink_noise_1"):
        tone(root / "speech_commands_test_set_v0.02" / f"{name}.wav", 0)
    rows = found("speechcommands-v2", root, protocol="tf12").rows
    assert [(row.source, row.label, row.group) for row in rows if row.split == "test"] == [
        ("speech_commands_test_set_v0.02/_silence_/pink_noise_1.wav", "silence", None),
        ("speech_commands_test_set_v0.02/_unknown_/bed_d21fd169_nohash_0.wav", "unknown", "d21fd169"),
        ("speech_commands_test_set_v0.02/yes/c1d39ce8_nohash_0.wav", "yes", "c1d39ce8"),
    ]
    bike, tap = ([(half / 2, half / 2 + 1) for half in range(count)] for count in (3, 4))
    assert [(row.group, row.split, row.span) for row in rows if row.span] == [
        *((f"{NOISE}/exercise_bike.wav", "train", span) for span in bike),
        *((f"{NOISE}/running_tap.wav", "valid", span) for span in tap),
    ]
    assert splits(rows) == {"train": 70 + 3, "valid": 35 + 4, "test": 3}


def test_speech_commands_as_on_kaggle_and_of_the_other_version(miniature: Miniature, tmp_path: Path) -> None:
    root = tmp_path / "train"
    speech_commands(root / "audio", WORDS_V1)
    for name in ("validation_list.txt", "testing_list.txt"):
        (root / "audio" / name).rename(root / name)
    rows = found("speechcommands-v1", tmp_path, protocol="words").rows
    assert splits(rows) == {"train": 60, "valid": 30, "test": 30} and rows[0].source == "bed/0a7c2a8d_nohash_0.wav"
    refused("use --dataset speechcommands-v1", "speechcommands-v2", tmp_path)
    refused("use --dataset speechcommands-v2", "speechcommands-v1", miniature("speechcommands-v2"))
    tone(root / "audio/bed/noname.wav", 0)
    tone(root / "audio/hello/0a7c2a8d_nohash_0.wav", 0)
    said = notes("speechcommands-v1", tmp_path)
    assert "1 WAV file left out" in said and "1 folder left out: no word of v1, such as hello." in said


def test_silence_is_packed_as_the_second_it_was_cut_from(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speechcommands, "CHOPS", 50)
    root = miniature("speechcommands-v1")
    _noise(root, pink_noise=1.0)
    noise = np.random.default_rng(0).integers(-9000, 9000, 5 * 16000).astype(np.int16)
    soundfile.write(root / NOISE / "pink_noise.wav", noise, 16000)
    rows = [row for row in found("speechcommands-v1", root).rows if row.label in ("silence", "up")]
    out = pack(rows, tmp_path / "out", workers=0).shard_set
    spans = {row.source: row.span for row in rows if row.span}
    silence = [clip for clip in out.clips.to_pylist() if clip["source"] in spans]
    assert len(silence) == len(spans) == 50 and {clip["samples"] for clip in silence} == {16000}
    for clip in silence:
        start = round((spans[clip["source"]] or (0.0, 0.0))[0] * 16000)
        assert clip["sha256"] == hashlib.sha256(noise[start : start + 16000].astype("<i2").tobytes()).hexdigest()


# LibriSpeech


def test_chapters_are_on_both_sides_or_on_one(miniature: Miniature) -> None:
    root, name = miniature("librispeech-speaker"), "librispeech-speaker"
    seeded = found(name, root)
    chapters = ("60-121082", "103-1240", "103-1241", "19-198")
    assert Counter((row.label, row.split) for row in seeded.rows) == {
        **{(chapter, "train"): 8 for chapter in chapters},
        **{(chapter, "test"): 2 for chapter in chapters},
    }
    assert "The split is ours" in " ".join(seeded.notes)
    (root / "train-clean-100/103/1241/103-1241-0009.flac").unlink()
    (root / "train-clean-100/103/1240/103-1240-0000.flac").rename(root / "train-clean-100/103/1240/1-1240-0000.flac")
    (root / "train-clean-100/103/1240/103-1240-0001.flac").rename(root / "train-clean-100/103/1240/103-1240-1.FLAC")
    by_chapter = found(name, root, split="chapters", label="reader")
    assert Counter((row.group, row.split) for row in by_chapter.rows) == {
        ("103-1240", "test"): 8,
        ("103-1241", "train"): 9,
    }
    said = " ".join(by_chapter.notes)
    assert "20 utterances left out: of readers with one chapter only" in said and "1 FLAC file left out" in said


def test_lists_of_librispeech_s_authors(miniature: Miniature) -> None:
    root, name = miniature("librispeech-speaker"), "librispeech-speaker"
    refused(r"no train_split\.txt", name, root, split="files")
    (root / "train_split.txt").write_text("103-1240-0000\r\n103-1240-0001\r\n60-121082-0003\r\n")
    (root / "test_split.txt").write_text("103-1240-0002\n999-1-0000\n\n")
    made = found(name, root, split="files")
    assert {row.path.stem: row.split for row in made.rows if isinstance(row.path, Path)} == {
        "103-1240-0000": "train",
        "103-1240-0001": "train",
        "60-121082-0003": "train",
        "103-1240-0002": "test",
    }
    said = " ".join(made.notes)
    assert "Utterances in train_split.txt: 3; published: 22,830." in said
    assert "999-1-0000" in said and "36 utterances left out: in neither list" in said
    (root / "test_split.txt").write_text("103-1240-0000\n")
    refused("103-1240-0000 is in the list of train too", name, root, split="files")
    (root / "test_split.txt").write_text("")
    (root / "train_split.txt").write_text("999-1-0000\n")
    refused("name none of the utterances", name, root, split="files")


# VoxCeleb1, IEMOCAP


def test_voxceleb_kept_apart(miniature: Miniature) -> None:
    root = miniature("voxceleb1")
    whole = {(row.source.replace("wav/", "", 1), row.split) for row in found("voxceleb1", root).rows}
    (root / "test/wav").mkdir(parents=True)
    (root / "dev").mkdir()
    (root / "wav").rename(root / "dev/wav")
    (root / "dev/wav/id10002").rename(root / "test/wav/id10002")
    apart = found("voxceleb1", root).rows
    assert "test/wav/id10002/video25/00001.wav" in {row.source for row in apart}
    assert {(row.source.split("/", 2)[2], row.split) for row in apart} == whole


def test_sessions_and_emotions_of_iemocap(miniature: Miniature) -> None:
    root = miniature("iemocap")
    replaced(root / "Session1/dialog/EmoEvaluation/Ses01F_script01_1.txt", "\tneu\t", "\texc\t")
    replaced(root / "Session2/dialog/EmoEvaluation/Ses02F_script01_1.txt", "\tneu\t", "\tfru\t")
    below = root / "Session1/dialog/EmoEvaluation/Categorical"
    below.mkdir()
    (below / "x.txt").write_text("[1 - 2]\tSes01F_script01_1_F000\thap\t[1, 1, 1]\n")  # one rater's view
    assert len(found("iemocap", root).rows) == 58
    happy = found("iemocap", root, exc="hap")
    assert Counter(row.label for row in happy.rows) == {"neu": 13, "ang": 15, "sad": 15, "hap": 16}
    assert "Clips of sessions 1 to 4 with exc=hap: 47; published: 4,290." in happy.notes
    folds = found("iemocap", root, test="cv5")
    assert splits(folds.rows) == {"train": 58} and {row.fold for row in folds.rows} == {1, 2, 3, 4, 5}
    assert any("the fold is the session" in note for note in folds.notes)
    (root / "Session5").rename(root / "elsewhere")
    assert "Session 5 is not here" in notes("iemocap", root, test="cv5")
    refused("no clips of session 5, but session 5 is the test; add session 5", "iemocap", root)


# VoxForge


def _archive(folder: Path, kind: str = "wav", clips: int = 5) -> None:
    (folder / "etc").mkdir(parents=True, exist_ok=True)
    (folder / "etc/PROMPTS").write_text("x")
    (folder / kind).mkdir()
    for number in range(clips):
        soundfile.write(folder / kind / f"{folder.name[:2]}-{number:03d}.{kind}", np.zeros(160), 16000)


def test_voxforge_is_split_by_speaker_as_tfds_does_or_by_clip(miniature: Miniature) -> None:
    root = miniature("voxforge")
    sides = {row.group: row.split for row in found("voxforge", root).rows}
    # The published rule, worked by hand: sorted names, shuffled by RandomState(0) as a list of numbers; of 18 speakers
    # int(12.6) = 12 are in train, and up to int(14.4) = 14 in valid.
    places = list(range(18))
    np.random.RandomState(0).shuffle(places)
    names = sorted(map(str, sides))
    assert {names[place] for place in places[14:]} == {name for name in names if sides[name] == "test"}
    assert {names[place] for place in places[12:14]} == {name for name in names if sides[name] == "valid"}
    clips = found("voxforge", root, protocol="random")
    counts = Counter((row.label, row.split) for row in clips.rows)
    assert set(counts.values()) == {3, 12} and found("voxforge", root, protocol="random") == clips
    assert "speakers are in both parts" in " ".join(clips.notes)


def test_archives_of_voxforge_as_people_have_them(tmp_path: Path) -> None:
    (tmp_path / "fr").mkdir()
    (tmp_path / "fr/e-2010-x.tgz").write_bytes(b"x")
    refused("unpack e-2010-x.tgz and other archives.*; voxforge needs this layout: ROOT/", "voxforge", tmp_path)
    _archive(tmp_path / "de/c-2010-x")
    refused("too few speakers .1. for protocol=tfds", "voxforge", tmp_path)
    _archive(tmp_path / "fr/a-2010-x", "flac")
    _archive(tmp_path / "fr/b-2010-x", "wav")
    _archive(tmp_path / "fr/b-2010-x", "flac")
    _archive(tmp_path / "nl/d-2010-x")
    made = found("voxforge", tmp_path)
    folders = {row.source.rpartition("/")[0] for row in made.rows}
    assert folders == {"fr/a-2010-x/flac", "fr/b-2010-x/wav", "de/c-2010-x/wav"}
    said = " ".join(made.notes)
    assert "No clips in en, es, it, ru." in said and "1 archive left out: not unpacked, such as e-2010-x.tgz." in said
    assert "5 files left out: no language" in said and "5 FLAC files left out" in said


def test_evar_list_gives_labels_and_splits_to_archives_without_a_language(tmp_path: Path) -> None:
    _archive(tmp_path / "it-user-2010-x", clips=2)
    _archive(tmp_path / "deuser-2011-y", "flac", clips=2)
    _archive(tmp_path / "en/enuser-2012-z", clips=3)
    table = tmp_path / "voxforge.csv"
    table.write_text(
        "file_name,label,split\n"
        "it-user-2010-x/wav/it-000.wav,it,train\nit-user-2010-x/wav/it-001.wav,it,train\n"
        "deuser-2011-y/wav/de-001.wav,de,test\nenuser-2012-z/wav/en-000.wav,en,valid\n"
        "enuser-2012-z/wav/en-001.wav,fr,valid\ngone-2013-w/wav/go-000.wav,ru,test\n"
    )
    made = found("voxforge", tmp_path, protocol="evar", list=str(table))
    assert [(row.source, row.label, row.split, row.group) for row in made.rows] == [
        ("it-user-2010-x/wav/it-000.wav", "it", "train", "it"),
        ("it-user-2010-x/wav/it-001.wav", "it", "train", "it"),
        ("deuser-2011-y/flac/de-001.flac", "de", "test", "deuser"),
        ("en/enuser-2012-z/wav/en-000.wav", "en", "valid", "enuser"),
        ("en/enuser-2012-z/wav/en-001.wav", "fr", "valid", "enuser"),
    ]
    said = " ".join(made.notes)
    assert "1 file of voxforge.csv not here, such as gone-2013-w/wav/go-000.wav." in said
    assert "2 files left out: not in voxforge.csv, such as" in said
    for old, new, words in (
        (",ru,", ",xx,", "has label 'xx' and split 'test'"),
        (",it,train", ",it,fold1", "label 'it' and split 'fold1'"),
        ("file_name", "file", "but file_name, label, split are needed"),
        ("wav/", "clips/", "none of its files is here"),
    ):
        other = tmp_path / "other.csv"
        other.write_text(table.read_text().replace(old, new))
        refused(words, "voxforge", tmp_path, protocol="evar", list=str(other))


def test_a_member_whose_header_in_the_zip_is_damaged_ends_no_listing(miniature: Miniature, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", miniature("speechcommands-v1")))
    damaged = f"{NOISE}/running_tap.wav"
    place, data = zipfile.ZipFile(archive).getinfo(damaged).header_offset, bytearray(archive.read_bytes())
    data[place : place + 4] = bytes(4)
    archive.write_bytes(data)
    said = notes("speechcommands-v1", folder_of(archive))
    assert f"{damaged} cannot be read, so it gives no silence: the zip has no file at the offset" in said
