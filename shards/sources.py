"""A folder of audio, an archive, a CSV that lists files, or a URL of one of these -> rows, each one file to pack."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from unfused_fast.errors import UserError
from unfused_fast.shards.archives import LARGEST_INFLATED, is_archive, is_unread_archive
from unfused_fast.shards.branch import Branch
from unfused_fast.shards.places import Location, Place, is_url, refused, shown
from unfused_fast.shards.stores import open_place
from unfused_fast.shards.tree import Say, Tree
from unfused_fast.shards.trees import archive_named, local_path, tree_of
from unfused_fast.shards.walking import files_below, is_clutter, printable

DEFAULT_SPLIT = "train"
COLUMNS = ("path", "label", "split", "group")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One file to pack."""

    path: Location
    """Where its bytes are; never written into a shard set."""
    source: str
    """Its name in the clips table: relative, with forward slashes, the same on every machine. No two rows share it."""
    label: str | None = None
    """None: unlabelled, or of a multi-label set, see `labels`."""
    split: str = DEFAULT_SPLIT
    group: str | None = None
    """What must not be on both sides of a split (speaker, recording); None: the file itself."""
    fold: int | None = None
    """Number of the published cross-validation fold, from 1; None where the set has none."""
    labels: tuple[str, ...] = ()
    """All labels of a clip of a multi-label set, whose `label` is None."""
    span: tuple[float, float] | None = None
    """Start and end of the part that is packed, in seconds; None: the whole file."""

    def __post_init__(self) -> None:
        """Adapters name a file of a tree as they name a Path; a worker process needs only where its bytes are."""
        if isinstance(self.path, Branch):
            object.__setattr__(self, "path", self.path.location())


def source_rows(
    source: Path | str,
    *,
    labels_from_folders: bool = False,
    work: Path | None = None,
    largest: int = LARGEST_INFLATED,
    say: Say = lambda text: None,
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
                f"{_title(source)}: labels from folders need a folder, but this is a CSV; "
                "give it a column label instead"
            )
        return _csv_rows(source)
    if not is_folder and archive_named(source) is None:
        raise UserError(
            f"{_title(source)}: neither a folder, an archive nor a CSV; name a folder of audio, "
            "a tar, tar.gz or zip archive, or a .csv with a column path"
        )
    tree = tree_of(source, work=work, largest=largest, say=say)
    rows = _tree_rows(tree, labels_from_folders) if tree is not None else []
    if isinstance(source, Path) and is_folder:
        rows += _folder_rows(source, labels_from_folders, tree.hidden if tree is not None else set())
    if not rows:
        what = "in this folder or below it" if is_folder else "in this archive"
        raise UserError(f"{_title(source)}: no files {what}; name a folder that holds audio files")
    return sorted(_apart(rows), key=lambda row: row.source)


def _folder_rows(root: Path, labels_from_folders: bool, hidden: set[str]) -> Iterator[SourceRow]:
    """Args: hidden: paths of the archives whose members are listed instead."""
    for path, closed in files_below(root):
        relative = path.relative_to(root).as_posix()
        if closed:  # a folder that may not be read ends in rejected.csv too
            yield SourceRow(path, printable(relative) + "/")
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
    return SourceRow(location, printable(relative), printable(first) if labels_from_folders and rest else None)


def _apart(rows: list[SourceRow]) -> list[SourceRow]:
    """The rows with a number behind names that come twice."""
    taken = {row.source for row in rows}
    if len(taken) == len(rows):
        return rows
    seen: set[str] = set()
    named = []
    for row in rows:
        name = _free(row.source, taken) if row.source in seen else row.source
        seen.add(row.source)
        taken.add(name)
        named.append(replace(row, source=name))
    return named


def _csv_rows(table: Path | str) -> list[SourceRow]:
    rows: list[SourceRow] = []
    seen: dict[str, int] = {}
    base = os.path.realpath(table.parent) if isinstance(table, Path) else ""
    title = _title(table)
    try:
        with _open_table(table) as stream:
            reader = csv.DictReader(stream)
            names = [(name or "").strip() for name in reader.fieldnames or []]
            if "path" not in names:
                found = ", ".join(names) or "none, the file is empty"
                raise UserError(
                    f"{title}: no column path (columns found: {found}); "
                    "its first line must be like path,label,split,group"
                )
            reader.fieldnames = names
            for record in reader:
                value = {name: (record.get(name) or "").strip() for name in COLUMNS}
                given = record.get("path") or ""  # its spaces may be the file's
                line = reader.line_num
                if not value["path"]:
                    raise UserError(f"{title}, line {line}: the column path is empty; name a file or delete the line")
                split = value["split"] or DEFAULT_SPLIT
                check_split_name(split, f"{title}, line {line}")
                if is_url(value["path"]) or isinstance(table, str):
                    location, full, name = _web_path(
                        value["path"], table.partition("?")[0] if isinstance(table, str) else None
                    )
                else:
                    location, full, name = _local_path(given, base)
                if full in seen:
                    raise UserError(
                        f"{title}, line {line}: {shown(given)} is already listed in line {seen[full]}; "
                        "keep one of the two"
                    )
                seen[full] = line
                rows.append(SourceRow(location, name, value["label"] or None, split, value["group"] or None))
    except UnicodeDecodeError as error:
        raise UserError(f"{title}: not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{title}: not readable as CSV: {error}; separate its columns by commas") from error
    except OSError as error:
        raise UserError(
            f"{title}: cannot be read: {error.strerror or error}; mend its permissions or name another file"
        ) from error
    if not rows:
        raise UserError(f"{title}: a header but no lines; list at least one file")
    return _named_from_outside(rows)


def _open_table(table: Path | str) -> IO[Any]:
    if isinstance(table, Path):
        return table.open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(open_place(Place((table,))), encoding="utf-8-sig", newline="")


def _local_path(given: str, base: str) -> tuple[Location, str, str]:
    """Where the file is, its whole path, and its name in the table, empty where it lies outside."""
    full = os.path.normpath(os.path.join(base, given))  # noqa: PTH118  normpath has no pathlib twin
    inside = full.startswith(base + os.sep) or not Path(given).is_absolute()
    return Path(full), full, printable(os.path.relpath(full, base)) if inside else ""


def _web_path(given: str, table: str | None) -> tuple[Location, str, str]:
    """As _local_path, of a URL, or of a path beside the CSV `table`.

    Ours: what lies elsewhere is named by its URL without scheme, user, password and query.
    """
    if not is_url(given):
        scheme, _, rest = (table or "").partition("://")
        host, _, path = rest.partition("/")
        beside = quote(given) if scheme in ("http", "https") else given
        given = f"{scheme}://{host}{posixpath.normpath(posixpath.join('/', posixpath.dirname(path), beside))}"
    location = local_path(given)
    if isinstance(location, Path):
        return location, str(location), ""
    name, folder = shown(location), shown(posixpath.dirname(table or "") + "/")
    name = name.removeprefix(folder) if table and name.startswith(folder) else name.partition("://")[2]
    return Place((location,)), location, printable(unquote(name))


def _named_from_outside(rows: list[SourceRow]) -> list[SourceRow]:
    """Names rows whose absolute path lies outside the CSV's folder, relative to the folder that they share.

    Ours: the table holds no path of the machine that packed, so that the same input gives the same bytes.
    """
    outside = [row.path for row in rows if not row.source and isinstance(row.path, Path)]
    shared = os.path.commonpath([path.parent for path in outside]) if outside else ""
    taken, named = {row.source for row in rows if row.source}, []
    for row in rows:
        name = row.source
        if not name and isinstance(row.path, Path):
            name = _free(printable(row.path.relative_to(shared).as_posix()), taken)
            taken.add(name)
        named.append(replace(row, source=name))
    return _apart(named)


def _free(name: str, taken: set[str]) -> str:
    """The name, with the first number behind it that makes it one that is not taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


def check_split_name(split: str, where: str) -> None:
    """Raises UserError for a split name that cannot be part of a file name everywhere."""
    if not _SPLIT_NAME.fullmatch(split):
        raise UserError(
            f"{where}: split {split!r}, but a split is named by letters, digits and underscores, such as train"
        )


def _has_clutter(name: str) -> bool:
    return any(is_clutter(part) for part in name.split("/") if part != "..")


def _title(source: Path | str) -> str:
    """The source as messages name it."""
    return shown(source) if isinstance(source, str) else str(source)
