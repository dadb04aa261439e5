"""The files of a shard set behind an fsspec URL."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from unfused_fast.errors import UserError
from unfused_fast.shards.sources.location import without_secrets
from unfused_fast.shards.sources.remote import DISK_ERRORS, file_system, with_retries

CLAIM = "writing.json"
NAME_A_WRITABLE_URL = "name a URL that can be written, such as s3://BUCKET/SET, or a folder"

Result = TypeVar("Result")
_TAGS = ("ETag", "etag", "md5Hash", "checksum")


def cache_folder() -> Path:
    """Where sets behind URLs are made and read: UNFUSED_CACHE, or ~/.cache/unfused-fast."""
    return Path(os.environ.get("UNFUSED_CACHE") or Path.home() / ".cache" / "unfused-fast")


class RemoteFolder:
    """The files of the set behind one URL."""

    def __init__(self, url: str) -> None:
        """Raises UserError: no such protocol, or a package for it is missing. Sends no request yet."""
        url = url.rstrip("/")
        self.shown = without_secrets(url)
        self.key = hashlib.sha256(self.shown.encode()).hexdigest()[:16]
        self.name = re.sub(r"[^\w.-]", "_", self.shown.rpartition("/")[2]).lstrip(".") or "set"
        self.is_web = url.startswith(("http://", "https://"))
        self._system, path = file_system(url)
        self._path = path.rstrip("/")

    def listing(self) -> dict[str, tuple[int, str]]:
        """Name -> size and tag (a digest of the content, if the server has one) of everything directly there."""
        self._system.invalidate_cache()
        try:
            entries = self._try("read", lambda: self._system.ls(self._path, detail=True))
        except FileNotFoundError:
            return {}
        found = {str(entry["name"]).rstrip("/").rpartition("/")[2]: about(entry) for entry in entries}
        return {name: facts for name, facts in found.items() if name and name != self._path.rpartition("/")[2]}

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError, or UserError."""
        return self._try("read", lambda: bytes(self._system.cat_file(self._of(name))))

    def fetch(self, name: str, path: Path) -> None:
        """Downloads a file. Raises FileNotFoundError, OSError of remote.DISK_ERRORS: the disk here, or UserError."""
        self._try("read", lambda: self._system.get_file(self._of(name), str(path)))

    def claim(self) -> dict[str, str] | None:
        """Contents of writing.json: owner, by, since; None: no process is writing."""
        try:
            claim = json.loads(self.read(CLAIM))
            return {name: str(claim[name]) for name in ("owner", "by", "since")}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.shown}/{CLAIM}: not a valid {CLAIM}; delete it if no process is packing there, or choose "
                "another OUT"
            ) from error

    @contextmanager
    def named(self, folder: Path) -> Iterator[None]:
        """Errors about the copy in `folder` name the URL."""
        try:
            yield
        except UserError as error:
            raise UserError(str(error).replace(str(folder), self.shown)) from error

    def _try(self, what: str, action: Callable[[], Result]) -> Result:
        """With retries. Args: what: "read" or "written"."""
        try:
            return with_retries(self.shown, action)
        except FileNotFoundError:
            raise
        except NotImplementedError as error:
            raise UserError(
                f"{self.shown}: files of this kind of URL cannot be {what}; {NAME_A_WRITABLE_URL}"
            ) from error
        except (OSError, ValueError) as error:
            if what == "read" and isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            advice = "check the name, the credentials and the network"
            if what == "written":
                advice = (
                    "check the credentials and the space there; finished shards are kept; run the same command again"
                )
            raise UserError(f"{self.shown}: cannot be {what} ({without_secrets(str(error))}); {advice}") from error

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"


def about(entry: dict[str, Any]) -> tuple[int, str]:
    """Size and tag of an entry of fsspec."""
    return int(entry.get("size") or 0), next((str(entry[name]) for name in _TAGS if entry.get(name)), "")
