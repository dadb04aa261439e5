"""A folder of audio, or a CSV that lists it -> rows, each one file to pack."""

from __future__ import annotations

import codecs
import csv
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from unfused_fast.errors import UserError
from unfused_fast.shards.places import Location

DEFAULT_SPLIT = "train"
COLUMNS = ("path", "label", "split", "group")
CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})
"""What operating systems leave in folders, in lower case, besides hidden names. Ours: listing it as rejected audio
would bury the files that a user has to know about."""
LONGEST_LINE = 1 << 24
"""Most characters of a line of a CSV. Ours: room for a million columns; what is longer is another kind of file."""

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


def source_rows(source: Path, *, labels_from_folders: bool = False) -> list[SourceRow]:
    """A folder or a CSV -> its rows, in a fixed order.

    A folder gives every file below it except hidden ones, `CLUTTER` and shard sets, all in split `train`; what is not
    audio is found when it is packed. A CSV has the columns path[,label,split,group]; further columns are ignored.

    Args:
        labels_from_folders: the label is the first folder below `source`; files beside the folders have none.

    Raises:
        UserError: nothing at `source`, neither folder nor CSV, nothing listed, no column `path`, a path twice, a bad
            split name, or `labels_from_folders` with a CSV.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; name a folder of audio or a CSV with a column path")
    if source.is_dir():
        rows = sorted(_folder_rows(source, labels_from_folders), key=lambda row: row.source)
        if not rows:
            raise UserError(f"{source}: no files in this folder or below it; name a folder that holds audio files")
        return rows
    if source.suffix.lower() != ".csv" or not source.is_file():
        raise UserError(f"{source}: neither a folder nor a CSV; name a folder of audio or a .csv with a column path")
    if labels_from_folders:
        raise UserError(
            f"{source}: labels from folders need a folder, but this is a CSV; give it a column label instead"
        )
    return _csv_rows(source)


def _folder_rows(root: Path, labels_from_folders: bool) -> Iterator[SourceRow]:
    """Each folder once, whatever links lead to it: linked folders come after the real ones, so loops come to an end.

    Ours: a link to a folder that holds `root` is not followed, because it would bring in what lies beside `root`.
    """
    waiting, seen = [root], set[tuple[int, int]]()
    closed: list[OSError] = []
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0), onerror=closed.append):
            status = Path(parent).stat()
            if (status.st_dev, status.st_ino) in seen or {"manifest.json", "clips.parquet"} <= set(names):
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not _is_clutter(name))
            links = [linked for name in folders if stat.S_ISLNK(_mode(linked := Path(parent, name)))]
            waiting += [linked for linked in links if not root.resolve().is_relative_to(linked.resolve())]
            for name in names:
                path = Path(parent, name)
                # A broken link is listed, so that it ends in rejected.csv; pipes, sockets and devices are not.
                if not _is_clutter(name) and stat.S_IFMT(_mode(path)) in (stat.S_IFREG, stat.S_IFLNK, 0):
                    relative = path.relative_to(root)
                    label = _printable(relative.parts[0]) if labels_from_folders and len(relative.parts) > 1 else None
                    yield SourceRow(path, _printable(relative.as_posix()), label)
    for error in closed:  # a folder that may not be read ends in rejected.csv too
        path = Path(error.filename)
        yield SourceRow(path, _printable(path.relative_to(root).as_posix()) + "/")


def _mode(path: Path) -> int:
    """What kind of thing it is, a link not followed; 0 where the system does not say, as for too long a path."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _csv_rows(table: Path) -> list[SourceRow]:
    rows: list[SourceRow] = []
    seen: dict[str, int] = {}
    base = os.path.realpath(table.parent)
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(_lines(stream, table), strict=True)
            reader.fieldnames = names = [(name or "").strip() for name in reader.fieldnames or []]
            _check_columns(names, table)
            for record in reader:
                value = {name: (record.get(name) or "").strip() for name in COLUMNS}
                given = record.get("path") or ""  # its spaces may be the file's
                line = reader.line_num
                if not value["path"]:
                    raise UserError(f"{table}, line {line}: the column path is empty; name a file or delete the line")
                split = value["split"] or DEFAULT_SPLIT
                check_split_name(split, f"{table}, line {line}")
                full = os.path.normpath(os.path.join(base, given))  # noqa: PTH118  normpath has no pathlib twin
                if full in seen:
                    raise UserError(
                        f"{table}, line {line}: {given} is already listed in line {seen[full]}; keep one of the two"
                    )
                seen[full] = line
                name = (
                    os.path.relpath(full, base)
                    if full.startswith(base + os.sep) or not Path(given).is_absolute()
                    else ""
                )
                rows.append(
                    SourceRow(Path(full), _printable(name), value["label"] or None, split, value["group"] or None)
                )
    except UnicodeDecodeError as error:
        raise UserError(f"{table}: {_encoding(error)}; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(
            f"{table}, line {reader.line_num + 1}: not readable as CSV: {error}; separate the columns by commas "
            "and put quotes around a whole field or around none"
        ) from error
    except OSError as error:
        raise UserError(
            f"{table}: cannot be read: {error.strerror}; mend its permissions or name another file"
        ) from error
    if not rows:
        raise UserError(f"{table}: a header but no lines; list at least one file")
    return _named_from_outside(rows)


def _lines(stream: TextIO, table: Path) -> Iterator[str]:
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if "\0" in line:
            raise UserError(
                f"{table}, line {number}: a zero byte, so this is no text or in UTF-16; save it as CSV in UTF-8"
            )
        if len(line) == LONGEST_LINE:
            raise UserError(
                f"{table}, line {number}: longer than {LONGEST_LINE} characters; a CSV has one line for each audio file"
            )
        yield line


def _check_columns(names: Sequence[str], table: Path) -> None:
    if "path" not in names:
        found = ", ".join(name[:40] for name in names[:10]) or "none, the file is empty"
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        raise UserError(
            f"{table}: no column path (columns found: {found}{more}); "
            "its first line must be like path,label,split,group, with commas"
        )
    for name in COLUMNS:
        if names.count(name) > 1:
            raise UserError(f"{table}: {names.count(name)} columns are called {name}; rename all but one")


def _encoding(error: UnicodeDecodeError) -> str:
    """What a file that is no UTF-8 seems to be."""
    data, place = error.object, error.start
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "in UTF-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "in UTF-16"
    before = data[max(0, place - 20) : place].decode("utf-8", "replace")
    return f"not UTF-8 (byte {data[place]:02x} after {before!r})"


def _named_from_outside(rows: list[SourceRow]) -> list[SourceRow]:
    """Names rows whose absolute path lies outside the CSV's folder, relative to the folder that they share.

    Ours: the table holds no path of the machine that packed, so that the same input gives the same bytes.
    """
    outside = [row.path for row in rows if not row.source]
    if not outside:
        return rows
    shared = os.path.commonpath([path.parent for path in outside])
    taken, named = {row.source for row in rows if row.source}, []
    for row in rows:
        name = row.source
        if not name:
            plain = name = _printable(row.path.relative_to(shared).as_posix())
            number = 1
            while name in taken:
                number += 1
                name = f"{plain} ({number})"
            taken.add(name)
        named.append(replace(row, source=name))
    return named


def check_split_name(split: str, where: str) -> None:
    """Raises UserError for a split name that cannot be part of a file name everywhere."""
    if not _SPLIT_NAME.fullmatch(split):
        raise UserError(
            f"{where}: split {split!r}, but a split is named by letters, digits and underscores, such as train"
        )


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _printable(name: str) -> str:
    """The name as text that every file format takes: bytes that are no UTF-8 are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
