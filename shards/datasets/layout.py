"""What the adapters share: is the folder what the publisher ships, what do its tables say, which files are there."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import NUMBER, PATH, Discovery
from unfused_fast.shards.sources.listing import CLUTTER, is_audio
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow


def chosen(name: str, options: Mapping[str, tuple[str, ...]], given: Mapping[str, str]) -> dict[str, str]:
    """Every option's value: the given one, or the first, the default. Raises UserError for one that is not there."""
    for key, value in given.items():
        if key not in options:
            there = ", ".join(options) or "none"
            raise UserError(f"--option {key}={value}: {name} has no such option; it has: {there}")
        named = set(options[key]) - {NUMBER, PATH}
        whole = NUMBER in options[key] and value.isascii() and value.isdecimal()
        if value not in named and not whole and not (PATH in options[key] and value):
            raise UserError(f"--option {key}={value}: {name} wants one of {', '.join(options[key])}")
    return {key: given.get(key, values[0]) for key, values in options.items()}


def require(root: Folder, needed: Iterable[str], name: str, layout: str) -> None:
    """Raises UserError, with the layout, unless everything in `needed` lies below `root`."""
    missing = [entry for entry in needed if not (root / entry).exists()]
    if missing:
        raise UserError(
            f"{root}: no {', '.join(missing)} here, but {name} wants {layout}; name the folder that holds it"
        )


def inside(root: Folder, folder: str) -> Folder:
    """`root` itself, or `root/folder` where the data set was unpacked one level deeper."""
    return root / folder if (root / folder).is_dir() else root


def lines_of(path: Folder) -> list[str]:
    """Lines of a text file without their ends, empty ones left out. Raises UserError: not readable as UTF-8."""
    try:
        return [line.rstrip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again from its publisher") from error


def records_of(path: Folder, columns: Sequence[str], headless: bool = False) -> list[dict[str, str]]:
    """Lines of a CSV by the names in its header, wherever the columns stand; or, headless, as `columns` names them.

    Raises:
        UserError: not readable, a column is missing, or a line has fewer or more fields than its header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, columns if headless else None)
            names = [(name or "").strip() for name in reader.fieldnames or []]
            if not set(columns) <= set(names):
                raise UserError(
                    f"{path}: its columns are {', '.join(names) or 'none'}, but {', '.join(columns)} are needed; "
                    "fetch it again from its publisher"
                )
            reader.fieldnames = names
            records = []
            for record in reader:
                if any(record[name] is None for name in columns):
                    raise UserError(
                        f"{path}, line {reader.line_num}: fewer fields than {', '.join(columns)} need; "
                        "fetch it again from its publisher"
                    )
                if any(record.get(None) or ()):  # fields behind the last column
                    raise UserError(
                        f"{path}, line {reader.line_num}: more fields than the header's {len(names)}; "
                        "fetch it again from its publisher"
                    )
                records.append({name: record[name].strip() for name in columns})
            return records
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again from its publisher") from error


def walk(folder: Folder) -> Iterator[tuple[Folder, list[str], list[str]]]:
    """(folder, names of folders in it, names of files in it) of `folder` and all below it, sorted by name.

    Hidden names and `CLUTTER` are left out. Each folder comes once, whatever links lead to it, so loops come to an end.
    Ours: what ends like audio is not asked whether it is a folder, which on a network disk would take minutes for the
    two million files of AudioSet.
    """
    waiting, seen = [folder], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        status = here.stat()
        # Folders that are in an archive have no inode, and no links either.
        identity = (getattr(status, "st_dev", 0), getattr(status, "st_ino", 0))
        if identity[1] and identity in seen:
            continue
        seen.add(identity)
        folders, names = list[str](), list[str]()
        for entry in here.iterdir():
            name = entry.name
            if not name.startswith(".") and name.lower() not in CLUTTER:
                (folders if not is_audio(name) and entry.is_dir() else names).append(name)
        folders.sort()
        names.sort()
        yield here, folders, names
        waiting += [here / name for name in reversed(folders)]


def files_below(folder: Folder, ending: str) -> set[str]:
    """Names relative to `folder`, with forward slashes, of all files below it that end so, but for hidden ones."""
    return {
        (parent / name).relative_to(folder).as_posix()
        for parent, _, names in walk(folder)
        for name in names
        if name.lower().endswith(ending)
    }


def against_published(found: Iterable[str], published: Mapping[str, int]) -> list[str]:
    """A sentence for each split whose number of clips is not the published one.

    Args:
        found: the split of every clip.
    """
    counts = Counter(found)
    return [
        f"{counts[split]:,} clips of split {split} here; published: {number:,}."
        for split, number in published.items()
        if counts[split] != number
    ]


def listed_and_there(rows: Sequence[SourceRow], there: Collection[str], table: str, root: Folder) -> Discovery:
    """The rows whose file is there, and notes of listed files that are not there and of files that are not listed.

    Args:
        there: names of the files found, as in SourceRow.source.
        table: what lists the rows, for the notes.

    Raises:
        UserError: none of the listed files is there.
    """
    kept = [row for row in rows if row.source in there]
    if not kept:
        example = f", such as {rows[0].source}" if rows else ""
        raise UserError(f"{root}: none of the {len(rows)} files that {table} lists is there{example}; unpack the audio")
    notes = []
    if len(kept) < len(rows):
        lost = next(row.source for row in rows if row.source not in there)
        notes.append(
            f"{len(rows) - len(kept)} of the {len(rows)} files that {table} lists are not there, such as {lost}."
        )
    strange = sorted(set(there) - {row.source for row in rows})
    if strange:
        notes.append(f"{len(strange)} audio files are not in {table} and left out, such as {strange[0]}.")
    return Discovery(kept, notes)
