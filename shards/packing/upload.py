"""A shard set behind an fsspec URL, seen by the process that makes it there.

URL/writing.json     while a set is made: who makes it
URL/*.tar, *.idx     sent one by one, as soon as the numbers of their clips are final
URL/manifest.json    sent last: a set without it is unfinished, for every reader
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.journal import DoneShard, Journal
from unfused_fast.shards.packing.rejections import read_reasons
from unfused_fast.shards.sets.shard_files import index_path
from unfused_fast.shards.sets.table import CLIPS, MANIFEST, REJECTED, ShardSet, read_clips, read_manifest
from unfused_fast.shards.sources.location import local_path, without_secrets
from unfused_fast.shards.sources.remote import DISK_ERRORS, file_system, with_retries

CLAIM = "writing.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_]+-\d+\.tar")

Result = TypeVar("Result")
_SET_FILE = re.compile(r"[A-Za-z0-9_]+-\d+\.(tar|idx)|clips\.parquet|rejected\.csv|manifest\.json|writing\.json")
_TAGS = ("ETag", "etag", "md5Hash", "checksum")
_HOLDS_SETS = "name a URL that can be written, such as s3://BUCKET/SET, or a folder"


def cache_folder() -> Path:
    """Where sets behind URLs are made and read: UNFUSED_CACHE, or ~/.cache/unfused-fast."""
    return Path(os.environ.get("UNFUSED_CACHE") or Path.home() / ".cache" / "unfused-fast")


def destination(out: str | Path) -> tuple[Path, RemoteSet | None]:
    """The folder where `out` is made, and where its files go from there, if that is elsewhere."""
    folder = local_path(out)
    if isinstance(folder, Path):
        return folder, None
    remote = RemoteSet(str(out))
    if str(out).startswith(("http://", "https://")):
        raise UserError(f"{remote.shown}: a web server is only read; {_HOLDS_SETS}")
    return cache_folder() / "packing" / f"{remote.name}-{remote.key}", remote


class RemoteSet:
    """The set behind one URL.

    Ours: one process of a machine is kept from another by the lock on the folder where the set is made, two machines by
    writing.json. That is no lock: of two that begin within the same second both may go on, until all but the last find,
    at their next shard, that the set is not theirs any more, and stop.
    """

    def __init__(self, url: str) -> None:
        """Raises UserError: no such protocol, or a package for it is missing. Nothing is asked yet."""
        url = url.rstrip("/")
        self.shown = without_secrets(url)
        self.key = hashlib.sha256(self.shown.encode()).hexdigest()[:16]
        self.name = re.sub(r"[^\w.-]", "_", self.shown.rpartition("/")[2]).lstrip(".") or "set"
        self._system, path = file_system(url)
        self._path = path.rstrip("/")
        self.is_web = url.startswith(("http://", "https://"))
        self.shard_bytes = 0
        """Size of tars and indexes, once the set is complete."""
        self._owner, self._opened = "", False

    # What is there

    def listing(self) -> dict[str, tuple[int, str]]:
        """Name -> size and tag (what the server says of the content) of everything directly there."""
        self._system.invalidate_cache()
        try:
            entries = self._try("read", lambda: self._system.ls(self._path, detail=True))
        except FileNotFoundError:
            return {}
        found = {str(entry["name"]).rstrip("/").rpartition("/")[2]: _about(entry) for entry in entries}
        return {name: about for name, about in found.items() if name and name != self._path.rpartition("/")[2]}

    def size(self, name: str) -> int:
        """Of one file, in bytes; 0 where the server does not say. Raises FileNotFoundError, or UserError."""
        return self._try("read", lambda: _about(self._system.info(self._of(name))))[0]

    def read(self, name: str) -> bytes:
        """A small file. Raises FileNotFoundError; OSError: the reason, with no more words than the server's."""
        return with_retries(lambda: self._cat(name))

    def fetch(self, name: str, path: Path) -> None:
        """Downloads a file. Raises FileNotFoundError, OSError of remote.DISK_ERRORS: the disk here, or UserError."""
        self._try("read", lambda: self._system.get_file(self._of(name), str(path)))

    def finished(self) -> tuple[ShardSet, dict[str, int]] | None:
        """The set that is there, without its shards, and its rejections by reason, if it is complete."""
        with TemporaryDirectory() as name, self.named(folder := Path(name)):
            try:
                for file in (MANIFEST, CLIPS, REJECTED):
                    self.fetch(file, folder / file)
            except FileNotFoundError:
                return None
            found = ShardSet(folder, read_manifest(folder), read_clips(folder)), read_reasons(folder)
        self.shard_bytes = _shard_bytes(self.listing())
        return found

    def claim(self) -> dict[str, str] | None:
        """What writing.json says: owner, by, since; None: nobody is writing."""
        try:
            claim = json.loads(self._try("read", lambda: self._cat(CLAIM)))
            return {name: str(claim[name]) for name in ("owner", "by", "since")}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.shown}/{CLAIM}: not what a packer writes there; delete it when nobody packs there, or name "
                "another place"
            ) from error

    @contextmanager
    def named(self, folder: Path) -> Iterator[None]:
        """What is wrong with the copy in `folder` is said of the URL."""
        try:
            yield
        except UserError as error:
            raise UserError(str(error).replace(str(folder), self.shown)) from error

    # Making it

    def begin(self, journal: Journal, request: str, overwrite: bool) -> None:
        """Says there who writes, and finds out which shards are there already.

        Args:
            request: digest of what is asked for. A set of this request, to which this journal has sent shards, is its
                own, and was stopped between the manifest and the end of the journal.

        Raises:
            UserError: another machine writes there; or, without `overwrite`, a set is there; or other things.
        """
        self._owner, there, claim = journal.owner, self.listing(), self.claim()
        ours = claim is not None and claim["owner"] == self._owner
        if claim is not None and not ours and not overwrite:
            raise UserError(
                f"{self.shown}: {_said(claim)}; wait for it, or, if it has ended, begin again with --overwrite"
            )
        if claim is None and MANIFEST not in there and there:
            raise UserError(
                f"{self.shown}: holds other files ({min(there)}), not a shard set, so it is not overwritten; "
                "name another place or empty it"
            )
        finishing = bool(journal.all_sent()) and MANIFEST in there and self._is(request)
        if not ours and MANIFEST in there and not overwrite and not finishing:
            raise UserError(
                f"{self.shown}: a shard set is already there; name another place, or replace it with --overwrite"
            )
        if not ours:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            said = {"owner": self._owner, "by": f"{_user()}@{socket.gethostname()}", "since": since}
            self._write(lambda: self._system.pipe_file(self._of(CLAIM), json.dumps(said).encode()))
        for name in journal.all_sent():
            if any(there.get(file) != tuple(about) for file, about in (journal.sent(name) or {}).items()):
                journal.forget_sent(name)

    def send(self, journal: Journal, shard: DoneShard) -> None:
        """Sends a shard whose clips have their numbers, unless it is there."""
        if journal.sent(shard.name) is not None:
            return
        self._check_owner()
        self._remove_manifest()
        tar = journal.set_folder / f"{shard.name}.tar"
        journal.note_sent(shard.name, {path.name: self._put(path) for path in (tar, index_path(tar))})

    def complete(self, journal: Journal, shards: list[str]) -> None:
        """Sends what makes a set of the shards, the manifest last; then deletes what belongs to no set or an older one.

        Args:
            shards: names of the shards that have clips.
        """
        self._check_owner()
        folder, there = journal.set_folder, self.listing()
        sent = {file: tuple(about) for name in shards for file, about in (journal.sent(name) or {}).items()}
        if lost := sorted(file for file, about in sent.items() if there.get(file) != about):
            raise UserError(
                f"{self.shown}: {', '.join(lost[:3])}: changed there since they were sent ({len(lost)} files); "
                "give the same command again"
            )
        if MANIFEST not in there or self._try("read", lambda: self._cat(MANIFEST)) != (folder / MANIFEST).read_bytes():
            self._remove_manifest()
            for name in (CLIPS, REJECTED, MANIFEST):
                self._put(folder / name)
        kept = {*sent, CLIPS, REJECTED, MANIFEST}
        stale = [name for name in there if name not in kept and _SET_FILE.fullmatch(name) and name != CLAIM]
        for name in (*stale, CLAIM):
            self._remove(name)
        self.shard_bytes = sum(size for size, _ in sent.values())

    def release(self) -> None:
        """Takes writing.json away: nothing came of it."""
        self._remove(CLAIM)

    def _is(self, request: str) -> bool:
        try:
            there = json.loads(self._try("read", lambda: self._cat(MANIFEST)))
        except ValueError:
            return False
        return isinstance(there, dict) and there.get("request") == request

    def _remove_manifest(self) -> None:
        if not self._opened and MANIFEST in self.listing():
            self._remove(MANIFEST)
        self._opened = True

    def _check_owner(self) -> None:
        claim = self.claim()
        if claim is None or claim["owner"] != self._owner:
            who = "somebody has removed its writing.json" if claim is None else _said(claim)
            raise UserError(
                f"{self.shown}: not this command's any more, {who}; wait for the other, name another place, "
                "or begin again with --overwrite"
            )

    def _put(self, path: Path) -> tuple[int, str]:
        target, size = self._of(path.name), path.stat().st_size

        def put() -> tuple[int, str]:
            self._system.put_file(str(path), target)
            self._system.invalidate_cache()
            about = _about(self._system.info(target))
            if about[0] != size:
                raise OSError(f"{path.name}: {about[0]} of {size} bytes have arrived")
            return about

        return self._write(put)

    def _remove(self, name: str) -> None:
        def remove() -> None:
            with suppress(FileNotFoundError):
                self._system.rm_file(self._of(name))

        self._write(remove)

    def _write(self, action: Callable[[], Result]) -> Result:
        try:
            return self._try("written", action)
        except FileNotFoundError as error:
            raise UserError(f"{self.shown}: cannot be written (no such bucket or folder); make it first") from error

    def _try(self, what: str, action: Callable[[], Result]) -> Result:
        try:
            return with_retries(action)
        except FileNotFoundError:
            raise
        except NotImplementedError as error:
            raise UserError(f"{self.shown}: files of this kind of URL cannot be {what}; {_HOLDS_SETS}") from error
        except (OSError, ValueError) as error:
            if what == "read" and isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            mend = (
                "look at the credentials and the room there; what is made so far is kept, and the same command goes on"
                if what == "written"
                else "look at the name, the credentials and the network"
            )
            raise UserError(f"{self.shown}: cannot be {what} ({without_secrets(str(error))}); {mend}") from error

    def _cat(self, name: str) -> bytes:
        return bytes(self._system.cat_file(self._of(name)))

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"


def _about(entry: dict[str, Any]) -> tuple[int, str]:
    return int(entry.get("size") or 0), next((str(entry[name]) for name in _TAGS if entry.get(name)), "")


def _shard_bytes(there: dict[str, tuple[int, str]]) -> int:
    return sum(size for name, (size, _) in there.items() if name.endswith((".tar", ".idx")))


def _said(claim: dict[str, str]) -> str:
    return f"{claim['by']} has been packing to it since {claim['since']}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())
