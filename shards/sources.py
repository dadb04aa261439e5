"""A folder of audio, an archive, a CSV that lists audio, or a URL of one of these -> rows, each one file to pack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from unfused_fast.errors import UserError, in_unicode
from unfused_fast.shards.archives import LARGEST_INFLATED, is_archive, is_unread_archive
from unfused_fast.shards.csv_sources import apart, csv_rows
from unfused_fast.shards.places import Location, local_path, place_title, refused
from unfused_fast.shards.rows import SourceRow
from unfused_fast.shards.telling import Say, unheard
from unfused_fast.shards.tree import Tree
from unfused_fast.shards.trees import archive_named, tree_of
from unfused_fast.shards.walking import files_below, is_clutter


def source_rows(
    source: Path | str,
    *,
    labels_from_folders: bool = False,
    work: Path | None = None,
    largest: int = LARGEST_INFLATED,
    say: Say = unheard,
) -> list[SourceRow]:
    """A folder, an archive, a CSV, or a URL of one of these -> its rows, in a fixed order.

    A folder gives every file below it except hidden ones, clutter and shard sets, all in split `train`; what is not
    audio is found when it is packed. Its archives (tar, tar.gz, zip, split ones too) give what they hold, as if they
    had been unpacked in place; what lies there unpacked too comes once. An archive alone gives the same. A CSV has the
    columns path[,label,split,group]; further columns are ignored, and a path may be a URL.

    Args:
        labels_from_folders: the label is the first folder below `source`; files beside the folders have none.
        work, largest, say: see `trees.folder_of`.

    Raises:
        UserError: nothing at `source`, none of these, nothing listed, no column `path`, a path twice, a bad split
            name, `labels_from_folders` with a CSV, or a package that a URL needs is missing.
    """
    source = local_path(source)
    if isinstance(source, Path) and not source.exists():
        raise UserError(
            f"{source}: no such file or folder; name a folder of audio, an archive or a CSV with a column path"
        )
    name = urlsplit(source).path if isinstance(source, str) else source.name
    is_folder = source.is_dir() if isinstance(source, Path) else archive_named(source) is None
    if name.lower().endswith(".csv") and (isinstance(source, str) or source.is_file()):
        if labels_from_folders:
            raise UserError(
                f"{place_title(source)}: labels from folders need a folder, but this is a CSV; "
                "give it a column label instead"
            )
        return csv_rows(source)
    if not is_folder and archive_named(source) is None:
        raise UserError(
            f"{place_title(source)}: neither a folder, an archive nor a CSV; name a folder of audio, "
            "a tar, tar.gz or zip archive, or a .csv with a column path"
        )
    tree = tree_of(source, work=work, largest=largest, say=say)
    rows = _tree_rows(tree, labels_from_folders) if tree is not None else []
    if isinstance(source, Path) and is_folder:
        rows += _folder_rows(source, labels_from_folders, tree.hidden if tree is not None else set())
    if not rows:
        what = "in this folder or below it" if is_folder else "in this archive"
        raise UserError(f"{place_title(source)}: no files {what}; name a folder that holds audio files")
    return sorted(apart(rows), key=lambda row: row.source)


def _folder_rows(root: Path, labels_from_folders: bool, hidden: set[str]) -> Iterator[SourceRow]:
    """Args: hidden: paths of the archives whose members are listed instead."""
    for path, closed in files_below(root):
        relative = path.relative_to(root).as_posix()
        if closed:  # a folder that may not be read ends in rejected.csv too
            yield SourceRow(path, in_unicode(relative) + "/")
        elif relative not in hidden:
            yield _row(path, relative, labels_from_folders)


def _tree_rows(tree: Tree, labels_from_folders: bool) -> list[SourceRow]:
    rows = [SourceRow(refused(why), name) for name, why in tree.refused if not _has_clutter(name)]
    for relative in tree.files():
        if not _has_clutter(relative):
            location = tree.location(relative)
            if is_archive(relative):
                location = refused("an archive inside an archive; unpack the outer one")
            rows.append(_row(location, relative, labels_from_folders))
    return rows


def _row(location: Location, relative: str, labels_from_folders: bool) -> SourceRow:
    first, _, rest = relative.partition("/")
    if is_unread_archive(relative):
        location = refused("an archive of a kind that is not read; unpack it, or pack it as tar.gz or zip")
    return SourceRow(location, in_unicode(relative), in_unicode(first) if labels_from_folders and rest else None)


def _has_clutter(name: str) -> bool:
    return any(is_clutter(part) for part in name.split("/") if part != "..")
