"""A CSV that lists audio files -> its rows."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from unfused_fast.errors import UserError, escaped, in_unicode
from unfused_fast.shards.sources.places import Location, Place, is_url, local_path, place_title, shown
from unfused_fast.shards.sources.row import DEFAULT_SPLIT, SourceRow, check_split_name
from unfused_fast.shards.sources.split_names import look_like_splits, usual_splits
from unfused_fast.shards.sources.stores import open_place
from unfused_fast.shards.telling import Say, unheard

COLUMNS = ("path", "label", "labels", "split", "group", "fold")
LONGEST_LINE = 1 << 24
"""Most characters of a line of a CSV. Ours: room for a million columns; what is longer is another kind of file."""

_FIELD = r'(?: *"[^"]*(?:""[^"]*)*"|(?! *")[^",]*)'
_RECORD = re.compile(rf"{_FIELD}(?:,{_FIELD})*[\r\n]*")
"""A record whose quotes stand around whole fields. Source: RFC 4180, section 2; spaces before a quote are ours."""


def csv_rows(table: Path | str, note: Say = unheard) -> list[SourceRow]:
    """The lines of a CSV with the columns path[,label or labels,split,group,fold], at a path or a URL.

    Names of columns are read in any case of letters. `labels` holds the labels of a multi-label set, separated by
    commas; `fold` is a whole number. Splits under usual names become train, valid and test, see split_names.

    Args:
        note: told what is read otherwise than it is written, or not read.

    Raises:
        UserError: not readable as CSV in UTF-8, no column path, a column twice, both label and labels, a line of more
            or fewer fields than the header, a quote in the middle of a field, an empty or doubled path, a bad split
            name or fold, or no lines.
    """
    rows: list[SourceRow] = []
    seen: dict[str, int] = {}
    base = os.path.realpath(table.parent) if isinstance(table, Path) else ""
    web = table.partition("?")[0] if isinstance(table, str) else None
    title = place_title(table)
    text: list[str] = []  # the lines of one record
    try:
        with _open_table(table) as stream:
            reader = csv.reader(_lines(stream, title, text), strict=True, skipinitialspace=True)
            header = [name.strip() for name in next((line for line in reader if any(map(str.strip, line))), [])]
            column = _columns(header, title)
            text.clear()
            for fields in reader:
                line = reader.line_num
                raw = "".join(text)
                text.clear()
                if not any(field.strip() for field in fields):
                    continue
                where = f"{title}, line {line}"
                if len(fields) != len(header):
                    count = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
                    raise UserError(
                        f"{where}: {count}, but the header has {len(header)}; put quotes around a field that holds a "
                        "comma, and give each line a field for every column"
                    )
                if '"' in raw and not _RECORD.fullmatch(raw):
                    raise UserError(
                        f"{where}: a quote in the middle of a field; put quotes around the whole field and double the "
                        'quotes in it, as in "5"" disc"'
                    )
                given = fields[column["path"]]  # its spaces may be the file's
                value = {name: fields[place].strip() for name, place in column.items()}
                if not value["path"]:
                    raise UserError(f"{where}: the column path is empty; name a file or delete the line")
                split = value.get("split", DEFAULT_SPLIT)
                if split:
                    check_split_name(split, where)
                if is_url(value["path"]) or web is not None:
                    location, full, name = _web_path(value["path"], web)
                else:
                    location, full, name = _local_path(given, base)
                if full in seen:
                    raise UserError(
                        f"{where}: {shown(given)} is already listed in line {seen[full]}; keep one of the two"
                    )
                seen[full] = line
                rows.append(
                    SourceRow(
                        location,
                        name,
                        value.get("label") or None,
                        split,
                        value.get("group") or None,
                        _fold(value.get("fold", ""), where),
                        tuple(dict.fromkeys(filter(None, map(str.strip, value.get("labels", "").split(","))))),
                    )
                )
    except UnicodeDecodeError as error:
        raise UserError(f"{title}: {_encoding(error)}; save it as CSV in UTF-8") from error
    except csv.Error as error:
        begun = reader.line_num - len(text) + 1
        raise UserError(
            f"{title}, line {begun}: not readable as CSV: {error}; separate the columns by commas and put quotes "
            "around a whole field or around none"
        ) from error
    except OSError as error:
        raise UserError(
            f"{title}: cannot be read: {error.strerror or error}; mend its permissions or name another file"
        ) from error
    if not rows:
        raise UserError(f"{title}: a header but no lines; list at least one file")
    rows, notes = _in_usual_splits(rows)
    notes += _remarks(header, column, rows)
    for sentence in notes:
        note(f"{title}: {sentence}")
    return _named_from_outside(rows)


def _in_usual_splits(rows: Sequence[SourceRow]) -> tuple[list[SourceRow], list[str]]:
    """The rows in the splits that theirs are taken for, "" for train; and sentences where one has another name now."""
    counts = Counter(row.split for row in rows)
    split_of = {**usual_splits(name for name in counts if name), "": DEFAULT_SPLIT}
    said = []
    taken = [f"{name} ({counts[name]} files) as {split}" for name, split in split_of.items() if name not in ("", split)]
    if taken:
        said.append(f"splits are read so: {', '.join(taken)}")
    if counts[""]:
        said.append(f"{counts['']} of {len(rows)} files have no split and are taken for {DEFAULT_SPLIT}")
    return [replace(row, split=split_of[row.split]) for row in rows] if said else list(rows), said


def _remarks(header: Sequence[str], column: Mapping[str, int], rows: Sequence[SourceRow]) -> Iterator[str]:
    """Sentences about columns that are not read, and labels that may be meant otherwise."""
    unread = [name for place, name in enumerate(header) if place not in column.values()]
    if unread:
        more = f" and {len(unread) - 10} more" if len(unread) > 10 else ""
        yield (
            f"columns not read: {', '.join(escaped(name)[:40] or '(no name)' for name in unread[:10])}{more}; "
            f"read are {', '.join(COLUMNS)}"
        )
    if look_like_splits(row.label for row in rows if row.label is not None):
        yield "every label is the name of a split; if splits are meant, call the column split"
    joined = sum(len(row.labels) == 1 and any(mark in row.labels[0] for mark in ";|") for row in rows)
    if joined:
        yield f"{joined} of {len(rows)} files have one label with a ; or | in it; labels are separated by commas"
    lists = [row.labels for row in rows if row.labels and row.labels[0][0] in "[{("]
    if lists:
        yield (
            f"{len(lists)} of {len(rows)} files have brackets around their labels, which become part of them "
            f"({escaped(lists[0][0])[:40]}); labels are separated by commas, without brackets"
        )


def _columns(header: Sequence[str], title: str) -> dict[str, int]:
    """Name of each column that is read -> its place."""
    names = [name.lower() for name in header]
    if "path" not in names:
        found = ", ".join(name[:40] for name in header[:10]) or "none, the file is empty"
        more = f" and {len(header) - 10} more" if len(header) > 10 else ""
        raise UserError(
            f"{title}: no column path (columns found: {found}{more}); "
            "its first line must be like path,label,split,group, with commas"
        )
    for name in COLUMNS:
        if names.count(name) > 1:
            raise UserError(f"{title}: {names.count(name)} columns are called {name}; rename all but one")
    if "label" in names and "labels" in names:
        raise UserError(
            f"{title}: columns label and labels, but a set has one label a clip or several; rename one of the two"
        )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _fold(text: str, where: str) -> int | None:
    """A fold; tables with gaps write whole numbers as 1.0."""
    if not text:
        return None
    whole = text.removesuffix(".0")
    if not (whole.isascii() and whole.isdecimal() and len(whole) < 10):
        raise UserError(f"{where}: fold {text[:40]!r}, but a fold is a whole number such as 1; number the folds")
    return int(whole)


def _open_table(table: Path | str) -> IO[str]:
    if isinstance(table, Path):
        return table.open(encoding="utf-8-sig", newline="")
    return io.TextIOWrapper(open_place(Place((table,))), encoding="utf-8-sig", newline="")


def _lines(stream: IO[str], title: str, text: list[str]) -> Iterator[str]:
    """The lines, each put behind `text` too."""
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
        text.append(line)
        yield line


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
