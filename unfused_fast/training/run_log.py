"""The numbers of each epoch: log.jsonl and TensorBoard in a run directory. Training continues where they cannot be
written.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unfused_fast.console import console
from unfused_fast.errors import cause
from unfused_fast.shards.sets.shard_files import replace_file


class RunLog:
    """One line per epoch; a line that cannot be written (full disk) is kept and written with the next one."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / "log.jsonl"
        self._board: Any = None
        self._unwritten: list[str] = []

    def append(self, epoch: int, values: dict[str, Any]) -> None:
        """Adds the numbers of an epoch."""
        self._unwritten.append(json.dumps({"epoch": epoch, **values}) + "\n")
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self._unwritten)
            self._unwritten.clear()
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=epoch)
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, epoch)
        except OSError as error:
            if self._unwritten and self.path.exists():
                os.truncate(self.path, size)  # without half a line
            self._board = None  # its thread has ended; the next line starts another file
            self._refused(error)

    def drop_after(self, epoch: int) -> None:
        """Drops the lines of later epochs, and a truncated line."""
        if self.path.exists():
            lines = self.path.read_bytes().splitlines()
            replace_file(self.path, b"".join(line + b"\n" for line in lines if _epoch_of(line) <= epoch))

    def close(self) -> None:
        """Writes what TensorBoard has not yet written."""
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._refused(error)

    @contextmanager
    def thread_errors(self) -> Iterator[None]:
        """TensorBoard writes in its own thread, which ends on a full disk: reports that without a traceback."""
        unhandled = threading.excepthook

        def failed(given: threading.ExceptHookArgs) -> None:
            if isinstance(given.exc_value, OSError):
                self._refused(given.exc_value)
            else:
                unhandled(given)

        threading.excepthook = failed
        try:
            yield
        finally:
            threading.excepthook = unhandled

    def _refused(self, error: BaseException) -> None:
        console.print(f"not logged, training continues: {self.out}: {cause(error)}", style="yellow")


def _epoch_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf
