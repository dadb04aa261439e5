"""What lies behind fsspec URLs: s3://, gs://, https:// and others. fsspec is imported only when one is named."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from unfused_fast.errors import UserError
from unfused_fast.optional import importing, load_failure
from unfused_fast.shards.sources.places import shown

ATTEMPTS, FIRST_WAIT_SECONDS = 4, 0.25
"""Tries of a request, and the wait after the first, which doubles. Ours: servers that are busy answer within seconds;
longer outages are for a second run."""
BLOCK_BYTES, BLOCKS = 1 << 18, 32
"""Size of a range request, and how many of the last answers of a file are kept. Ours: a clip in one or two requests."""
WHOLE_BYTES = 1 << 28
"""Largest file that is read whole into memory from a server that gives no ranges. Ours: a long recording."""

DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
"""Of the disk here to which a file is brought, not of the network: not tried again, and given as they are."""

Result = TypeVar("Result")
_NO_RANGES = "the server gives no part of a file (HTTP range requests)"
_FOREIGN_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
_LASTING_ERRORS = frozenset(
    (errno.EINVAL, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.ENOSYS, errno.EPERM, errno.ENOTDIR, errno.EREMCHG)
)
"""What fsspec's file systems call an answer that will not change. Source: s3fs.errors."""


class NoAnswer(OSError):
    """What may pass, and did not in ATTEMPTS tries; `str()` is the reason."""


class RemoteStore:
    """A file behind a URL, read in ranges; whole, where the server gives none and it is not too large.

    Ours: a file that cannot be had raises OSError, and costs this file; a server that does not answer raises UserError,
    and ends the work, because the file may be had tomorrow.
    """

    def __init__(self, url: str) -> None:
        """Raises OSError, or UserError when a package is missing or the server does not answer."""
        self._url = url
        system, path = file_system(url)
        self._file: Any = self._ask(
            lambda: system.open(
                path, "rb", block_size=BLOCK_BYTES, cache_type="blockcache", cache_options={"maxblocks": BLOCKS}
            )
        )
        self._whole: bytes | None = None
        self.size = int(getattr(self._file, "size", None) or 0)
        if not self._file.seekable():
            self._read_whole()

    @property
    def is_whole(self) -> bool:
        """Whether it is in memory, for want of ranges."""
        return self._whole is not None

    def read_at(self, position: int, count: int) -> bytes:
        if self._whole is None:
            try:
                return self._ask(lambda: self._range(position, count))
            except ValueError:  # fsspec's word for a server that answers a range with the whole file
                self._read_whole()
        assert self._whole is not None
        return self._whole[position : position + count]

    def _ask(self, action: Callable[[], Result]) -> Result:
        try:
            return patiently(action)
        except NoAnswer as error:
            raise UserError(
                f"{shown(self._url)}: the server does not answer as it should, in {ATTEMPTS} tries ({error}); look at "
                "the network, wait, and give the same command again: it goes on where it was"
            ) from error

    def _range(self, position: int, count: int) -> bytes:
        self._file.seek(position)
        return bytes(self._file.read(count))

    def _read_whole(self) -> None:
        system, path = file_system(self._url)
        if self.size > WHOLE_BYTES:
            raise OSError(f"{_NO_RANGES}, and {self.size / 1e6:.0f} MB are too many to read at once; download it first")

        def read() -> bytes:
            with system.open(path, "rb", block_size=0) as stream:
                pieces, total = [], 0
                while total <= WHOLE_BYTES and (piece := stream.read(1 << 20)):
                    pieces.append(bytes(piece))
                    total += len(piece)
            return b"".join(pieces)

        data = self._ask(read)
        if len(data) > WHOLE_BYTES:
            raise OSError(f"{_NO_RANGES}, and it is too large to read at once; download it first")
        if self.size and len(data) != self.size:
            raise OSError(f"the server sent {len(data)} of {self.size} bytes")
        self._whole, self.size = data, len(data)


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises UserError: no package for it, or no such protocol."""
    install = "pip install '.[remote]'"
    with importing("fsspec", "fsspec", shown(url), install):
        import fsspec
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # of the protocol's package, such as s3fs
        why = load_failure(error)
        raise UserError(f"{shown(url)}: fsspec cannot open it ({why}); in a checkout: {install}") from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: {shown(str(error))}; name a folder, an archive or a CSV") from error
    return system, str(path)


def files_below(url: str) -> list[tuple[str, str, int]]:
    """(path below the URL, URL, size or 0) of every file below a URL, sorted.

    Raises:
        UserError: nothing there, not to be listed, or a package is missing.
    """
    system, path = file_system(url)
    path = path.rstrip("/") + "/"
    try:
        found = patiently(lambda: system.find(path, detail=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shown(url)}: cannot be listed ({reason(error)}); check the name and that your credentials are set, "
            "or name an archive or a CSV"
        ) from error
    web = path.startswith(("http://", "https://"))
    files = []
    for name, about in found.items():
        below = name.lstrip("/") if path == "/" else name.removeprefix(path)
        if below and below != name and "?" not in below and not below.endswith("/"):
            full = name if web else system.unstrip_protocol(name)
            files.append((_decoded(below) if web else below, full, int(about.get("size") or 0)))
    if not files:
        raise UserError(f"{shown(url)}: no files below this URL; name a folder, an archive or a CSV")
    return sorted(files)


def patiently(action: Callable[[], Result]) -> Result:
    """What the action returns, tried again after errors that may pass.

    Raises:
        NoAnswer: they did not pass.
        OSError: the reason; FileNotFoundError, PermissionError and DISK_ERRORS among them.
        ValueError: of the action.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except _passing_errors() as error:
            # fsspec calls a web page that cannot be reached one that is not there; S3's word for it is an answer.
            hidden = error.__cause__ if isinstance(error, FileNotFoundError) else None
            hidden = None if hasattr(hidden, "response") else hidden
            cause = hidden if isinstance(hidden, _passing_errors()) else error
            status, number = _status(cause), getattr(cause, "errno", None)
            if number in DISK_ERRORS:
                raise
            if isinstance(cause, (FileNotFoundError, PermissionError, IsADirectoryError)):
                raise type(cause)(reason(cause)) from error
            lasting = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            if lasting or number in _LASTING_ERRORS:
                raise OSError(reason(cause)) from error
            if attempt == ATTEMPTS - 1:
                raise NoAnswer(reason(cause)) from error
            time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def reason(error: Exception) -> str:
    """What an error says, in a line and without secrets."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file"
    if isinstance(status, int):
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    text = str(getattr(error, "strerror", None) or error).partition("\n")[0]
    return shown(text)[:160] or type(error).__name__


def _status(error: BaseException) -> int | None:
    """Of HTTP: aiohttp calls it status, gcsfs code."""
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _passing_errors() -> tuple[type[Exception], ...]:
    """What a network may raise; the packages that fsspec has loaded do not derive all of it from OSError."""
    foreign = (getattr(sys.modules[module], name) for module, name in _FOREIGN_ERRORS if module in sys.modules)
    return (OSError, EOFError, TimeoutError, *foreign)


def _decoded(path: str) -> str:
    from urllib.parse import unquote

    return unquote(path)
