"""Log-mels on disk: used when sound, made again when not, never half there, made once by many."""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_runs import in_little_memory, pickled
from rank_jobs import run_jobs

from unfused_fast.config.audio import Store
from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.data import log_mel_cache
from unfused_fast.data.resident import ResidentLoader
from unfused_fast.data.store import placed
from unfused_fast.data.stream import Batch, Loader
from unfused_fast.errors import UserError
from unfused_fast.shards.sets.table import ShardSet, open_shards
from unfused_fast.stages.features import baseline_encoder, extract

CPU = torch.device("cpu")


@pytest.fixture
def shards(wav_noise: tuple[ShardSet, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardSet:
    """Noise in a folder of its own, without a cache."""
    (tmp_path / "set").mkdir()
    for path in wav_noise[0].directory.iterdir():
        if not path.name.startswith("log-mel-"):
            (tmp_path / "set" / path.name).symlink_to(path)
    monkeypatch.setenv("UNFUSED_CACHE", str(tmp_path / "elsewhere"))
    return open_shards(tmp_path / "set")


def stream(shards: ShardSet, values: dict[str, object] | None = None, **options: object) -> Loader:
    return Loader(shards, "train", with_values(Config(), values or {}), **{"device": CPU, "batch_size": 8, **options})


def caches(folder: Path) -> list[Path]:
    """Everything that looks like a cache, a finished or a partial one."""
    return sorted(folder.rglob("log-mel-*.cache*"))


def views(loader: object) -> torch.Tensor:
    assert isinstance(loader, ResidentLoader)
    return torch.cat([torch.cat(batch.views) for batch in loader.epoch(1)])


@pytest.fixture
def no_audio(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, reading audio fails."""

    def read(self: Loader) -> Iterator[Batch]:
        raise AssertionError("the audio was read")

    return lambda: monkeypatch.setattr(Loader, "whole_clips", read)


def test_the_second_start_reads_the_cache(
    shards: ShardSet, no_audio: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    first = views(placed(stream(shards), "resident"))
    assert "from the audio" in capsys.readouterr().err
    (folder,) = caches(shards.directory)
    assert (folder / "frames.npy").stat().st_size > 30 * 50 * 128
    assert np.load(folder / "frames.npy").dtype == np.float16, "anyone's numpy reads it"
    no_audio()
    for store in ("resident", "mmap"):
        assert torch.equal(views(placed(stream(shards), store)), first)
        assert f"from the cache ({folder})" in capsys.readouterr().err


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """What changes a file of a cache."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


flip = rewrite("frames.npy", flipped)


def npy(header: str, data: bytes = b"") -> bytes:
    """A .npy file with any header."""
    text = header.encode().ljust(118, b" ") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def of_another(name: str, value: object) -> Callable[[bytes], bytes]:
    """What makes a cache one of another set or front end."""

    def change(data: bytes) -> bytes:
        manifest = json.loads(data)
        manifest["identity"][name] = value
        return json.dumps(manifest).encode()

    return change


SIGN = Path(tempfile.gettempdir()) / f"executed-{os.getpid()}"
"""What hostile content would make if it were executed."""
OBJECTS = "{'descr': '|O', 'fortran_order': False, 'shape': (60, 2), }"
ENDLESS = "{'descr': '<f2', 'fortran_order': False, 'shape': (1000000000000, 64), }"


@pytest.mark.parametrize(
    ("store", "file", "change", "says"),
    [
        ("mmap", "frames.npy", lambda data: data[:1000], "mmap length"),
        ("resident", "frames.npy", lambda data: data + b"more", "not those of these log-mels"),
        ("mmap", "frames.npy", flipped, "1 of 1 parts are not what was written"),
        ("resident", "frames.npy", flipped, "1 of 1 parts are not what was written"),
        ("resident", "frames.npy", lambda data: npy(OBJECTS, pickled(SIGN)), "damaged"),
        ("mmap", "frames.npy", lambda data: npy(ENDLESS), "damaged"),
        ("mmap", "manifest.json", of_another("digest", "0" * 64), "not those of these log-mels"),
        ("resident", "manifest.json", lambda data: b"[" * 100_000, "nested too deeply"),
        ("resident", "manifest.json", lambda data: b"7", "damaged"),
    ],
)
def test_what_is_not_sound_is_made_again_with_the_reason(
    shards: ShardSet,
    capsys: pytest.CaptureFixture[str],
    store: Store,
    file: str,
    change: Callable[[bytes], bytes],
    says: str,
) -> None:
    """Nothing of a stranger's cache is executed, and none takes much memory."""
    whole = views(placed(stream(shards), store))
    (folder,) = caches(shards.directory)
    rewrite(file, change)(folder)
    capsys.readouterr()
    with in_little_memory():
        assert torch.equal(views(placed(stream(shards), store)), whole)
    said = capsys.readouterr().err
    assert says in said and "it is recomputed" in said and "from the audio" in said and not SIGN.exists()
    assert torch.equal(views(placed(stream(shards), store)), whole)
    assert "recomputed" not in capsys.readouterr().err


def test_another_front_end_has_a_cache_of_its_own(shards: ShardSet) -> None:
    for values in ({}, {"frontend.n_mels": 40}, {"data.crop_seconds": 1.2}):
        placed(stream(shards, values), "resident")
    assert len(caches(shards.directory)) == 3


def test_many_parts_are_verified_each(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_mel_cache, "CHUNK_BYTES", 10000)  # no multiple of a frame, nor of a batch
    whole = views(placed(stream(shards), "resident"))
    (folder,) = caches(shards.directory)
    digests = json.loads((folder / "manifest.json").read_text())["sha256_of_chunks"]
    assert len(digests) == -(-log_mel_cache.layout(stream(shards)).bytes // 10000) > 20
    assert torch.equal(views(placed(stream(shards), "resident")), whole)


@pytest.mark.parametrize(("sent", "left"), [(signal.SIGKILL, [".partial"]), (signal.SIGINT, [])])
def test_a_killed_first_pass_is_not_taken_for_a_cache(
    shards: ShardSet, capsys: pytest.CaptureFixture[str], sent: signal.Signals, left: list[str]
) -> None:
    job = {"ranks": 1, "check": "first pass", "shards": str(shards.directory), "sent": int(sent)}
    ((done,),) = run_jobs([job])
    killed = sent == signal.SIGKILL
    assert done["code"] == (-9 if killed else 1) and ("KeyboardInterrupt" in done["said"]) is not killed, done
    assert [path.suffix for path in caches(shards.directory)] == left
    made = views(placed(stream(shards), "resident"))
    assert "from the audio" in capsys.readouterr().err
    assert [path.suffix for path in caches(shards.directory)] == [".cache"]
    assert torch.equal(views(placed(stream(shards), "resident")), made)


def test_of_two_writers_one_waits_and_reads(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, passes, made = Loader.whole_clips, [], []

    def counted(self: Loader) -> Iterator[Batch]:
        passes.append(1)
        time.sleep(0.5)
        yield from original(self)

    monkeypatch.setattr(Loader, "whole_clips", counted)
    threads = [
        threading.Thread(target=lambda: made.append(views(placed(stream(shards), "resident")))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passes) == 1 and len(made) == 3
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert "waiting for another process" in capsys.readouterr().err
    assert [path.suffix for path in caches(shards.directory)] == [".cache"]


def test_a_set_not_to_be_written_to_is_cached_elsewhere(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_audio, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = os.access
    # root may write anywhere, so that permissions alone would not keep these tests out
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shards.directory and allowed(path, mode))
    whole = views(placed(stream(shards), "resident"))
    assert f"{shards.directory}: cannot hold the log-mels (may not be written to)" in capsys.readouterr().err
    assert not caches(shards.directory) and len(caches(tmp_path / "elsewhere")) == 1
    no_audio()
    assert torch.equal(views(placed(stream(shards), "mmap")), whole)


def test_without_any_room_the_log_mels_are_not_kept(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = views(placed(stream(shards), "resident"))
    for path in caches(shards.directory):
        path.rename(tmp_path / path.name)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(log_mel_cache.shutil, "disk_usage", lambda path: usage)
    assert torch.equal(views(placed(stream(shards), "auto")), whole)
    said = capsys.readouterr().err
    assert "0.00 GB free, the log-mels take" in said and "every run computes them again" in said
    assert not caches(shards.directory)
    with pytest.raises(UserError, match=r"no folder has room for .* use --data stream"):
        placed(stream(shards), "mmap")


def test_a_single_pass_takes_a_cache_but_makes_none(
    shards: ShardSet, no_audio: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = baseline_encoder("logmel", Config(), CPU)

    def features(store: Store = "auto") -> torch.Tensor:
        return extract(encoder, shards, "train", "logmel", "mean", CPU, store=store)

    streamed = features()
    assert "auto is stream for train: it is read once" in capsys.readouterr().err
    assert not caches(shards.directory)
    kept = features("resident")
    (folder,) = caches(shards.directory)
    flip(folder)
    assert torch.equal(features(), kept) and "it is recomputed" in capsys.readouterr().err
    no_audio()
    assert torch.equal(features(), kept)
    assert f"from the cache ({folder})" in capsys.readouterr().err
    assert not torch.equal(kept, streamed), "float16"


def test_a_command_that_reads_a_split_twice_computes_it_once(
    cli: Any, tones: Path, pretrained: Path, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    for path in tones.iterdir():
        if not path.name.startswith("log-mel-"):
            (tmp_path / "set" / path.name).symlink_to(path)
    done = cli(
        "train", "distill", tmp_path / "set", "--teacher", pretrained, "--out", tmp_path / "d", "--epochs", 1, *tiny
    )
    assert done.code == 0 and done.err.count("first pass over train") == 1 and "from the cache" in done.err
    (cache,) = caches(tmp_path / "set")
    done = cli(
        "train", "linear", tmp_path / "set", "--encoder", tmp_path / "d", "--out", tmp_path / "l", "--device", "cpu"
    )
    assert done.code == 0 and "auto is stream for valid: it is read once" in done.err
    assert f"from the cache ({cache})" in done.err and caches(tmp_path / "set") == [cache]
