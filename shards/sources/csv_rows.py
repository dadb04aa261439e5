"""A CSV that lists audio files -> its rows."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from unfused_fast.console import counted
from unfused_fast.errors import UserError, cause, escaped, in_unicode
from unfused_fast.shards.callbacks import OnMessage, no_message
from unfused_fast.shards.sources.location import (
    ByteLocation,
    Location,
    display_name,
    is_url,
    local_path,
    without_secrets,
)
from unfused_fast.shards.sources.reader import open_location
from unfused_fast.shards.sources.row import DEFAULT_SPLIT, SourceRow, check_split_name
from unfused_fast.shards.sources.split_names import look_like_splits, usual_splits

COLUMNS = ("path", "label", "labels", "split", "group", "fold")
_FIELD = r'(?: *"[^"]*(?:""[^"]*)*"|(?! *")[^",]*)'
_RECORD = re.compile(rf"{_FIELD}(?:,{_FIELD})*[\r\n]*")
"""A record whose quotes are around whole fields. Source: RFC 4180, section 2; spaces before a quote are ours."""
_SEVERAL = re.compile(r"[\[({].*[,'\"]|[^,]*[;|]", re.DOTALL)
"""Several labels as one: a list as Python or JSON writes it, or with another mark than a comma between them."""


def csv_rows(table: Path | str, note: OnMessage = no_message, of_splits: bool = True) -> list[SourceRow]:
    """The lines of a CSV with the columns path[,label or labels,split,group,fold], at a path or a URL.

    Names of columns are read in any case of letters. `labels` holds the labels of a multi-label set, separated by
    commas; `fold` is a whole number. Splits under usual names become train, valid and test, see split_names.

    Args:
        note: called with a sentence for everything that is renamed, assumed or not read.
        of_splits: also where it concerns splits.

    Raises:
        UserError: not readable as CSV in UTF-8, no column path, a column twice, both label and labels, a line of more
            or fewer fields than the header, a quote in the middle of a field, an empty or doubled path, a bad split
            name or fold, or no lines.
    """
    rows: list[SourceRow] = []
    listed: dict[str, int] = {}
    odd: list[str] = []
    title = display_name(table)
    base = os.path.realpath(table.parent) if isinstance(table, Path) else ""
    lines = _records(table, title)
    _, header = next(lines, (0, []))
    column = _columns(header, title)
    for line, fields in lines:
        where = f"{title}, line {line}"
        given = fields[column["path"]]  # spaces may be part of the file's name
        value = {name: fields[place].strip() for name, place in column.items()}
        split, fold = value.get("split", DEFAULT_SPLIT), value.get("fold", "").removesuffix(".0")
        if not value["path"]:
            raise UserError(f"{where}: the column path is empty; name a file or delete the line")
        if split:
            check_split_name(split, where)
        if fold and not (fold.isascii() and fold.isdecimal() and len(fold) < 10):
            raise UserError(
                f"{where}: fold {value['fold'][:40]!r}, but a fold is a whole number such as 1; number the folds"
            )
        if is_url(value["path"]) or isinstance(table, str):
            location, full, name = _web_path(value["path"], table if isinstance(table, str) else "")
        else:
            location, full, name = _local_path(given, base)
        if listed.setdefault(full, line) != line:
            raise UserError(
                f"{where}: {without_secrets(given)} is already listed in line {listed[full]}; keep one of the two"
            )
        labels = tuple(dict.fromkeys(filter(None, map(str.strip, value.get("labels", "").split(",")))))
        label, group = value.get("label") or None, value.get("group") or None
        odd += filter(_SEVERAL.match, (value.get("label") or value.get("labels", ""),))
        rows.append(SourceRow(location, name, label, split, group, int(fold) if fold else None, labels))
    if not rows:
        raise UserError(f"{title}: a header but no lines; list at least one file")
    counts = Counter(row.split for row in rows)
    split_of = usual_splits(filter(None, counts))
    renamed = [f"{name} ({counted(counts[name], 'file')}) as {new}" for name, new in split_of.items() if name != new]
    unread = [escaped(name)[:40] or "(no name)" for at, name in enumerate(header) if at not in column.values()]
    more = f" and {len(unread) - 10} more" if len(unread) > 10 else ""
    for applies, remark in (
        (
            of_splits and counts[""],
            f"{counts['']} of {counted(len(rows), 'file')} have no split and are put in {DEFAULT_SPLIT}",
        ),
        (of_splits and renamed, f"splits are renamed: {', '.join(renamed)}"),
        (unread, f"columns not read: {', '.join(unread[:10])}{more}; the columns read are {', '.join(COLUMNS)}"),
        (
            of_splits and look_like_splits(row.label for row in rows if row.label is not None),
            "every label is the name of a split; if these are splits, name the column split",
        ),
        (
            odd,
            f"{counted(len(odd), 'file')} of {len(rows)} with several labels in one, such as "
            f"{escaped(''.join(odd[:1]))[:40]}; separate them by commas, without brackets, in a column labels",
        ),
    ):
        if applies:
            note(f"{title}: {remark}")
    rows = [replace(row, split=split_of.get(row.split, DEFAULT_SPLIT)) for row in rows]
    # Ours: the table holds no path of the machine that packed, so that the same input gives the same bytes.
    outside = [os.path.normpath(str(row.path)) for row in rows if not row.source]
    shared = os.path.commonpath(map(os.path.dirname, outside)) if outside else ""
    return numbered_names(
        [row if row.source else replace(row, source=in_unicode(os.path.relpath(str(row.path), shared))) for row in rows]
    )


def _records(table: Path | str, title: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of each record that is not empty, the header first. Raises UserError."""
    text: list[str] = []  # the lines of one record
    width, line = 0, 0
    try:
        raw_table = table.open("rb") if isinstance(table, Path) else open_location(ByteLocation((table,)))
        with io.TextIOWrapper(raw_table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(_lines(stream, title, text), strict=True, skipinitialspace=True)
            for fields in reader:
                line, raw = reader.line_num, "".join(text)
                text.clear()
                if not any(map(str.strip, fields)):
                    continue
                if width and len(fields) != width:
                    raise UserError(
                        f"{title}, line {line}: {counted(len(fields), 'field')}, but the header has {width}; put "
                        "quotes around a field that holds a comma, and give each line a field for every column"
                    )
                if width and '"' in raw and not _RECORD.fullmatch(raw):
                    raise UserError(
                        f"{title}, line {line}: a quote in the middle of a field; put quotes around the whole field "
                        'and double the quotes in it, as in "5"" disc"'
                    )
                yield line, fields if width else [name.strip() for name in fields]
                width = width or len(fields)
    except UnicodeDecodeError as error:
        data, at = error.object, error.start
        found = f"not UTF-8 (byte {data[at]:02x} after {data[max(0, at - 20) : at].decode('utf-8', 'replace')!r})"
        if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            found = "in UTF-16 or UTF-32"
        raise UserError(f"{title}: {found}; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(
            f"{title}, line {line + 1}: not readable as CSV: {error}; separate the columns by commas and put quotes "
            "around a whole field or around none"
        ) from error
    except OSError as error:
        raise UserError(
            f"{title}: cannot be read: {cause(error)}; change its permissions or name another file"
        ) from error


def _lines(stream: IO[str], title: str, text: list[str]) -> Iterator[str]:
    """The lines, each appended to `text` too."""
    for number, line in enumerate(stream, 1):
        if "\0" in line:
            raise UserError(f"{title}, line {number}: a zero byte, so this is not a CSV in UTF-8; save it as one")
        text.append(line)
        yield line


def _columns(header: Sequence[str], title: str) -> dict[str, int]:
    """Name of each column that is read -> its place."""
    names = [name.lower() for name in header]
    if "path" not in names:
        found = ", ".join(name[:40] for name in header[:10]) or "none"
        more = f" and {len(header) - 10} more" if len(header) > 10 else ""
        raise UserError(
            f"{title}: no column path (columns found: {found}{more}); "
            "its first line must be like path,label,split,group, with commas"
        )
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise UserError(f"{title}: {names.count(twice[0])} columns are called {twice[0]}; rename all but one")
    if "label" in names and "labels" in names:
        raise UserError(
            f"{title}: columns label and labels, but a set has one label per clip or several; rename one of the two"
        )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _local_path(given: str, base: str) -> tuple[Location, str, str]:
    """Location of the file, its full path, and its name in the table, empty if it is outside the folder `base`.

    Ours: `..` behind a link leads where the system says, not to where the name of the file in the table does.
    """
    if given != given.strip() and not os.path.lexists(os.path.join(base, given)):  # noqa: PTH118
        given = given.strip()
    full = os.path.normpath(os.path.join(base, given))  # noqa: PTH118  normpath has no pathlib twin
    inside = full.startswith(base + os.sep) or not Path(given).is_absolute()
    return Path(base, given), full, in_unicode(os.path.relpath(full, base)) if inside else ""


def _web_path(given: str, table: str) -> tuple[Location, str, str]:
    """As _local_path, of a URL, or of a path next to the CSV at the URL `table`.

    Ours: a file elsewhere is named by its URL without scheme, user, password and query.
    """
    folder = posixpath.dirname(table.partition("?")[0]) + "/"
    if not is_url(given):
        scheme, _, rest = folder.partition("://")
        host, _, path = rest.partition("/")
        relative = quote(given) if scheme in ("http", "https") else given
        given = f"{scheme}://{host}{posixpath.normpath(posixpath.join('/', path, relative))}"
    location = local_path(given)
    if isinstance(location, Path):
        return location, str(location), ""
    name, folder = without_secrets(location), without_secrets(folder)
    name = name.removeprefix(folder) if table and name.startswith(folder) else name.partition("://")[2]
    return ByteLocation((location,)), location, in_unicode(unquote(name))


def numbered_names(rows: list[SourceRow]) -> list[SourceRow]:
    """The rows with a number after names that occur twice."""
    taken = {row.source for row in rows}
    if len(taken) == len(rows):
        return rows
    seen, named = set[str](), []
    for row in rows:
        name = row.source
        if name in seen:
            name = next(free for number in count(2) if (free := f"{row.source} ({number})") not in taken)
        seen.add(row.source)
        taken.add(name)
        named.append(replace(row, source=name))
    return named
