"""Caches of log-mels that came with a stranger's set: not used, said so, made again; nothing executed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_runs import in_little_memory, pickled
from outcomes import Cli


def npy(path: Path, header: str, data: bytes = b"") -> None:
    """A .npy file with any header."""
    text = header.encode().ljust(118, b" ") + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)


def objects(path: Path, sign: Path) -> None:
    npy(path, "{'descr': '|O', 'fortran_order': False, 'shape': (60, 2), }", pickled(sign))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


SPOILT: dict[str, Callable[[Path, Path], object]] = {
    "deep": lambda cache, sign: (cache / "manifest.json").write_text("[" * 100_000),
    "a number": lambda cache, sign: (cache / "manifest.json").write_text("7"),
    "digests that are a number": lambda cache, sign: change(cache / "manifest.json", sha256_of_chunks=7),
    "digests of text": lambda cache, sign: change(cache / "manifest.json", sha256_of_chunks="a"),
    "objects for the index": lambda cache, sign: objects(cache / "index.npy", sign),
    "objects for the frames": lambda cache, sign: objects(cache / "frames.npy", sign),
    "an endless index": lambda cache, sign: npy(
        cache / "index.npy", "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 2), }"
    ),
    "a header that calls": lambda cache, sign: npy(cache / "index.npy", f"open({str(sign)!r}, 'w')"[:118]),
    "frames of another shape": lambda cache, sign: np.save(cache / "frames.npy", np.zeros((3, 64), np.float16)),
}


@pytest.fixture
def set_with_cache(pretrain: Cli, copy_of: Callable[[Path], Path], tones: Path, tmp_path: Path) -> Path:
    shards = copy_of(tones)
    assert pretrain(shards, tmp_path / "first").code == 0
    return shards


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("mode", ["resident", "mmap"])
def test_a_cache_of_something_else(pretrain: Cli, set_with_cache: Path, tmp_path: Path, case: str, mode: str) -> None:
    (cache,) = set_with_cache.glob("log-mel-train-*.cache")
    SPOILT[case](cache, tmp_path / "executed")
    with in_little_memory():
        done = pretrain(set_with_cache, tmp_path / "second", "--data", mode)
    assert done.code == 0, done.err
    assert "it is made again" in done.err and not (tmp_path / "executed").exists()
    log = "log.jsonl"
    first, second = (
        [json.loads(line)["loss"] for line in (tmp_path / name / log).read_text().splitlines()]
        for name in ("first", "second")
    )
    assert first == second
    shutil.rmtree(tmp_path / "second")
