"""Runs of a stranger: checkpoints whose digest holds though their bytes are hostile, and what must not happen."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 400e6
"""What a process may grow by while it refuses something, beyond what it took before."""


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.sign), "w")


def pickled(sign: Path) -> bytes:
    return pickle.dumps(Bomb(sign))


def torch_file(sign: Path) -> bytes:
    """A file as torch.save writes it, with the bomb as its pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(sign))
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def header(value: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header: JSON of a value, or text as it is."""
    text = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def only_checkpoint(run: Path, data: bytes, state: Any = None) -> Path:
    """Leaves the run one checkpoint, of epoch 2: these bytes, and a state that has their digest."""
    folder = run / "checkpoints"
    kept = json.loads((folder / "epoch-000002.json").read_text())
    shutil.rmtree(folder)
    folder.mkdir()
    path = folder / "epoch-000002.safetensors"
    path.write_bytes(data)
    if not isinstance(state, str):
        state = json.dumps({**kept, "sha256": hashlib.sha256(data).hexdigest(), **(state or {})})
    path.with_suffix(".json").write_text(state)
    return path


@contextlib.contextmanager
def in_little_memory() -> Iterator[None]:
    """Asserts that the block did not make the process grow by much; Linux counts in kilobytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES
