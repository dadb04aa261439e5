"""Speech Commands: words, lists, speakers; the protocols without silence say so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.speechcommands import DATASET_V1, DATASET_V2, TEN, V1, V2


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
    assert sum(DATASET_V1.clips.values()) == 64_721 and sum(DATASET_V2.clips.values()) == 105_829


def test_lape_has_the_natural_unknown_and_says_that_silence_is_missing(v1: Path) -> None:
    found = DATASET_V1.discover(v1, {})
    assert {row.label for row in found.rows} == TEN | {"unknown"}
    assert Counter(row.label for row in found.rows if row.split == "test")["unknown"] == 20
    assert any("silence is not there yet" in note for note in found.notes)
    assert "silence is not packed yet" in DATASET_V1.task and DATASET_V1.classes == 11


def test_tf12_takes_its_own_test_archive(v2: Path) -> None:
    with pytest.raises(UserError, match=r"no speech_commands_test_set_v0\.02"):
        DATASET_V2.discover(v2, {"protocol": "tf12"})
    for folder, name in (
        ("yes", "c1d39ce8_nohash_0"),
        ("_unknown_", "bed_d21fd169_nohash_0"),
        ("_silence_", "pink_noise_1"),
    ):
        _clip(v2 / "speech_commands_test_set_v0.02" / folder / f"{name}.wav")
    found = DATASET_V2.discover(v2, {"protocol": "tf12"})
    assert [(row.source, row.label, row.group) for row in found.rows if row.split == "test"] == [
        ("speech_commands_test_set_v0.02/_unknown_/bed_d21fd169_nohash_0.wav", "unknown", "d21fd169"),
        ("speech_commands_test_set_v0.02/yes/c1d39ce8_nohash_0.wav", "yes", "c1d39ce8"),
    ]
    assert Counter(row.split for row in found.rows) == {"train": 70, "valid": 35, "test": 2}
    assert any("silence is not there yet" in note for note in found.notes)


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
    with pytest.raises(UserError, match="protocol=hear: speechcommands-v1 wants one of lape, tf12, words"):
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
    with pytest.raises(UserError, match=r"the layout must be: ROOT/<word>/"):
        DATASET_V1.discover(tmp_path, {})
