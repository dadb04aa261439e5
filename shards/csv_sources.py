"""A CSV that lists audio files -> its rows."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from unfused_fast.errors import UserError, in_unicode
from unfused_fast.shards.places import Location, Place, is_url, local_path, place_title, shown
from unfused_fast.shards.rows import DEFAULT_SPLIT, SourceRow, check_split_name
from unfused_fast.shards.stores import open_place

COLUMNS = ("path", "label", "split", "group")
LONGEST_LINE = 1 << 24
"""Most characters of a line of a CSV. Ours: room for a million columns; what is longer is another kind of file."""


def csv_rows(table: Path | str) -> list[SourceRow]:
    """The lines of a CSV with the columns path[,label,split,group], at a path or a URL.

    Raises:
        UserError: not readable as CSV in UTF-8, no column path, a column twice, an empty or doubled path, a bad split
            name, or no lines.
    """
    rows: list[SourceRow] = []
    seen: dict[str, int] = {}
    base = os.path.realpath(table.parent) if isinstance(table, Path) else ""
    title = place_title(table)
    try:
        with _open_table(table) as stream:
            reader = csv.DictReader(_lines(stream, title), strict=True)
            reader.fieldnames = names = [(name or "").strip() for name in reader.fieldnames or []]
            _check_columns(names, title)
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
        raise UserError(f"{title}: {_encoding(error)}; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(
            f"{title}, line {reader.line_num + 1}: not readable as CSV: {error}; separate the columns by commas "
            "and put quotes around a whole field or around none"
        ) from error
    except OSError as error:
        raise UserError(
            f"{title}: cannot be read: {error.strerror or error}; mend its permissions or name another file"
        ) from error
    if not rows:
        raise UserError(f"{title}: a header but no lines; list at least one file")
    return _named_from_outside(rows)


def _open_table(table: Path | str) -> IO[str]:
    if isinstance(table, Path):
        return table.open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(open_place(Place((table,))), encoding="utf-8-sig", newline="")


def _lines(stream: IO[str], title: str) -> Iterator[str]:
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if "\0" in line:
            raise UserError(
                f"{title}, line {number}: a zero byte, so this is no text or in UTF-16; save it as CSV in UTF-8"
            )
        if len(line) == LONGEST_LINE:
            raise UserError(
                f"{title}, line {number}: longer than {LONGEST_LINE} characters; a CSV has one line for each audio file"
            )
        yield line


def _check_columns(names: Sequence[str], title: str) -> None:
    if "path" not in names:
        found = ", ".join(name[:40] for name in names[:10]) or "none, the file is empty"
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        raise UserError(
            f"{title}: no column path (columns found: {found}{more}); "
            "its first line must be like path,label,split,group, with commas"
        )
    for name in COLUMNS:
        if names.count(name) > 1:
            raise UserError(f"{title}: {names.count(name)} columns are called {name}; rename all but one")


def _encoding(error: UnicodeDecodeError) -> str:
    """What a file that is no UTF-8 seems to be."""
    data, place = error.object, error.start
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "in UTF-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "in UTF-16"
    before = data[max(0, place - 20) : place].decode("utf-8", "replace")
    return f"not UTF-8 (byte {data[place]:02x} after {before!r})"


def _local_path(given: str, base: str) -> tuple[Location, str, str]:
    """Where the file is, its whole path, and its name in the table, empty where it lies outside."""
    full = os.path.normpath(os.path.join(base, given))  # noqa: PTH118  normpath has no pathlib twin
    inside = full.startswith(base + os.sep) or not Path(given).is_absolute()
    return Path(full), full, in_unicode(os.path.relpath(full, base)) if inside else ""


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
    return Place((location,)), location, in_unicode(unquote(name))


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
            name = _free(in_unicode(row.path.relative_to(shared).as_posix()), taken)
            taken.add(name)
        named.append(replace(row, source=name))
    return apart(named)


def apart(rows: list[SourceRow]) -> list[SourceRow]:
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


def _free(name: str, taken: set[str]) -> str:
    """The name, with the first number behind it that makes it one that is not taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free
