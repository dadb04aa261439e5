"""What tests of errors ask of a command that ended, and of the files it left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Cli = Callable[..., Any]
PackRows = Callable[..., Path]
LONGEST = 700
"""Characters of an error. Paths of pytest's folders take a good part of them."""


def refused(done: Any, *parts: object) -> None:
    """The command ended with exit code 1 and one short sentence that holds all `parts`."""
    assert done.code == 1, (done.code, done.err)
    missing = [part for part in map(str, parts) if part not in done.error]
    assert not missing, f"{missing} not in: {done.error}"
    assert len(done.error) < LONGEST and done.out == ""


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same_checkpoint(first: Path, second: Path, epoch: int = 2) -> None:
    """Two runs have the same weights, optimiser and generators, bit for bit."""
    name = f"checkpoints/epoch-{epoch:06d}.safetensors"
    one, other = load_file(first / name), load_file(second / name)
    assert set(one) == set(other)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
