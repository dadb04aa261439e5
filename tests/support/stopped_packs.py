"""Packs in this process, and one that is stopped half way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import Interrupted
from unfused_fast.shards.packing.finish import PackResult
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.shard_files import ShardWriter
from unfused_fast.shards.sources.row import SourceRow


def pack_alone(rows: list[SourceRow], out: Path, **options: Any) -> PackResult:
    """As pack, without worker processes."""
    return pack(rows, out, **{"workers": 0, **options})


def _failing(after: int, error: BaseException) -> Callable[..., None]:
    add, calls = ShardWriter.add, iter(range(1000))

    def failing(self: ShardWriter, key: str, members: dict[str, bytes]) -> None:
        if next(calls) == after:
            raise error
        add(self, key, members)

    return failing


def stopped(rows: list[SourceRow], out: Path, error: BaseException | None = None, **options: Any) -> None:
    """Packs until the third shard is half done."""
    error = error or KeyboardInterrupt()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "add", _failing(25, error))
        with pytest.raises(Interrupted if isinstance(error, KeyboardInterrupt) else type(error)):
            pack_alone(rows, out, clips_per_shard=10, **options)
