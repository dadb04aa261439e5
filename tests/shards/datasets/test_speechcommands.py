"""Speech Commands: words, lists, speakers; silence cut from the noise recordings."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.speechcommands import DATASET_V1, DATASET_V2, TEN, V1, V2
from unfused_fast.shards.packing.pack import pack


def _clip(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(160), 16000)


def _build(base: Path, words: frozenset[str], lists: Path) -> None:
    for word in words:
        for name in ("0a7c2a8d_nohash_0", "0a7c2a8d_nohash_1", "b83c1acf_nohash_0", "c1d39ce8_nohash_0"):
            _clip(base / word / f"{name}.wav")
    for noise in ("doing_the_dishes", "dude_miaowing", "exercise_bike", "pink_noise", "running_tap", "white_noise"):
        _clip(base / "_background_noise_" / f"{noise}.wav")
    (base / "_background_noise_" / "README.md").write_text("x")
    lists.mkdir(exist_ok=True)
    (lists / "validation_list.txt").write_text("".join(f"{word}/b83c1acf_nohash_0.wav\n" for word in sorted(words)))
    (lists / "testing_list.txt").write_text("".join(f"{word}/c1d39ce8_nohash_0.wav\n" for word in sorted(words)))
    (lists / "LICENSE").write_text("x")


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    _build(tmp_path / "v1", V1.words, tmp_path / "v1")
    return tmp_path / "v1"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    _build(tmp_path / "v2" / "speech_commands_v0.02", V2.words, tmp_path / "v2" / "speech_commands_v0.02")
    return tmp_path / "v2"


def test_words(v1: Path, v2: Path) -> None:
    for dataset, root, words in ((DATASET_V1, v1, 30), (DATASET_V2, v2, 35)):
        found = dataset.discover(root, {"protocol": "words"})
        assert Counter(row.split for row in found.rows) == {"train": 2 * words, "valid": words, "test": words}
        assert len({row.label for row in found.rows}) == words
        assert all(row.label == row.path.parent.name == row.source.split("/")[0] for row in found.rows)
        assert {(row.group, row.split) for row in found.rows} == {
            ("0a7c2a8d", "train"),
            ("b83c1acf", "valid"),
            ("c1d39ce8", "test"),
        }
        assert len(found.notes) == 3 and not any("silence" in note for note in found.notes)
    assert "70 clips of split train here; published: 84,843." in found.notes
    assert DATASET_V2.discover(v2, {}).rows == found.rows
    assert sum(V1.clips.values()) == 64_721 and sum(V2.clips.values()) == 105_829
    assert sum(DATASET_V1.clips.values()) == 64_721 + 6_000


def _noise(base: Path, **seconds: float) -> None:
    for name, length in seconds.items():
        soundfile.write(base / "_background_noise_" / f"{name}.wav", np.zeros(round(length * 16000)), 16000)


def test_lape_has_the_natural_unknown_and_silence_in_train_alone(v1: Path) -> None:
    _noise(v1, pink_noise=60.0, running_tap=2.5)
    found = DATASET_V1.discover(v1, {})
    assert {row.label for row in found.rows} == TEN | {"unknown", "silence"} and DATASET_V1.classes == 12
    assert Counter(row.label for row in found.rows if row.split == "test")["unknown"] == 20
    silence = [row for row in found.rows if row.label == "silence"]
    assert {row.split for row in silence} == {"train"}
    assert Counter(row.group for row in silence) == {
        "_background_noise_/pink_noise.wav": 1000,
        "_background_noise_/running_tap.wav": 1000,
    }
    for row in silence:
        assert row.span is not None and row.source == f"{row.group}@{row.span[0]:.3f}-{row.span[1]:.3f}"
        assert row.span[0] >= 0 and row.span[1] - row.span[0] == pytest.approx(1.0)
        assert row.span[1] <= (60.0 if "pink" in row.source else 2.5)
    assert len({row.source for row in found.rows}) == len(found.rows)
    starts = [row.span[0] for row in silence if row.span and "pink" in row.source]
    assert np.histogram(starts, 4, (0, 59))[0].min() > 200  # drawn evenly: 250 expected, sd 14
    assert DATASET_V1.discover(v1, {}) == found
    notes = " ".join(found.notes)
    assert "2,000 clips of silence, all in train, as in LAPE: valid and test have none" in notes
    assert "white_noise.wav: 0.0 s long, so it gives 0 silences, not 1,000." in notes


def test_noise_recordings_that_are_missing_or_broken_are_said(v1: Path) -> None:
    _noise(v1, pink_noise=3.0)
    (v1 / "_background_noise_" / "white_noise.wav").write_bytes(b"no audio")
    (v1 / "_background_noise_" / "running_tap.wav").unlink()
    found = DATASET_V1.discover(v1, {})
    assert sum(row.label == "silence" for row in found.rows) == 1000
    notes = " ".join(found.notes)
    assert "5 noise recordings in _background_noise_; 6 are published." in notes
    assert "white_noise.wav cannot be read, so it gives no silence" in notes
    for path in (v1 / "_background_noise_").glob("*.wav"):
        path.unlink()
    with pytest.raises(UserError, match=r"no _background_noise_/\*\.wav, from which protocol=lape cuts silence"):
        DATASET_V1.discover(v1, {})
    assert {row.label for row in DATASET_V1.discover(v1, {"protocol": "words"}).rows} == V1.words


def test_tf12_takes_its_own_test_archive_and_the_tap_for_valid(v2: Path) -> None:
    with pytest.raises(UserError, match=r"no speech_commands_test_set_v0\.02"):
        DATASET_V2.discover(v2, {"protocol": "tf12"})
    for folder, name in (
        ("yes", "c1d39ce8_nohash_0"),
        ("_unknown_", "bed_d21fd169_nohash_0"),
        ("_silence_", "pink_noise_1"),
    ):
        _clip(v2 / "speech_commands_test_set_v0.02" / folder / f"{name}.wav")
    _noise(v2 / "speech_commands_v0.02", exercise_bike=2.0, running_tap=2.7)
    found = DATASET_V2.discover(v2, {"protocol": "tf12"})
    assert [(row.source, row.label, row.group) for row in found.rows if row.split == "test"] == [
        ("speech_commands_test_set_v0.02/_silence_/pink_noise_1.wav", "silence", None),
        ("speech_commands_test_set_v0.02/_unknown_/bed_d21fd169_nohash_0.wav", "unknown", "d21fd169"),
        ("speech_commands_test_set_v0.02/yes/c1d39ce8_nohash_0.wav", "yes", "c1d39ce8"),
    ]
    assert [(row.source, row.split, row.span) for row in found.rows if row.span] == [
        ("_background_noise_/exercise_bike.wav@0.000-1.000", "train", (0.0, 1.0)),
        ("_background_noise_/exercise_bike.wav@0.500-1.500", "train", (0.5, 1.5)),
        ("_background_noise_/exercise_bike.wav@1.000-2.000", "train", (1.0, 2.0)),
        ("_background_noise_/running_tap.wav@0.000-1.000", "valid", (0.0, 1.0)),
        ("_background_noise_/running_tap.wav@0.500-1.500", "valid", (0.5, 1.5)),
        ("_background_noise_/running_tap.wav@1.000-2.000", "valid", (1.0, 2.0)),
        ("_background_noise_/running_tap.wav@1.500-2.500", "valid", (1.5, 2.5)),
    ]
    assert Counter(row.split for row in found.rows) == {"train": 70 + 3, "valid": 35 + 4, "test": 3}
    assert {row.label for row in found.rows} == TEN | {"unknown", "silence"}


def test_kaggle_layout(tmp_path: Path) -> None:
    _build(tmp_path / "train" / "audio", V1.words, tmp_path / "train")
    found = DATASET_V1.discover(tmp_path, {"protocol": "words"})
    assert Counter(row.split for row in found.rows) == {"train": 60, "valid": 30, "test": 30}
    assert found.rows[0].source == "bed/0a7c2a8d_nohash_0.wav"


def test_odd_files_are_said(v1: Path) -> None:
    _clip(v1 / "bed" / "noname.wav")
    _clip(v1 / "hello" / "0a7c2a8d_nohash_0.wav")
    (v1 / "yes" / "._0a7c2a8d_nohash_0.wav").write_bytes(b"macOS")
    (v1 / "cat" / "c1d39ce8_nohash_0.wav").unlink()
    notes = " ".join(DATASET_V1.discover(v1, {}).notes)
    assert "1 WAV files left out" in notes and "no words of v1: hello" in notes
    assert "1 clips of the lists are not here, such as cat/c1d39ce8_nohash_0.wav" in notes


def test_errors(v1: Path, v2: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="protocol=hear: speechcommands-v1 takes one of lape, tf12, words"):
        DATASET_V1.discover(v1, {"protocol": "hear"})
    with pytest.raises(UserError, match="say --dataset speechcommands-v1"):
        DATASET_V2.discover(v1, {})
    with pytest.raises(UserError, match="say --dataset speechcommands-v2"):
        DATASET_V1.discover(v2 / "speech_commands_v0.02", {})
    (v1 / "testing_list.txt").write_text((v1 / "validation_list.txt").read_text())
    with pytest.raises(UserError, match=r"is in validation_list\.txt too"):
        DATASET_V1.discover(v1, {})
    (v1 / "testing_list.txt").unlink()
    with pytest.raises(UserError, match=r"no testing_list\.txt"):
        DATASET_V1.discover(v1, {})
    with pytest.raises(UserError, match=r"needs this layout: ROOT/<word>/"):
        DATASET_V1.discover(tmp_path, {})


def test_silence_is_packed_as_the_second_it_was_cut_from(v1: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(-9000, 9000, 5 * 16000).astype(np.int16)
    for path in v1.rglob("*.wav"):
        soundfile.write(path, noise if path.parent.name.startswith("_") else rng.uniform(-0.5, 0.5, 8000), 16000)
    found = DATASET_V1.discover(v1, {"protocol": "lape"})
    rows = [row for row in found.rows if row.label != "silence" or row.source.startswith("_background_noise_/pink")]
    out = pack(rows, tmp_path / "out", workers=0).shard_set
    silence = [clip for clip in out.clips.to_pylist() if out.manifest.label_names[clip["label"]] == "silence"]
    spans = {row.source: row.span for row in rows if row.span}
    assert len(silence) == len(spans) and {clip["samples"] for clip in silence} == {16000}
    for clip in silence:
        start = round(spans[clip["source"]][0] * 16000)
        assert clip["sha256"] == hashlib.sha256(noise[start : start + 16000].astype("<i2").tobytes()).hexdigest()
