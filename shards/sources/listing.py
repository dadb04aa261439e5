"""Source -> the name and location of every file in it, as if its archives had been unpacked in place."""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from unfused_fast.errors import UserError, cause, escaped
from unfused_fast.shards.callbacks import OnMessage, no_message
from unfused_fast.shards.sources import remote
from unfused_fast.shards.sources.archives import (
    LARGEST_INFLATED,
    archives_among,
    is_archive,
    is_unread_archive,
    list_archive,
    stem,
    unsafe,
)
from unfused_fast.shards.sources.location import ByteLocation, Location, display_name, local_path, refused
from unfused_fast.shards.sources.reader import open_files
from unfused_fast.shards.sources.remote import RemoteFile
from unfused_fast.shards.sources.split_names import look_like_splits

CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})
"""What operating systems leave in folders, in lower case, apart from hidden names. Ours: listing it as rejected audio
would hide the files that a user has to know about."""

_CODED = (".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2")
_PLAIN = (".wav", ".wave", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".sph")
AUDIO_ENDINGS = _CODED + _PLAIN
"""How names of recordings end, in lower case. Ours: what libsndfile reads, by its usual names."""

_Members = dict[str, ByteLocation]


def is_clutter(name: str) -> bool:
    """Whether this file or folder is left out without a message."""
    return name.startswith(".") or name.lower() in CLUTTER


def is_audio(name: str) -> bool:
    """Whether a file is audio by the ending of its name."""
    return name.lower().endswith(AUDIO_ENDINGS)


@dataclass
class Listing:
    """The files of a source."""

    title: str
    """The source, as messages name it."""
    files: dict[str, Location] = field(default_factory=dict)
    """Path below the source, with forward slashes -> location. A folder that may not be read ends in a slash."""
    not_read: list[tuple[str, str]] = field(default_factory=list)
    """(name, why) of members of archives that are not read."""
    sets: list[Path] = field(default_factory=list)
    """Folders of shard sets, of unfinished ones and of parts of sets, which are left out."""
    is_plain: bool = False
    """A folder of this machine without archives."""

    @cached_property
    def folders(self) -> dict[str, set[str]]:
        """Path of each folder -> names in it."""
        folders: dict[str, set[str]] = {"": set()}
        for path in self.files:
            folder, _, name = path.rstrip("/").rpartition("/")
            while name not in folders.setdefault(folder, set()):
                folders[folder].add(name)
                folder, _, name = folder.rpartition("/")
                if not name:
                    break
        return folders


def list_source(
    source: Path | str, *, work: Path | None = None, largest: int = LARGEST_INFLATED, note: OnMessage = no_message
) -> Listing:
    """The contents of a folder, an archive, or a URL of one.

    Files next to an archive take precedence over its members of the same path. What is in two archives is
    listed once where the CRCs in two zips show that both are the same. Archives that hold different files of one name
    are shown in folders of their names (ours: unpacked in place, the last would replace the others' files); so is, in a
    folder, an archive that is named like a split and holds no folder of a split.

    Args:
        work: folder for seek points in large archives, which must stay until the set is packed; None: a temporary one,
            until the program ends.
        largest: largest deflated member of a zip that is read, in bytes.
        note: called with a sentence when a server only gives whole files.

    Raises:
        UserError: nothing there, neither a folder nor an archive, one that cannot be read, or no server that answers.
    """
    source = local_path(source)
    listing = Listing(display_name(source).rstrip("/"))
    alone = archive_named(source)
    if alone is not None:
        for part in alone:
            listing.files[part] = source.parent / part if isinstance(source, Path) else ByteLocation((source,))
    elif isinstance(source, str):
        for name, url in remote.files_below(source):
            if why := unsafe(name):
                listing.not_read.append((escaped(name), why))
            elif not _has_clutter(name):
                listing.files[name] = ByteLocation((url,))
    elif source.is_dir():
        _list_folder(source, listing)
    else:
        what = "neither a folder, an archive nor a CSV" if source.exists() else "no such file or folder"
        raise UserError(
            f"{source}: {what}; name a folder of audio, a tar, tar.gz or zip archive, or a .csv with a column path"
        )
    archives = archives_among(listing.files)
    listing.is_plain = isinstance(source, Path) and not archives
    found: list[tuple[str, _Members]] = []
    for path, parts in archives:
        places = (listing.files.pop(part) for part in parts)
        files = tuple(part.files[0] if isinstance(part, ByteLocation) else str(part) for part in places)
        try:
            members, not_read = list_archive(files, work, largest)
        except OSError as error:
            why = remote.reason(error)
            if alone is not None:
                raise UserError(f"{listing.title}: not readable as an archive: {why}; download it again") from error
            listing.not_read.append((path, why))
            continue
        if any(isinstance(part, RemoteFile) and part.whole is not None for part in open_files(files).parts):
            note(f"{display_name(files[0])}: its server gives no ranges; each process reads the whole file")
        listing.not_read += [
            (f"{path}/{name}" if name else path, why) for name, why in not_read if not _has_clutter(name)
        ]
        found.append((path, {name: place for name, place in members.items() if not _has_clutter(name)}))
    _merge(listing, found, alone is not None)
    for name in listing.files:
        if is_archive(name):
            listing.files[name] = refused("an archive inside an archive; unpack the outer one")
        elif is_unread_archive(name):
            listing.files[name] = refused("an archive of an unsupported kind; unpack it, or pack it as tar.gz or zip")
    return listing


def _merge(listing: Listing, found: list[tuple[str, _Members]], alone: bool) -> None:
    """Adds the members of archives, in the folder of the archive or in one of its name."""
    first: dict[str, tuple[str, ByteLocation]] = {}
    apart: set[str] = set()
    for archive, members in found:
        for name, location in members.items():
            other, there = first.setdefault(posixpath.join(posixpath.dirname(archive), name), (archive, location))
            if other != archive and not _are_same(location, there):
                apart |= {archive, other}
        tops = {name.partition("/")[0] for name in members if "/" in name}
        named_as_split = look_like_splits([stem(posixpath.basename(archive))])
        if named_as_split and not alone and not any(look_like_splits([top]) for top in tops):
            apart.add(archive)
    outside = set(listing.files)
    for archive, members in found:
        folder, own = posixpath.dirname(archive), stem(archive)
        unpacked = (place for place in (folder, own) if posixpath.join(place, next(iter(members), "")) in outside)
        place = next(unpacked, own if archive in apart else folder)
        for name, location in members.items():
            path = posixpath.join(place, name)
            known = listing.files.setdefault(path, location)
            if known is not location and path not in outside and not _are_same(location, known):
                why = "another archive holds a different file of this name; unpack one of them elsewhere"
                listing.not_read.append((f"{archive}/{name}", why))


def _are_same(one: ByteLocation, other: Location) -> bool:
    """Whether two zips hold the same member, by size and CRC; tars have no CRC."""
    return isinstance(other, ByteLocation) and one.crc != 0 and (one.size, one.crc) == (other.size, other.crc)


def _has_clutter(name: str) -> bool:
    return any(is_clutter(part) for part in name.split("/") if part not in ("", ".", ".."))


def archive_named(path: Path | str) -> tuple[str, ...] | None:
    """Names of all parts of the archive that this file, or URL, is or is a part of; None for another file."""
    if isinstance(path, str):
        name = unquote(posixpath.basename(urlsplit(path).path))
        return (name,) if archives_among([name]) else None
    archives = archives_among(os.listdir(path.parent)) if path.is_file() else []  # noqa: PTH208  names only
    return next((parts for _, parts in archives if path.name in parts), None)


def _list_folder(root: Path, listing: Listing) -> None:
    """Adds the files below a folder: no clutter, no shard sets or parts of them, no pipes.

    Each folder comes once, however many links lead to it: linked folders after the real ones, so loops come to an end.
    Ours: a link to a folder that holds `root` is not followed, because it would add what is next to `root`.
    """
    waiting, seen = [root], set[tuple[int, int]]()
    closed: list[OSError] = []
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0), onerror=closed.append):
            status = Path(parent).stat()
            is_set = {"manifest.json", "clips.parquet"} <= set(names) or _has_journal(parent, names)
            if (status.st_dev, status.st_ino) in seen or is_set:
                folders.clear()
                listing.sets += [Path(parent)] * is_set
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not is_clutter(name))
            links = [linked for name in folders if stat.S_ISLNK(_mode(linked := Path(parent, name)))]
            waiting += [linked for linked in links if not root.resolve().is_relative_to(linked.resolve())]
            for name in names:
                path = Path(parent, name)
                # A broken link is listed, so that it ends in rejected.csv; pipes, sockets and devices are not.
                if not is_clutter(name) and stat.S_IFMT(_mode(path)) in (stat.S_IFREG, stat.S_IFLNK, 0):
                    listing.files[path.relative_to(root).as_posix()] = path
    for error in closed:
        path = Path(error.filename)
        listing.files[f"{path.relative_to(root).as_posix()}/"] = refused(cause(error))


def _has_journal(folder: str, names: list[str]) -> bool:
    """Whether a folder is an unfinished shard set, or a part of one."""
    named = folder.endswith(".partial") or "part.json" in names
    return named and Path(folder, "journal", "request.json").is_file()


def _mode(path: Path) -> int:
    """The mode of a path, a link not followed; 0 where it cannot be read, as for too long a path."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0
