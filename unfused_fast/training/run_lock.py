"""One process at a time in a run directory: a lock that the system opens when its process ends, however that is."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

from unfused_fast.console import console
from unfused_fast.errors import UserError, cause

LOCK = "run.lock"
"""Name of the file that is locked; it holds the process and host, and is there while they are at work."""


class RunLock:
    """The lock of a run directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        self._file: int | None = None

    def take(self) -> None:
        """Locks the directory, which exists; again where it is locked by this object does nothing.

        Raises:
            UserError: another process is at work there, or the file cannot be written.
        """
        while self._file is None:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written ({cause(error)}); choose another --out") from error
            self._lock(file)
            if not self._still_there(file):
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            self._file = file

    def release(self) -> None:
        """Lets go, and removes the file while it is still locked."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(file)
            raise UserError(
                f"{self.path.parent}: {who} is using this run directory; wait for it, end it, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(file)
                raise
            console.print(
                f"{self.path.parent}: this file system has no locks, so nothing keeps a second process out of the run",
                style="yellow",
            )

    def _still_there(self, file: int) -> bool:
        """Whether the open file is still the one by that name: who held the lock removed it as it ended."""
        try:
            return os.fstat(file).st_ino == self.path.stat().st_ino
        except FileNotFoundError:
            return False
