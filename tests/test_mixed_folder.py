"""A folder of audio as people have it goes through `shard` and `train pretrain`; Ctrl-C loses nothing."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from unfused_fast.shards import demo
from unfused_fast.shards.sets.table import open_shards

Cli = Callable[..., Any]
DEMO = Path(demo.__file__).parent
KINDS = [  # ending, format, subtype
    ("wav", "WAV", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("wav", "WAV", "FLOAT"),
]
RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000)
NAMES = [
    "plain",
    "with two  spaces",
    "Grüße aus Köln/Straße",
    "-rf",
    "--help",
    "deep/er/still",
    "it's 100% [red]",
    "日本",
]


def recording(path: Path, rate_hz: int, channels: int) -> np.ndarray:
    """(frames, channels): one of the demo's recordings at another rate; a second channel is a little quieter."""
    signal_, original_hz = soundfile.read(path, dtype="float64")
    resampled = soxr.resample(signal_, original_hz, rate_hz)
    return np.clip(np.stack([resampled * 0.8**channel for channel in range(channels)], axis=1), -1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 recordings, speech and notes, in every rate, kind and width; a long one; damaged ones; what is no audio."""
    root = tmp_path_factory.mktemp("my audio ü") / "-recordings"
    speech, notes = (sorted((DEMO / name).rglob("*.ogg"))[::17] for name in ("spoken-prompts", "instrument-notes"))
    originals = [path for pair in zip(speech, notes, strict=False) for path in pair]
    for number in range(35):
        ending, form, subtype = KINDS[number % len(KINDS)]
        rate_hz, channels = RATES[number % len(RATES)], 1 + number % 2
        path = root / f"{NAMES[number % len(NAMES)]}{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, recording(originals[number], rate_hz, channels), rate_hz, subtype, format=form)
    whole = np.concatenate([recording(path, 24000, 1) for path in notes[:20]])
    soundfile.write(root / "a long one.flac", whole[: 25 * 24000], 24000)
    soundfile.write(root / "short.flac", whole[: 2 * 24000], 24000)
    for name in ("a long one", "short"):
        data = (root / f"{name}.flac").read_bytes()
        (root / f"--truncated, {name} ü.flac").write_bytes(data[: len(data) // 2])
    (root / "notes.wav").write_text("This is a text.\n" * 50)
    (root / "nothing.mp3").touch()
    (root / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8)
    soundfile.write(root / "silence.wav", np.zeros(44100), 44100)
    return root


def test_a_mixed_folder_goes_through(cli: Cli, folder: Path, tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    done = cli("shard", folder, shards)
    assert done.code == 0, done.err
    clips = open_shards(shards).clips
    sources = clips["source"].to_pylist()
    with (shards / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    beginnings = [
        ("--truncated, a long one ü.flac", "piece 2 of 3: truncated or damaged"),
        ("--truncated, a long one ü.flac", "piece 3 of 3: truncated or damaged"),
        ("--truncated, short ü.flac", "truncated or damaged"),
        ("cover.jpg", "not audio"),
        ("notes.wav", "not audio"),
        ("nothing.mp3", "empty file"),
    ]
    assert [path for path, _ in rejected] == [path for path, _ in beginnings]
    assert all(found.startswith(reason) for (_, found), (_, reason) in zip(rejected, beginnings, strict=True))
    # what lies before the cut of a long file is whole, and is kept
    assert sources.count("a long one.flac") == 3 and sources.count("--truncated, a long one ü.flac") == 1
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*sources, *(path for path, _ in rejected)} and len(sources) == 35 + 1 + 3 + 1 + 1
    assert f"{clips.num_rows} clips" in done.out and "rejected" in done.out and "rejected.csv" in done.out
    assert cli("check", shards).code == 0
    network = ("model.channels=4", "model.dim=32", "model.proj_hidden=32", "model.proj_dim=16")
    flags = [word for value in network for word in ("--set", value)]
    done = cli("train", "pretrain", shards, "--out", run, "--epochs", 2, *flags)
    assert done.code == 0, done.err
    result = json.loads((run / "result.json").read_text())
    assert result["clips"] == {"train": 41} and result["k"] == 5 and result["batch_size"] == 16
    assert np.isfinite([json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]).all()


def test_ctrl_c_ends_the_process_after_its_step_and_resume_goes_on(
    cli: Cli, cli_process: Cli, tones: Path, tiny: list[str], tmp_path: Path
) -> None:
    """That the end is the undisturbed run's is in tests/training/test_loop.py."""
    stopped, epochs = tmp_path / "stopped", 8
    arguments = ["train", "pretrain", tones, "--out", stopped, "--epochs", epochs, *tiny]
    process = cli_process(*arguments)
    log, deadline = stopped / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 1):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    done_epochs = len(log.read_text().splitlines())
    assert 1 <= done_epochs < epochs and out == ""
    assert "stopping after this step; press Ctrl-C again to stop immediately" in err
    said = re.escape(str(stopped)) + (
        rf": stopped after (batch \d of epoch {done_epochs + 1}|epoch {done_epochs}), saved; "
        "continue with --resume"
    )
    assert re.fullmatch(said, err.splitlines()[-1]) and "Traceback" not in err and "error" not in err

    resumed = cli(*arguments, "--resume")
    assert resumed.code == 0 and re.search(
        rf"resuming after (epoch {done_epochs}$|batch \d of epoch {done_epochs + 1})", resumed.err, re.M
    )
    assert log.read_text().count("\n") == epochs


def test_ctrl_c_before_the_first_epoch_leaves_nothing(
    cli: Cli, tones: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unfused_fast.methods.deep_clustering import DeepClustering

    real = DeepClustering._write_bank

    def pressed(*arguments: Any) -> None:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DeepClustering, "_write_bank", pressed)
    done = cli("train", "pretrain", tones, "--out", tmp_path / "run", *tiny)
    assert done.code == 130 and done.err.splitlines()[-1].endswith(
        "stopped before the first epoch; nothing is saved yet"
    )
    assert list(tmp_path.iterdir()) == []
