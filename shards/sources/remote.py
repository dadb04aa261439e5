"""Files behind fsspec URLs: s3://, gs://, https:// and others. fsspec is imported only when one is named."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote

from unfused_fast.errors import UserError
from unfused_fast.optional import importing, load_failure
from unfused_fast.shards.sources.location import without_secrets

WAITS_SECONDS = (0.25, 0.5, 1.0)
"""Waits between the tries of a request. Ours: servers that are busy answer within seconds; longer outages are for a
second run."""
BLOCK_BYTES, BLOCKS = 1 << 18, 32
"""Size of a range request, and how many of the last answers of a file are kept. Ours: a clip in one or two requests."""
WHOLE_BYTES = 1 << 28
"""Largest file that is read whole into memory from a server that gives no ranges. Ours: a long recording."""
DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
"""Errors of the local disk, not of the network: not retried, and raised as they are."""

Result = TypeVar("Result")
_NO_RANGES = "the server does not support HTTP range requests, and the file is too large to read whole"
_FOREIGN_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)


class RemoteFile:
    """A file behind a URL, read in ranges; whole, where the server gives none and it is not too large.

    Ours: a file that is missing or forbidden raises OSError, and only this file is lost; a server that does not answer
    raises UserError, and ends the work, because the file may be available later.
    """

    def __init__(self, url: str) -> None:
        """Raises OSError, or UserError when a package is missing or the server does not answer."""
        self._url = url
        self._system, self._path = file_system(url)
        blocks = {"block_size": BLOCK_BYTES, "cache_type": "blockcache", "cache_options": {"maxblocks": BLOCKS}}
        self._file: Any = with_retries(url, lambda: self._system.open(self._path, "rb", **blocks))
        self.whole: bytes | None = None
        """The content, if the server gives no ranges."""
        self.size = int(getattr(self._file, "size", None) or 0)
        if not self._file.seekable():
            self._read_whole()

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on. Raises OSError, or UserError when the server does not answer."""

        def read() -> bytes:
            self._file.seek(position)
            return bytes(self._file.read(count))

        if self.whole is None:
            try:
                return with_retries(self._url, read)
            except ValueError:  # fsspec's error for a server that answers a range with the whole file
                self._read_whole()
        return (self.whole or b"")[position : position + count]

    def _read_whole(self) -> None:
        def read() -> bytes:
            pieces, total = [], 0
            with self._system.open(self._path, "rb", block_size=0) as stream:
                while total <= WHOLE_BYTES and (piece := stream.read(1 << 20)):
                    pieces.append(bytes(piece))
                    total += len(piece)
            return b"".join(pieces)

        data = b"" if self.size > WHOLE_BYTES else with_retries(self._url, read)
        if max(len(data), self.size) > WHOLE_BYTES:
            raise OSError(f"{_NO_RANGES}; download it first")
        if self.size and len(data) != self.size:
            raise OSError(f"the server sent {len(data)} of {self.size} bytes")
        self.whole, self.size = data, len(data)


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises UserError: no package for it, or no such protocol."""
    title, install = without_secrets(url), "pip install '.[remote]'"
    with importing("fsspec", "fsspec", title, install):
        import fsspec
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # of the protocol's package, such as s3fs
        raise UserError(f"{title}: fsspec cannot open it ({load_failure(error)}); in a checkout: {install}") from error
    except ValueError as error:
        raise UserError(f"{title}: {without_secrets(str(error))}; name a folder, an archive or a CSV") from error
    return system, str(path)


def files_below(url: str) -> list[tuple[str, str]]:
    """(path below the URL, URL) of every file below a URL, sorted.

    Raises:
        UserError: nothing there, not listable, or a package is missing.
    """
    system, path = file_system(url)
    path = path.rstrip("/") + "/"
    try:
        found = with_retries(url, lambda: system.find(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{without_secrets(url)}: cannot be listed ({reason(error)}); check the name and that your credentials are "
            "set, or name an archive or a CSV"
        ) from error
    web, files = path.startswith(("http://", "https://")), []
    for name in found:
        below = name.lstrip("/") if path == "/" else name.removeprefix(path)
        if below and below != name and "?" not in below and not below.endswith("/"):
            files.append((unquote(below), name) if web else (below, system.unstrip_protocol(name)))
    if not files:
        raise UserError(f"{without_secrets(url)}: no files below this URL; name a folder, an archive or a CSV")
    return sorted(files)


def with_retries(url: str, action: Callable[[], Result]) -> Result:
    """What the action returns, tried again after errors that may pass.

    Raises:
        UserError: they did not pass.
        OSError: the reason; FileNotFoundError, PermissionError and DISK_ERRORS among them.
        ValueError: of the action.
    """
    for wait in (*WAITS_SECONDS, None):
        try:
            return action()
        except _network_errors() as error:
            # fsspec reports an unreachable web page as missing; a missing file on S3 is an answer of the server.
            hidden = error.__cause__ if isinstance(error, FileNotFoundError) else None
            cause = hidden if isinstance(hidden, _network_errors()) and not hasattr(hidden, "response") else error
            status = _status(cause)
            if getattr(cause, "errno", None) in DISK_ERRORS:
                raise
            if isinstance(cause, (FileNotFoundError, PermissionError, IsADirectoryError)):
                raise type(cause)(reason(cause)) from error
            if 400 <= status < 500 and status not in (408, 429):
                raise OSError(reason(cause)) from error
            if wait is None:
                raise UserError(
                    f"{without_secrets(url)}: the server failed {len(WAITS_SECONDS) + 1} times "
                    f"({reason(cause)}); check the network, wait, and run the same command again to continue"
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def reason(error: BaseException) -> str:
    """The message of an error, in a line and without secrets."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file"
    if status:
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    text = str(getattr(error, "strerror", None) or error).partition("\n")[0]
    return without_secrets(text)[:160] or type(error).__name__


def _status(error: BaseException) -> int:
    """Of HTTP, 0 for none: aiohttp calls it status, gcsfs code."""
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return status if isinstance(status, int) else 0


def _network_errors() -> tuple[type[Exception], ...]:
    """The errors of a network; the packages that fsspec has loaded do not derive all of it from OSError."""
    foreign = (getattr(sys.modules[module], name) for module, name in _FOREIGN_ERRORS if module in sys.modules)
    return (OSError, EOFError, TimeoutError, *foreign)
