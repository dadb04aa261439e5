"""A folder as it would look if every archive in it had been unpacked in place, without unpacking any."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

from unfused_fast.errors import UserError, escaped
from unfused_fast.shards.sources import remote
from unfused_fast.shards.sources.archives import LARGEST_INFLATED, Archive, archives_among, safe_parts
from unfused_fast.shards.sources.branch import Branch
from unfused_fast.shards.sources.listing import files_below
from unfused_fast.shards.sources.places import Folder, local_path, shown
from unfused_fast.shards.sources.tree import Tree
from unfused_fast.shards.telling import Say, unheard


def folder_of(
    source: Path | str, *, work: Path | None = None, largest: int = LARGEST_INFLATED, say: Say = unheard
) -> Folder:
    """A folder, an archive, or a URL of one -> what adapters read; a folder without archives is its plain Path.

    Args:
        work: folder for seek points of large tar.gz archives, which must stay until the set is packed; None: a
            temporary one, removed when the program ends.
        largest: largest deflated member of a zip that is read, in bytes.
        say: told what takes long or works otherwise than hoped.

    Raises:
        UserError: neither a folder nor an archive, or one that cannot be read.
    """
    tree = tree_of(source, work=work, largest=largest, say=say)
    return Path(source) if tree is None else cast(Folder, Branch(tree))


def tree_of(
    source: Path | str, *, work: Path | None, largest: int, say: Say, splits_apart: bool = False
) -> Tree | None:
    """As `folder_of`; None for a folder without archives. For `splits_apart` see Tree.settle."""
    source = local_path(source)
    if isinstance(source, str):
        return _remote_tree(source, work, largest, say, splits_apart)
    if source.is_dir():
        return _local_tree(source, work, largest, say, splits_apart)
    archive = archive_named(source)
    if archive is None:
        raise UserError(f"{source}: neither a folder nor an archive; name a folder, or a tar, tar.gz or zip archive")
    return _single(archive, tuple(str(source.parent / part) for part in archive.parts), str(source), work, largest, say)


def archive_named(path: Path | str) -> Archive | None:
    """The archive that this file, or URL, is or is a part of; None for another file."""
    if isinstance(path, str):
        name = posixpath.basename(urlsplit(path).path)
        return next(iter(archives_among([unquote(name)])), None)
    beside = archives_among(os.listdir(path.parent)) if path.is_file() else []  # noqa: PTH208  names only
    return next((archive for archive in beside if path.name in archive.parts), None)


def _local_tree(root: Path, work: Path | None, largest: int, say: Say, splits_apart: bool) -> Tree | None:
    folders: dict[Path, list[str]] = {}
    for path, closed in files_below(root):
        if not closed and _may_be_archive(path.name):
            folders.setdefault(path.parent, []).append(path.name)
    found = [(folder, archive) for folder, names in sorted(folders.items()) for archive in archives_among(names)]
    if not found:
        return None
    tree = Tree(str(root), root, work, largest, say)
    for folder, archive in found:
        below = folder.relative_to(root).as_posix()
        below = "" if below == "." else below
        try:
            tree.add_archive(archive, below, tuple(str(folder / part) for part in archive.parts))
        except OSError as error:
            tree.hidden.update(posixpath.join(below, part) for part in archive.parts)
            tree.refused.append((posixpath.join(below, archive.name), remote.reason(error)))
    tree.settle(splits_apart)
    return tree


def _remote_tree(url: str, work: Path | None, largest: int, say: Say, splits_apart: bool) -> Tree:
    archive = archive_named(url)
    if archive is not None:
        return _single(archive, (url,), shown(url), work, largest, say)
    tree = Tree(shown(url).rstrip("/"), None, work, largest, say)
    folders: dict[str, dict[str, str]] = {}
    for name, full, size in remote.files_below(url):
        parts = safe_parts(name)
        if isinstance(parts, str):
            tree.refused.append((escaped(name), parts))
            continue
        folders.setdefault("/".join(parts[:-1]), {})[parts[-1]] = full
        tree.add_file(parts, full, size)
    for below, files in folders.items():
        for archive in archives_among(files):
            for part in archive.parts:
                del tree.folders[below][part]
            try:
                tree.add_archive(archive, below, tuple(files[part] for part in archive.parts))
            except OSError as error:
                tree.refused.append((posixpath.join(below, archive.name), remote.reason(error)))
    tree.settle(splits_apart)
    return tree


def _single(archive: Archive, store: tuple[str, ...], name: str, work: Path | None, largest: int, say: Say) -> Tree:
    tree = Tree(name, None, work, largest, say)
    try:
        tree.add_archive(archive, "", store)
    except OSError as error:
        raise UserError(
            f"{name}: not readable as an archive: {remote.reason(error)}; fetch it again from where it came"
        ) from error
    tree.settle()
    return tree


def _may_be_archive(name: str) -> bool:
    """Whether a name is one of an archive or of a part of one, in a folder that holds the others."""
    end = name.lower()[-7:]
    return (
        end.endswith((".tar", ".tgz", ".tar.gz", ".zip")) or end[-4:-2] == ".z" or "part" in end or end[-3:].isdigit()
    )
