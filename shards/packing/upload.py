"""A shard set behind an fsspec URL, while it is written.

URL/writing.json     while a set is made: the user and machine that make it
URL/*.tar, *.idx     uploaded one by one, as soon as the numbers of their clips are final
URL/manifest.json    uploaded last: a set without it is unfinished, for every reader
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.journal import Journal, Sent
from unfused_fast.shards.packing.options import digest_of
from unfused_fast.shards.packing.rejections import read_reasons
from unfused_fast.shards.sets.remote_folder import CLAIM, NAME_A_WRITABLE_URL, RemoteFolder, about, cache_folder
from unfused_fast.shards.sets.table import CLIPS, MANIFEST, REJECTED, ShardSet, read_clips, read_manifest
from unfused_fast.shards.sources.location import display_name, local_path

Result = TypeVar("Result")
_SHARD = re.compile(r"[A-Za-z0-9_]+-\d+\.(tar|idx)")


def destination(out: str | Path) -> tuple[Path, RemoteSet | None]:
    """The folder where `out` is made, and where its files are sent from there, if that is elsewhere."""
    folder = local_path(out)
    if isinstance(folder, Path):
        return folder, None
    remote = RemoteSet(str(out))
    if remote.is_web:
        raise UserError(f"{remote.shown}: a web server is read-only; {NAME_A_WRITABLE_URL}")
    return cache_folder() / "packing" / f"{remote.name}-{remote.key}", remote


def part_folder(given: str | Path) -> Path:
    """The folder of a part of a set. Raises UserError: a URL."""
    folder = local_path(given)
    if isinstance(folder, str):
        raise UserError(
            f"{display_name(given)}: a part lies in a folder; join the parts to the URL with unfused-fast merge"
        )
    return folder


class RemoteSet(RemoteFolder):
    """The set behind one URL, while it is made.

    Ours: one process of a machine is kept from another by the lock on the folder where the set is made, two machines by
    writing.json. That is no lock: of two that start within the same second both may continue, until all but the last
    find at their next shard that writing.json names another, and stop.
    """

    _opened = False

    def finished(self) -> tuple[ShardSet, dict[str, int], int] | None:
        """Of a complete set: manifest and table, its rejections by reason, bytes of its shards."""
        with TemporaryDirectory() as name, self.named(folder := Path(name)):
            try:
                for file in (MANIFEST, CLIPS, REJECTED):
                    self.fetch(file, folder / file)
            except FileNotFoundError:
                return None
            found = ShardSet(folder, read_manifest(folder), read_clips(folder)), read_reasons(folder)
        return *found, sum(size for name, (size, _) in self.listing().items() if name.endswith((".tar", ".idx")))

    def begin(self, journal: Journal, overwrite: bool) -> None:
        """Records that this process packs there, and forgets the shards that are no longer there as they were sent.

        A set of the same request, to which this journal has sent shards, is its own, and was stopped between the
        manifest and the end of the journal.

        Raises:
            UserError: another machine writes there; or, without `overwrite`, a set is there; or other files.
        """
        there, claim = self.listing(), self.claim()
        ours = claim is not None and claim["owner"] == journal.owner
        if claim is not None and not ours and not overwrite:
            raise UserError(
                f"{self.shown}: {_by(claim)}; wait for it, or, if it has ended, start again with --overwrite"
            )
        if claim is None and MANIFEST not in there and there:
            raise UserError(
                f"{self.shown}: is not empty ({min(there)}) and is not a shard set, so it is not overwritten; "
                "choose a new OUT"
            )
        finishing = bool(journal.sent) and self._request() == digest_of(journal.request)
        if not ours and MANIFEST in there and not overwrite and not finishing:
            raise UserError(
                f"{self.shown}: a shard set is already there; choose another OUT, or replace it with --overwrite"
            )
        if not ours:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            claim = {"owner": journal.owner, "by": f"{_user()}@{socket.gethostname()}", "since": since}
            self._write(lambda: self._system.pipe_file(self._of(CLAIM), json.dumps(claim).encode()))
        journal.sent = {
            name: sent
            for name, sent in journal.sent.items()
            if all(there.get(file) == facts for file, facts in sent.files.items())
        }

    def send(self, journal: Journal, name: str, first_id: int) -> None:
        """Sends a shard whose clips have their numbers, from `first_id` on."""
        self._check_owner(journal)
        if not self._opened:
            self._remove(MANIFEST)
            self._opened = True
        journal.add_sent(name, Sent(first_id, {path.name: self._put(path) for path in journal.files(name)}))

    def complete(self, journal: Journal) -> None:
        """Sends what makes a set of the shards, the manifest last; then deletes the shards of an older one.

        Raises:
            UserError: a shard is no longer there as it was sent.
        """
        self._check_owner(journal)
        there = self.listing()
        sent = {file: facts for shard in journal.sent.values() for file, facts in shard.files.items()}
        if lost := sorted(file for file, facts in sent.items() if there.get(file) != facts):
            raise UserError(
                f"{self.shown}: {', '.join(lost[:3])}: deleted or replaced since being sent ({len(lost)} of "
                f"{len(sent)} files); run the same command again, which sends what is missing"
            )
        self._remove(MANIFEST)
        for name in (CLIPS, REJECTED, MANIFEST):
            self._put(journal.set_folder / name)
        for name in there:
            if name not in sent and _SHARD.fullmatch(name):
                self._remove(name)
        self.release()

    def release(self) -> None:
        """Removes writing.json: nothing is written any more."""
        self._remove(CLAIM)

    def _request(self) -> str | None:
        """Digest of the request of the set there; None where there is no set, or none that can be read."""
        try:
            return str(json.loads(self.read(MANIFEST))["request"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def _check_owner(self, journal: Journal) -> None:
        claim = self.claim()
        if claim is None or claim["owner"] != journal.owner:
            who = "its writing.json was removed" if claim is None else _by(claim)
            raise UserError(
                f"{self.shown}: no longer written by this command, {who}; wait for the other one, choose another "
                "OUT, or start again with --overwrite"
            )

    def _put(self, path: Path) -> tuple[int, str]:
        target, size = self._of(path.name), path.stat().st_size

        def put() -> tuple[int, str]:
            self._system.put_file(str(path), target)
            self._system.invalidate_cache()
            facts = about(self._system.info(target))
            if facts[0] != size:
                raise OSError(f"{path.name}: {facts[0]} of {size} bytes arrived")
            return facts

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


def _by(claim: dict[str, str]) -> str:
    return f"{claim['by']} has been packing to it since {claim['since']}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())
