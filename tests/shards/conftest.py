"""Real audio of every kind, made here, and one small packed set."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import ShardSet
from unfused_fast.shards.sources.row import SourceRow


def tone(seconds: float, rate: int, hertz: float, level: float = 0.5, channels: int = 1) -> NDArray[np.float64]:
    """(frames, channels): a sine with a little noise, so that no two files are alike."""
    frames = round(seconds * rate)
    noise = np.random.default_rng(round(hertz)).standard_normal((frames, channels)) * 0.01
    return level * np.sin(2 * np.pi * hertz * np.arange(frames) / rate)[:, None] + noise


@dataclass(frozen=True)
class Mixed:
    """A folder of audio as people have it."""

    folder: Path
    good: dict[str, float]
    """Name -> seconds."""
    bad: dict[str, str]
    """Name -> how its reason begins."""


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed audio ü")
    good: dict[str, float] = {}
    kinds = [
        ("plain.wav", 8000, 1, "PCM_16", 0.8),
        ("deep/er/with spaces.wav", 22050, 2, "PCM_24", 1.1),
        ("-rf.wav", 44100, 2, "FLOAT", 0.7),
        ("--help.flac", 44100, 1, "PCM_16", 0.9),
        ("Grüße/tschüß.flac", 48000, 2, "PCM_24", 0.6),
        ("grüße.ogg", 48000, 1, "VORBIS", 1.2),
        ("a'quote\".ogg", 16000, 2, "VORBIS", 0.5),
        ("speech.opus.ogg", 48000, 1, "OPUS", 0.75),
        ("song, live.mp3", 44100, 2, "MPEG_LAYER_III", 1.3),
        ("low.mp3", 22050, 1, "MPEG_LAYER_III", 1.0),
        ("old.aiff", 11025, 1, "PCM_16", 1.4),
        ("double.wav", 16000, 1, "DOUBLE", 0.4),
        ("law.wav", 8000, 1, "ULAW", 0.55),
        ("LOUD.WAV", 32000, 6, "PCM_16", 0.65),
        ("no ending", 16000, 1, "PCM_16", 0.45),
    ]
    for number, (name, rate, channels, subtype, seconds) in enumerate(kinds):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {"flac": "FLAC", "ogg": "OGG", "mp3": "MP3", "aiff": "AIFF"}.get(name.rpartition(".")[2], "WAV")
        soundfile.write(path, tone(seconds, rate, 200 + 90 * number, channels=channels), rate, subtype, format=form)
        good[name] = seconds

    def cut(name: str, source: str, part: float) -> None:
        data = (folder / source).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * part)])

    (folder / "notes.wav").write_text("this is text\n" * 50)
    (folder / "empty.flac").touch()
    cut("truncated.flac", "--help.flac", 0.6)
    cut("truncated.wav", "plain.wav", 0.6)
    cut("truncated.aiff", "old.aiff", 0.6)
    cut("truncated.mp3", "song, live.mp3", 0.6)
    cut("header only.wav", "plain.wav", 44 / (folder / "plain.wav").stat().st_size)
    broken = tone(0.5, 16000, 400)
    broken[3000] = np.nan
    soundfile.write(folder / "nan.wav", broken, 16000, "FLOAT")
    broken[3000] = np.inf
    soundfile.write(folder / "inf.wav", broken, 16000, "FLOAT")
    for name, level in (("silent.wav", 0.0), ("offset.wav", 0.25)):
        soundfile.write(folder / name, np.full(16000, level), 16000)
        good[name] = 1.0
    soundfile.write(folder / "click.wav", tone(0.05, 16000, 400), 16000)
    (folder / "samples.raw").write_bytes(bytes(range(256)) * 40)
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    bad = {
        "notes.wav": "not audio",
        "empty.flac": "empty file",
        "truncated.flac": "truncated or damaged",
        "truncated.wav": "truncated or damaged",
        "truncated.aiff": "truncated or damaged",
        "truncated.mp3": "truncated or damaged",
        "header only.wav": "no samples",
        "nan.wav": "non-finite",
        "inf.wav": "non-finite",
        "click.wav": "too short",
        "samples.raw": "not audio",
        "gone.wav": "unreadable",
    }
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "deep/.hidden.wav").write_text("no")
    return Mixed(folder, good, bad)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[SourceRow]:
    """45 files of three labels in four splits, one without a label."""
    folder = tmp_path_factory.mktemp("audio")
    made = []
    for number in range(45):
        path = folder / f"clip{number:02d}.wav"
        soundfile.write(path, tone(0.2 + 0.01 * number, 16000, 300 + 20 * number), 16000)
        split = ("train", "train", "train", "valid", "extra", "test")[number % 6]
        label = None if number == 7 else ("dog", "cat", "bird")[number % 3]
        made.append(SourceRow(path, path.name, label, split, f"speaker{number // 5}"))
    return made


@pytest.fixture(scope="session")
def packed(rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The rows packed, 10 clips a shard; not to be written to."""
    out = tmp_path_factory.mktemp("sets") / "packed"
    return pack(rows, out, workers=0, clips_per_shard=10).shard_set


@pytest.fixture
def copy(packed: ShardSet, tmp_path: Path) -> Path:
    """A copy of the packed set, to be damaged."""
    return Path(shutil.copytree(packed.directory, tmp_path / "copy"))


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory, rows: list[SourceRow]) -> Path:
    """Nine of the rows in folders of three labels, under names that are not ASCII; not to be written to."""
    folder = tmp_path_factory.mktemp("kinds")
    for number, row in enumerate(rows[:9]):
        target = folder / f"label{number % 3}" / f"ü {row.source}"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(str(row.path), target)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no waiting between tries."""
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, empty."""
    system = pytest.importorskip("fsspec", reason="needs the extra `remote`").filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def write_tone() -> Callable[..., NDArray[np.float64]]:
    """`tone`, for tests that make their own files."""
    return tone


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """An S3 on this machine."""
    moto = pytest.importorskip("moto.server", reason="needs moto, the S3 of this machine (extra `dev`)")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its file system, with an empty bucket called bucket."""
    s3fs = pytest.importorskip("s3fs", reason="needs the extra `remote`")
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_address),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    system.invalidate_cache()
    system.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
