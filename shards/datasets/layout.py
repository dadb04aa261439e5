"""Checks shared by the adapters: the published layout, the tables in it, and the files they list."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Discovery, WrongLayout
from unfused_fast.shards.sources.listing import CLUTTER, is_audio
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

REFETCH = "download it again from its publisher"


def not_published(path: Folder, problem: str) -> UserError:
    """The error for a table that is not as published."""
    return UserError(f"{path}: {problem}; {REFETCH}")


def require(root: Folder, needed: Iterable[str]) -> None:
    """Raises WrongLayout unless everything in `needed` is below `root`."""
    if missing := [entry for entry in needed if not (root / entry).exists()]:
        raise WrongLayout(f"{root}: no {', '.join(missing)} here")


def first_of(root: Folder, places: Sequence[str], holds: str = "") -> Folder:
    """The first of these places below `root` in which `holds` is. Raises WrongLayout: none."""
    for place in places:
        if (root / place / holds).exists():
            return root / place
    raise WrongLayout(f"{root}: no {'/'.join(filter(None, (places[0], holds)))} here")


def lines_of(path: Folder, errors: str = "strict") -> list[str]:
    """Lines of a text file without their ends, empty ones left out. Raises UserError: not readable as UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        raise not_published(path, f"cannot be read ({error})") from error
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def records_of(path: Folder, columns: Sequence[str], headless: bool = False) -> list[dict[str, str]]:
    """Lines of a CSV by the names in its header, in any order of columns; or, headless, as `columns` names them.

    Raises:
        UserError: not readable, a column is missing, or a line has fewer or more fields than its header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, columns if headless else None)
            names = [(name or "").strip() for name in reader.fieldnames or []]
            if not set(columns) <= set(names):
                problem = f"its columns are {', '.join(names) or 'none'}, but {', '.join(columns)} are needed"
                raise not_published(path, problem)
            reader.fieldnames = names
            records = []
            for record in reader:
                fewer, more = any(record[name] is None for name in columns), any(record.get(None) or ())
                if fewer or more:
                    problem = (
                        f"line {reader.line_num} has {'fewer' if fewer else 'more'} fields than {', '.join(names)}"
                    )
                    raise not_published(path, problem)
                records.append({name: record[name].strip() for name in columns})
            return records
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise not_published(path, f"cannot be read ({error})") from error


def walk(folder: Folder) -> Iterator[tuple[Folder, list[str]]]:
    """(folder, names of files in it) of `folder` and all below it, sorted by name.

    Hidden names and `CLUTTER` are left out. Each folder comes once, however many links lead to it, so loops come to an
    end. Ours: what ends like audio is not asked whether it is a folder, which on a network disk would take minutes for
    the two million files of AudioSet.
    """
    waiting, seen = [folder], set[Folder]()
    while waiting:
        here = waiting.pop()
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        folders, names = list[str](), list[str]()
        for entry in here.iterdir():
            name = entry.name
            if not name.startswith(".") and name.lower() not in CLUTTER:
                (folders if not is_audio(name) and entry.is_dir() else names).append(name)
        folders.sort()
        names.sort()
        yield here, names
        waiting += [here / name for name in reversed(folders)]


def files_below(folder: Folder, ending: str) -> set[str]:
    """Names relative to `folder`, with forward slashes, of all files below it that end so, but for hidden ones."""
    return {
        (parent / name).relative_to(folder).as_posix()
        for parent, names in walk(folder)
        for name in names
        if name.lower().endswith(ending)
    }


def against_published(rows: Iterable[SourceRow], published: Mapping[str, int]) -> list[str]:
    """A sentence for each split whose number of clips is not the published one."""
    counts = Counter(row.split for row in rows)
    return [
        f"{counts[split]:,} clips of split {split} here; published: {number:,}."
        for split, number in published.items()
        if counts[split] != number
    ]


def listed_and_there(
    root: Folder, rows: Sequence[SourceRow], table: str, folders: Iterable[str], published: Mapping[str, int]
) -> Discovery:
    """The rows whose file is there; notes of listed files that are not there, of files that are not listed, and of
    counts that are not the published ones.

    Args:
        table: what lists the rows, for the notes.
        folders: folders below `root` in which every .wav should be listed.
        published: clips of each split.

    Raises:
        UserError: none of the listed files is there.
    """
    there = {
        f"{folder}/{name}" if folder else name for folder in folders for name in files_below(root / folder, ".wav")
    }
    kept = [row for row in rows if row.source in there]
    if not kept:
        example = f", such as {rows[0].source}" if rows else ""
        raise UserError(f"{root}: none of the {len(rows)} files that {table} lists is there{example}; unpack the audio")
    notes = []
    if absent := [row.source for row in rows if row.source not in there]:
        notes.append(f"{len(absent)} of the {len(rows)} files that {table} lists are not there, such as {absent[0]}.")
    if strange := sorted(there - {row.source for row in rows}):
        notes.append(f"{len(strange)} audio files are not in {table} and left out, such as {strange[0]}.")
    return Discovery(kept, [*notes, *against_published(kept, published)])


def on_several_sides(rows: Iterable[SourceRow], side: Callable[[SourceRow], object]) -> list[str]:
    """Groups whose rows differ in `side`, such as their split; sorted."""
    sides: dict[str, set[object]] = {}
    for row in rows:
        sides.setdefault(row.group or row.source, set()).add(side(row))
    return sorted(group for group, found in sides.items() if len(found) > 1)
