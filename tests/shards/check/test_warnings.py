"""What a user would want to know before training: leaks, duplicates, labels, lengths, faults of the recordings."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from unfused_fast.shards.audio import decode
from unfused_fast.shards.audio.decode import decode_piece
from unfused_fast.shards.audio.measures import CLIPPED_SHARE, Clipping, dc_offset, is_quiet, narrow_band_hz
from unfused_fast.shards.check.check import Checked, check
from unfused_fast.shards.check.findings import Finding, Kind
from unfused_fast.shards.demo import DEMO_NAMES, DemoName, demo_rows
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.row import SourceRow

RATE = 16000
AUDIO_KINDS = {Kind.CLIPPED, Kind.CONSTANT, Kind.QUIET, Kind.DC_OFFSET, Kind.NARROW_BAND}


def _noise(seed: int, seconds: float = 0.5, level: float = 0.1) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * level


def _row(
    folder: Path, name: str, signal: NDArray[np.float64], split: str = "train", label: str | None = "a"
) -> SourceRow:
    soundfile.write(folder / name, signal, RATE)
    return SourceRow(folder / name, name, label, split)


def _checked(rows: list[SourceRow], out: Path) -> Checked:
    pack(rows, out, workers=0)
    found = check(out, workers=0)
    assert found.corrupt == []
    return found


def _of(found: Checked, kind: Kind) -> Finding | None:
    return next((finding for finding in found.warnings if finding.kind == kind), None)


def test_clean_noise_has_no_warnings(tmp_path: Path) -> None:
    rows = [
        _row(tmp_path, f"{n}.wav", _noise(n), ("train", "train", "valid", "test")[n % 4], "ab"[n // 4 % 2])
        for n in range(16)
    ]
    assert _checked(rows, tmp_path / "out").warnings == []


def test_leaks_and_duplicates(tmp_path: Path) -> None:
    same, twin = _noise(0), _noise(1)
    rows = [
        _row(tmp_path, "train.wav", same),
        _row(tmp_path, "test.wav", same, "test"),
        *(_row(tmp_path, f"copy{n}.wav", twin, label="aab"[n]) for n in range(3)),
        replace(_row(tmp_path, "ann1.wav", _noise(2)), group="ann"),
        replace(_row(tmp_path, "ann2.wav", _noise(3), "valid"), group="ann"),
        *(replace(_row(tmp_path, f"{n}.wav", _noise(4 + n)), fold=1 + n, group=f"g{n // 2}") for n in range(3)),
    ]
    found = _checked(rows, tmp_path / "out")
    copies = tuple(f"copy{n}.wav" for n in range(3))
    for kind, words in (
        (Kind.AUDIO_LEAK, ("1 recording in more than one split", "train.wav", "test.wav")),
        (Kind.DUPLICATE, ("1 recording more than once in one split", *copies)),
        (Kind.LABEL_CONFLICT, ("1 recording with different labels", *copies)),
    ):
        (finding,) = (finding for finding in found.warnings if finding.kind == kind)
        assert finding.count == 1 and all(word in finding.message for word in words)
    split, fold = (finding for finding in found.warnings if finding.kind == Kind.GROUP_LEAK)
    assert split.count == fold.count == 1
    assert "1 group in more than one split: ann in train and valid" in split.message and "g0 in 1 and 2" in fold.message


def test_labels_lengths_and_published_counts(tmp_path: Path) -> None:
    """One file is cut, and none of its pieces is usable: it counts as one of those that were rejected."""
    rows = [_row(tmp_path, f"{n}.wav", _noise(n, 1 + 0.02 * n)) for n in range(12)]
    rows += [_row(tmp_path, "long.wav", _noise(99, 9)), _row(tmp_path, "u.wav", _noise(98, 1.1), label=None)]
    rows += [_row(tmp_path, "t.wav", _noise(97, 1.1), "test", "unseen")]
    soundfile.write(tmp_path / "nan.wav", np.full(25 * RATE, np.nan), RATE, "FLOAT")
    rows += [SourceRow(tmp_path / "nan.wav", "nan.wav", "a")]
    result = pack(rows, tmp_path / "out", workers=0, dataset={"name": "nsynth", "options": {}})
    assert sum(result.rejected.values()) == 3
    found = check(tmp_path / "out", workers=0)
    for kind, words, sources in (
        (Kind.UNLABELLED, "1 of 14 clips of split train", ("u.wav",)),
        (Kind.UNSEEN_CLASS, "1 of 2 classes of split test have no clip in train: unseen", ()),
        (Kind.RARE_CLASS, "1 of 2 classes have one clip: unseen", ()),
        (Kind.DURATION, "9.00 s", ("long.wav",)),
        (Kind.PUBLISHED_COUNT, "train 14 of 289,205; valid 0 of 12,678; test 1 of 4,096; 1 file rejected", ()),
    ):
        finding = _of(found, kind)
        assert finding is not None and words in finding.message and finding.sources == sources, found.warnings
    pack(rows, tmp_path / "later", workers=0, dataset={"name": "of-a-later-version"})
    finding = _of(check(tmp_path / "later", workers=0), Kind.PUBLISHED_COUNT)
    assert finding is not None and "data set of-a-later-version, which this version does not know" in finding.message


@pytest.mark.parametrize("kind", sorted(AUDIO_KINDS))
def test_faults_of_recordings_are_found_with_their_place(tmp_path: Path, kind: Kind) -> None:
    clean = _noise(50, 1.0)
    narrow = soxr.resample(soxr.resample(_noise(51, 1.0), RATE, 8000), 8000, RATE)
    faulty = {
        Kind.CLIPPED: np.clip(6 * clean, -1, 1),
        Kind.CONSTANT: np.zeros(RATE),
        Kind.QUIET: clean * 2e-3,
        Kind.DC_OFFSET: clean + 0.05,
        Kind.NARROW_BAND: narrow,
    }[kind]
    rows = [*(_row(tmp_path, f"{n}.wav", _noise(n)) for n in range(7)), _row(tmp_path, "bad.wav", faulty)]
    found = _checked(rows, tmp_path / "out")
    assert {finding.kind for finding in found.warnings} & AUDIO_KINDS == {kind}
    finding = _of(found, kind)
    assert finding is not None and finding.sources == ("bad.wav",)
    if kind in (Kind.CLIPPED, Kind.CONSTANT):  # by the clips table
        return
    assert finding.shard == "train-000000.tar" and finding.offset is not None
    start = (tmp_path / "out" / finding.shard).read_bytes()[finding.offset :][:4]
    assert start == b"RIFF"


def _clipped_by_hand(signal: NDArray[np.float64]) -> float:
    """Share of a channel's samples in runs of three or more at full scale, counted one by one."""
    runs = [len(list(run)) for full, run in groupby(np.abs(signal) >= 32767 / 32768) if full]
    return sum(run for run in runs if run >= 3) / len(signal)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_clipping_is_measured_at_the_file_s_own_rate(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate // 2) / rate
    for gain in (0.9, 1.5, 20.0):
        loud = np.clip(gain * (0.7 * np.sin(2 * np.pi * 220 * time) + 0.3 * np.sin(2 * np.pi * 331 * time)), -1, 1)
        signal = np.stack([0.3 * np.sin(2 * np.pi * 440 * time), loud], axis=1)  # the second channel alone
        by_hand = _clipped_by_hand(np.where(loud > 0.999969, 1.0, loud))
        for subtype in ("PCM_16", "PCM_24", "FLOAT", "PCM_U8", "ULAW", "ALAW"):
            soundfile.write(tmp_path / "a.wav", np.minimum(signal, 32767 / 32768), rate, subtype)
            share = decode_piece(tmp_path / "a.wav", len(signal), 0, 8000).clipped_share
            exact = subtype in ("PCM_16", "PCM_24", "FLOAT")
            assert share == pytest.approx(by_hand, abs=1e-3 if exact else 0.05 * gain**0.5), (gain, subtype)
            assert (share >= CLIPPED_SHARE) == (gain > 1) or subtype.endswith("LAW"), (gain, subtype)


def test_clipping_belongs_to_the_piece_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to its neighbours, whose margins reach into it; and blocks and spans give the same."""
    signal = _noise(0, 3.0)
    signal[16000:32000] = np.clip(20 * signal[16000:32000], -1, 32767 / 32768)
    soundfile.write(tmp_path / "a.wav", np.stack([signal] * 2, axis=1), RATE)
    pieces = [decode_piece(tmp_path / "a.wav", 48000, start, start + 16000) for start in (0, 16000, 32000)]
    by_hand = _clipped_by_hand(signal[16000:32000])
    assert [piece.clipped_share for piece in pieces] == [0.0, pytest.approx(by_hand), 0.0] and by_hand > 0.1
    monkeypatch.setattr(decode, "SPAN_FRAMES", 7001)
    in_spans = decode_piece(tmp_path / "a.wav", 48000, 16000, 32000)
    assert in_spans.clipped_share == pytest.approx(by_hand, abs=1e-3)
    np.testing.assert_array_equal(in_spans.pcm, pieces[1].pcm)


def test_every_clip_of_flac_is_listened_to_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unfused_fast.shards.check.check.SPECTRUM_CLIPS", 1)
    rows = [_row(tmp_path, f"{n}.wav", _noise(n) * (2e-3 if n < 3 else 1)) for n in range(9)]
    pack(rows, tmp_path / "out", workers=0, codec="flac")
    sampled, every = (check(tmp_path / "out", every_clip=all_of_them, workers=0) for all_of_them in (False, True))
    assert sampled.corrupt == every.corrupt == []
    quiet = _of(every, Kind.QUIET)
    assert quiet is not None and quiet.count == 3 and "3 of 9 clips examined" in quiet.message
    few = _of(sampled, Kind.QUIET)
    assert few is None or "1 of 1 clips examined" in few.message


@pytest.mark.parametrize("name", DEMO_NAMES)
def test_the_embedded_recordings_raise_no_false_alarm(name: DemoName) -> None:
    """Speech has no fault at all. Of the notes, six brass and synthesiser notes of the font do have a DC offset."""
    offsets, narrow, rows = 0, 0, demo_rows(name)[::8]
    for row in rows:
        signal, _ = soundfile.read(row.path, dtype="int16")
        clipping = Clipping("PCM_16", 1)
        clipping.count((signal / np.float32(32768))[:, None])
        assert clipping.share < CLIPPED_SHARE and not is_quiet(int(signal.min()), int(signal.max()))
        narrow += narrow_band_hz(signal) is not None
        offsets += dc_offset(signal) is not None
    assert narrow < 0.02 * len(rows) and offsets <= (0 if name == "spoken-prompts" else 6)


def test_speech_that_was_recorded_at_8_khz_is_told_from_the_same_speech_at_16() -> None:
    found = 0
    rows = demo_rows("spoken-prompts")[::40]
    for row in rows:
        signal, rate = soundfile.read(row.path)
        assert rate == RATE and narrow_band_hz((signal * 32767).astype(np.int16)) is None
        upsampled = soxr.resample(soxr.resample(signal, RATE, 8000), 8000, RATE)
        found += narrow_band_hz(np.rint(np.clip(upsampled, -1, 1) * 32767).astype(np.int16)) == 8000
    assert found >= 0.9 * len(rows)
