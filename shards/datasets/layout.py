"""Checks shared by the adapters: the published layout, the tables in it, the files they list, and notes of them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unfused_fast.console import counted
from unfused_fast.errors import UserError, escaped, unreadable
from unfused_fast.shards.datasets.dataset import Discovery, WrongLayout
from unfused_fast.shards.sources.listing import is_audio, is_clutter
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

DOWNLOAD = "download it again from its publisher"


def not_published(path: Folder, problem: str) -> UserError:
    """The error for a table that is not as published."""
    return UserError(f"{path}: {problem}; {DOWNLOAD}")


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


def lines_of(path: Folder) -> list[str]:
    """Lines of a text file without their ends, empty ones left out. Raises UserError: not readable."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise unreadable(path, error, DOWNLOAD) from error
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def listed_splits(lists: Mapping[str, Folder]) -> dict[str, str]:
    """Split -> its list, to name -> split; a name is the first word of a line. Raises UserError: in two lists."""
    splits: dict[str, str] = {}
    for split, path in lists.items():
        listed = {line.split()[0] for line in lines_of(path)}
        if both := listed & splits.keys():
            raise not_published(path, f"{min(both)} is in the list of {splits[min(both)]} too")
        splits |= dict.fromkeys(listed, split)
    return splits


def records_of(path: Folder, columns: Sequence[str], headless: bool = False) -> Iterator[dict[str, str]]:
    """Lines of a CSV by the names in its header, in any order of columns; or, headless, as `columns` names them. Lines
    that begin with `#` are left out.

    Raises:
        UserError: not readable, a column is missing, or a line has fewer or more fields than its header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(("\n" if line[0] == "#" else line for line in stream), skipinitialspace=True)
            names = [*columns] if headless else [name.strip() for name in next(reader, [])]
            if not set(columns) <= set(names):
                problem = f"its columns are {', '.join(names) or 'none'}, but {', '.join(columns)} are needed"
                raise not_published(path, problem)
            places = [(name, names.index(name)) for name in columns]
            for fields in filter(None, reader):
                if len(fields) < len(names) or any(fields[len(names) :]):
                    problem = (
                        f"line {reader.line_num} has {len(fields)} fields, not the {len(names)} of {', '.join(names)}"
                    )
                    raise not_published(path, problem)
                yield {name: fields[place].strip() for name, place in places}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error, DOWNLOAD) from error


def walk(folder: Folder) -> Iterator[tuple[Folder, list[str]]]:
    """(folder, names of files in it) of `folder` and all below it, sorted by name.

    Clutter is left out. Each folder comes once, however many links lead to it, so loops come to an end. Ours: what ends
    like audio is not asked whether it is a folder, which on a network disk would take minutes for the two million files
    of AudioSet.
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
            if not is_clutter(name):
                (folders if not is_audio(name) and entry.is_dir() else names).append(name)
        folders.sort()
        names.sort()
        yield here, names
        waiting += [here / name for name in reversed(folders)]


def matching(folder: Folder, pattern: str) -> list[Folder]:
    """The paths below `folder` that match, sorted, without clutter."""
    return sorted((path for path in folder.glob(pattern) if not is_clutter(path.name)), key=lambda path: path.parts)


def files_below(folder: Folder, ending: str) -> set[str]:
    """Names relative to `folder`, with forward slashes, of all files below it that end so, but for hidden ones."""
    return {
        (parent / name).relative_to(folder).as_posix()
        for parent, names in walk(folder)
        for name in names
        if name.lower().endswith(ending)
    }


def differs(what: str, found: int, published: int) -> list[str]:
    """A note of a number that is not the published one; none where it is."""
    return [] if found == published else [f"{what}: {found:,}; published: {published:,}."]


def differing_splits(rows: Iterable[SourceRow], published: Mapping[str, int]) -> list[str]:
    """A note for each split whose number of clips is not the published one."""
    counts = Counter(row.split for row in rows)
    return [note for split, number in published.items() for note in differs(f"Clips of {split}", counts[split], number)]


def left_out(names: Sequence[str], what: str, why: str) -> list[str]:
    """A note of files that are there and left out; none for none."""
    return [f"{counted(len(names), what)} left out: {why}, such as {escaped(names[0])}."] if names else []


def not_there(names: Sequence[str], what: str, table: str) -> list[str]:
    """A note of what a table lists and is not there; none for none."""
    return [f"{counted(len(names), what)} of {table} not here, such as {escaped(names[0])}."] if names else []


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
        raise UserError(f"{root}: none of the files that {table} lists is there{example}; unpack the audio")
    notes = [
        *not_there([row.source for row in rows if row.source not in there], "file", table),
        *left_out(sorted(there - {row.source for row in rows}), "audio file", f"not in {table}"),
        *differing_splits(kept, published),
    ]
    return Discovery(kept, notes)
