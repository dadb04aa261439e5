"""IEMOCAP: emotions from the right files, sessions as folds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.iemocap import DATASET

EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\t{0}_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
A-E3:\tval 3; act 2; dom  2;\t()
[10.0100 - 11.3925]\t{0}_F001\tang\t[2.5000, 2.5000, 2.5000]
[14.8872 - 18.0175]\t{0}_M000\tsad\t[2.5000, 2.5000, 2.5000]
[19.2900 - 20.7875]\t{0}_M001\thap\t[2.5000, 2.5000, 2.5000]
[21.3257 - 24.7400]\t{0}_M002\texc\t[2.5000, 3.0000, 3.0000]
[27.4600 - 31.4900]\t{0}_F002\txxx\t[2.5000, 3.0000, 3.0000]
[38.9650 - 43.5900]\t{0}_F003\tfru\t[2.0000, 3.0000, 3.0000]
"""
TURNS = ("F000", "F001", "M000", "M001", "M002", "F002", "F003")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for session in range(1, 6):
        folder = tmp_path / "IEMOCAP_full_release" / f"Session{session}"
        dialog = f"Ses0{session}F_script01_1"
        evaluations = folder / "dialog" / "EmoEvaluation"
        for below in ("Attribute", "Categorical", "Self-evaluation"):
            (evaluations / below).mkdir(parents=True)
            (evaluations / below / f"{dialog}_e2_cat.txt").write_text(f"[1 - 2]\t{dialog}_F000\thap\t[1, 1, 1]\n")
        (evaluations / f"{dialog}.txt").write_text(EVALUATION.format(dialog))
        (evaluations / f"._{dialog}.txt").write_bytes(b"[\x00\xff macOS")
        (folder / "sentences" / "wav" / dialog).mkdir(parents=True)
        for turn in TURNS:
            soundfile.write(folder / "sentences" / "wav" / dialog / f"{dialog}_{turn}.wav", np.zeros(160), 16000)
    return tmp_path


def test_session_5_is_the_test(root: Path) -> None:
    found = DATASET.discover(root, {})
    assert Counter(row.label for row in found.rows) == {"neu": 5, "ang": 5, "sad": 5, "hap": 5}
    for session in range(1, 6):
        rows = [row for row in found.rows if row.fold == session]
        dialog = f"Ses0{session}F_script01_1"
        assert {Path(row.source).stem: row.label for row in rows} == {
            f"{dialog}_F000": "neu",
            f"{dialog}_F001": "ang",
            f"{dialog}_M000": "sad",
            f"{dialog}_M001": "hap",
        }
        assert {(row.group, row.split) for row in rows} == {(f"Session{session}", "test" if session == 5 else "train")}
    assert all(row.path == root / "IEMOCAP_full_release" / row.source and row.path.is_file() for row in found.rows)
    assert found.notes == [
        "16 clips in sessions 1 to 4 here; published with exc=drop: 3,548.",
        "4 clips in session 5 here; published with exc=drop: 942.",
    ]
    assert DATASET.discover(root / "IEMOCAP_full_release", {}).rows == found.rows


def test_excited_counts_as_happy(root: Path) -> None:
    found = DATASET.discover(root, {"exc": "hap"})
    assert Counter(row.label for row in found.rows) == {"neu": 5, "ang": 5, "sad": 5, "hap": 10}
    assert any("published with exc=hap: 4,290" in note for note in found.notes)


def test_cross_validation_leaves_the_split_to_the_folds(root: Path) -> None:
    found = DATASET.discover(root, {"test": "cv5"})
    assert {row.split for row in found.rows} == {"train"}
    assert Counter(row.fold for row in found.rows) == dict.fromkeys(range(1, 6), 4)
    assert any("the fold is the session" in note for note in found.notes)


def test_missing_wav_and_missing_session_are_said(root: Path) -> None:
    base = root / "IEMOCAP_full_release"
    (base / "Session1/sentences/wav/Ses01F_script01_1/Ses01F_script01_1_F000.wav").unlink()
    (base / "Session2").rename(base / "elsewhere")
    notes = " ".join(DATASET.discover(root, {}).notes)
    assert "1 turns left out" in notes and "Ses01F_script01_1_F000" in notes and "Session 2 is not here" in notes
    (base / "Session5").rename(base / "elsewhere 5")
    with pytest.raises(UserError, match="no clips of session 5"):
        DATASET.discover(root, {})
    assert len(DATASET.discover(root, {"test": "cv5"}).rows) == 11


def test_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exc=keep: iemocap takes one of drop, hap"):
        DATASET.discover(root, {"exc": "keep"})
    with pytest.raises(UserError, match="fold=1: iemocap has no such option"):
        DATASET.discover(root, {"fold": "1"})
    evaluations = root / "IEMOCAP_full_release/Session1/dialog/EmoEvaluation"
    (evaluations / "copy.txt").write_text("[1 - 2]\tSes01F_script01_1_F000\tneu\t[1, 1, 1]\n")
    with pytest.raises(UserError, match="a second time"):
        DATASET.discover(root, {})
    (evaluations / "copy.txt").write_text("[1 - 2] ../../../etc/x neu\n")
    with pytest.raises(UserError, match=r"copy\.txt: no turn and emotion"):
        DATASET.discover(root, {})
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"needs this layout: ROOT/IEMOCAP_full_release"):
        DATASET.discover(tmp_path / "other", {})
