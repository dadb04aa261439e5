"""What archives, and a server's listing, add to a folder of this machine."""

from __future__ import annotations

import atexit
import hashlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from unfused_fast.errors import escaped
from unfused_fast.shards.sources import remote
from unfused_fast.shards.sources.archives import Archive, Entry, members, safe_parts, stem
from unfused_fast.shards.sources.places import Kind, Location, Place, refused, shown
from unfused_fast.shards.sources.split_names import look_like_splits
from unfused_fast.shards.sources.stores import Unreadable, open_store
from unfused_fast.shards.telling import Say

UNINDEXED_BYTES = 1 << 23
"""A tar.gz that inflates to no more needs no file of seek points. Ours: 20 ms to inflate, once a process."""
LARGE_BYTES = 1 << 30
"""An archive of this size takes so long to list that it is said."""

_Listed = list[tuple[tuple[str, ...], Entry]]


class Tree:
    """What archives, and a server's listing, add to a folder of this machine.

    Files of this machine come first: a member that lies there unpacked too is the file. Of members of one name the
    last of an archive counts, as when it is unpacked. What is in two archives comes once where zips say that both are
    the same; else see `settle`.
    """

    def __init__(self, name: str, real: Path | None, work: Path | None, largest: int, say: Say) -> None:
        """Args: as in `folder_of`; real: the folder of this machine, None: there is none."""
        self.name, self.real = name, real
        self.folders: dict[str, dict[str, tuple[int, Entry] | None]] = {"": {}}
        """Path of a folder -> name -> number of its store and where it lies there; None: a folder."""
        self.hidden: set[str] = set()
        """Paths of the archives that are shown as what they hold."""
        self.refused: list[tuple[str, str]] = []
        """(name, why) of what is in an archive and not read."""
        self._stores: list[tuple[tuple[str, ...], str]] = []
        self._waiting: list[tuple[int, str, Archive, _Listed]] = []
        self._names: dict[str, set[str]] = {}
        self._titles: list[str] = []
        self._work, self._largest, self._say = work, largest, say

    def add_archive(self, archive: Archive, below: str, store: tuple[str, ...]) -> None:
        """Shows an archive in the folder `below`.

        Raises:
            Unreadable: none of its members can be listed.
        """
        opened = open_store(store)
        if opened.size >= LARGE_BYTES:
            self._say(f"{archive.name}: listing what it holds ({opened.size / 1e9:.1f} GB)")
        listed, inflated = members(opened, self._largest)
        number, title = len(self._stores), posixpath.join(below, archive.name)
        self._stores.append((store, ""))
        self._titles.append(title)
        kept: _Listed = []
        added = last = 0
        self._waiting.append((number, below, archive, kept))
        try:
            for name, found in listed:
                parts = safe_parts(name)
                if isinstance(parts, str) or isinstance(found, str):
                    why = parts if isinstance(parts, str) else str(found)
                    self.refused.append((f"{title}/{escaped(name)}", why))
                else:
                    kept.append((parts, found))
                    last = max(last, found.start + found.size)
                added += 1
        except Unreadable as error:
            if not added:
                self._waiting.pop()
                raise
            self.refused.append((title, str(error)))
        if isinstance(opened, remote.RemoteStore) and opened.is_whole:
            self._say(f"{shown(store[0])}: its server gives no parts of files; each process reads it whole into memory")
        self.hidden.update(posixpath.join(below, part) for part in archive.parts)
        if inflated is not None and last > UNINDEXED_BYTES:
            name = hashlib.sha256(repr(store).encode("utf-8", "surrogateescape")).hexdigest()[:16]
            index = self._index_folder() / f"{name}.index"
            inflated.write_index(index)
            self._stores[number] = (store, str(index))

    def settle(self, splits_apart: bool = False) -> None:
        """Shows the archives added: in place, or in folders of their names where they hold different files of one name.

        Ours: in place, as unzip does it, the last archive would take the others' files away.

        Args:
            splits_apart: an archive that is called as a split, and has no folder of a split, is in its folder too.
        """
        first: dict[str, tuple[int, Entry]] = {}
        apart: set[int] = set()
        for number, below, _, listed in self._waiting:
            for parts, entry in listed:
                other, there = first.setdefault(posixpath.join(below, *parts), (number, entry))
                if other != number and not _are_same(entry, there):
                    apart |= {number, other}
        first.clear()
        for number, _, archive, listed in self._waiting:
            if splits_apart and look_like_splits([stem(archive.name)]):
                apart |= set() if any(look_like_splits(parts[:-1][:1]) for parts, _ in listed) else {number}
        for number, below, archive, listed in self._waiting:
            mount = self._mount(below, archive, listed[0][0], number in apart) if listed else below
            for parts, entry in listed:
                self._add(number, mount, parts, entry)
        self._waiting.clear()

    def add_file(self, parts: tuple[str, ...], url: str, size: int) -> None:
        """Shows a file behind a URL."""
        self._stores.append(((url,), ""))
        self._titles.append(shown(url))
        self._add(len(self._stores) - 1, "", parts, Entry(Kind.WHOLE, 0, size, 0, 0))

    def files(self) -> Iterator[str]:
        """Paths of all files that are not files of this machine."""
        for folder, names in self.folders.items():
            yield from (posixpath.join(folder, name) for name, found in names.items() if found is not None)

    def location(self, path: str) -> Location:
        """Where the bytes of a file are."""
        found = self._found(path)
        if found is not None:
            (store, index), entry = self._stores[found[0]], found[1]
            kind = Kind(entry.kind)
            return Place(store, kind, entry.start, entry.size, entry.packed, entry.crc, index)
        return refused("no such file") if self.real is None else self.real / path

    def size(self, path: str) -> int | None:
        """Bytes of a file that is not one of this machine; None where there is none."""
        found = self._found(path)
        return None if found is None else found[1].size

    def _found(self, path: str) -> tuple[int, Entry] | None:
        folder, _, name = path.rpartition("/")
        return self.folders.get(folder, {}).get(name)

    def _mount(self, below: str, archive: Archive, first: tuple[str, ...], apart: bool) -> str:
        """Where members go: where they have been unpacked already, else beside the archive unless `apart`."""
        folder = posixpath.join(below, stem(archive.name))
        for mount in (below, folder):
            if self.real is not None and (self.real / mount).joinpath(*first).is_file():
                return mount
        return folder if apart else below

    def _add(self, number: int, mount: str, parts: tuple[str, ...], entry: Entry) -> None:
        path = posixpath.join(mount, *parts)
        folder, _, name = path.rpartition("/")
        if name in self._real_names(folder):
            return
        names = self._folder(folder)
        there = None if names is None else names.get(name)
        if names is None or path in self.folders:
            self._refuse(number, path, "a file and a folder have this name")
        elif there is None or there[0] == number:
            names[name] = (number, entry)
        elif not _are_same(entry, there[1]):
            self._refuse(number, path, f"{self._titles[there[0]]} holds a file of this name too; unpack one elsewhere")

    def _refuse(self, number: int, path: str, why: str) -> None:
        self.refused.append((f"{self._titles[number]}/{path}", why))

    def _folder(self, path: str) -> dict[str, tuple[int, Entry] | None] | None:
        """The names in a folder, made with the folders above it; None where a file has its name."""
        found = self.folders.get(path)
        if found is None:
            above, _, name = path.rpartition("/")
            names = self._folder(above)
            if names is None or names.get(name) is not None:
                return None
            names[name] = None
            found = self.folders[path] = {}
        return found

    def _real_names(self, folder: str) -> set[str]:
        if self.real is None:
            return set()
        if folder not in self._names:
            real = self.real / folder
            self._names[folder] = set(os.listdir(real)) if real.is_dir() else set()  # noqa: PTH208  names only
        return self._names[folder]

    def _index_folder(self) -> Path:
        if self._work is None:
            self._work = Path(tempfile.mkdtemp(prefix="unfused-fast-"))
            atexit.register(shutil.rmtree, self._work, ignore_errors=True)
        self._work.mkdir(parents=True, exist_ok=True)
        return self._work


def _are_same(entry: Entry, other: Entry) -> bool:
    """Whether two zips say that a member is the same; tars do not say."""
    return entry.crc != 0 and (entry.size, entry.crc) == (other.size, other.crc)
