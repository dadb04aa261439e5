"""A folder of audio, an archive, a CSV that lists audio, or a URL of one of these -> rows, each one file to pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from unfused_fast.console import counted
from unfused_fast.errors import UserError, escaped, in_unicode
from unfused_fast.shards.callbacks import OnMessage, no_message
from unfused_fast.shards.sources.archives import LARGEST_INFLATED
from unfused_fast.shards.sources.csv_rows import csv_rows, numbered_names
from unfused_fast.shards.sources.listing import is_audio, list_source
from unfused_fast.shards.sources.location import ByteLocation, Kind, display_name, local_path, refused
from unfused_fast.shards.sources.row import DEFAULT_SPLIT, SourceRow
from unfused_fast.shards.sources.saved_sets import is_saved_set, saved_rows
from unfused_fast.shards.sources.split_names import look_like_splits, split_rank, usual_splits


def source_rows(
    source: Path | str,
    *,
    labels_from_folders: bool = False,
    work: Path | None = None,
    largest: int = LARGEST_INFLATED,
    note: OnMessage = no_message,
    of_splits: bool = True,
    choice: Mapping[str, str] | None = None,
) -> list[SourceRow]:
    """A folder, an archive, a CSV, or a URL of one of these -> its rows, in a fixed order.

    A folder gives every file below it except hidden ones, clutter and shard sets, in the splits that its folders name
    (see `_by_folders`), or all in split `train`; files that are not audio are rejected when they are packed. Its
    archives (tar, tar.gz, zip, split ones too) give what they hold, as if they had been unpacked in place. An archive
    alone gives the same. For a CSV see `csv_rows`; a path in it may be a URL. For data sets of the `datasets` library,
    here or at hf://datasets/NAME, see `saved_rows`.

    Args:
        choice: options of saved_rows.
        labels_from_folders: the label is the first folder below `source`, or below the folder of a split; files next to
            these folders have none.
        work, largest: see `list_source`.
        note: called with a sentence for each choice that may surprise, and for what is not read.
        of_splits: also for those about splits, and about labels from folders.

    Raises:
        UserError: nothing at `source`, none of these, nothing listed, a CSV that csv_rows refuses,
            `labels_from_folders` with a CSV, or a package that a URL needs is missing.
    """
    source = local_path(source)
    title = display_name(source)
    if is_saved_set(source):
        if labels_from_folders:
            raise UserError(
                f"{title}: a data set has labels of its own, not folders; choose a column: --option label=NAME"
            )
        return saved_rows(source, choice or {}, note)
    if choice:
        raise UserError(f"--option {next(iter(choice))}: options belong to a data set; name it with --dataset")
    name = source.name if isinstance(source, Path) else urlsplit(source).path
    if name.lower().endswith(".csv") and (isinstance(source, str) or source.is_file()):
        if labels_from_folders:
            raise UserError(
                f"{title}: labels from folders need a folder, but this is a CSV; give it a column label instead"
            )
        return csv_rows(source, note, of_splits)
    listing = list_source(source, work=work, largest=largest, note=note)
    rows = [SourceRow(location, in_unicode(path)) for path, location in listing.files.items()]
    rows += [SourceRow(refused(why), in_unicode(path)) for path, why in listing.not_read]
    if not rows:
        raise UserError(f"{title}: no files in it; name a folder or an archive that holds audio files")
    rows, notes = _by_folders(rows, labels_from_folders)
    notes = notes if of_splits else []
    if listing.sets:
        notes.append(f"{counted(len(listing.sets), 'shard set')} in it left out, such as {listing.sets[0]}")
    for sentence in notes:
        note(f"{title}: {sentence}")
    return sorted(numbered_names(rows), key=lambda row: row.source)


def _by_folders(rows: list[SourceRow], labels_from_folders: bool) -> tuple[list[SourceRow], list[str]]:
    """Splits, and labels if they are asked for, from the folders that hold the files; and sentences about them.

    The first folders are splits where all that hold audio have usual names of splits, see split_names; a single
    folder that holds all the others, such as the one in an archive, is entered first. Labels are the folders below
    those of the splits, or else the first folders of which there are several, at one level only:
    train/animals/dog/1.wav is `animals`. Ours: as image folders are read; a class named test stays a class as long as a
    folder next to it is no split.
    """
    read = (row for row in rows if not (isinstance(row.path, ByteLocation) and row.path.kind is Kind.REFUSED))
    audio = [row.source for row in read if is_audio(row.source)]
    above, firsts = "", _firsts(audio, "")
    while len(firsts) == 1 and None not in firsts and not look_like_splits(map(str, firsts)):
        above += f"{next(iter(firsts))}/"
        firsts = _firsts(audio, above)
    named = Counter({name: count for name, count in firsts.items() if name is not None})
    if look_like_splits(named):
        split_of, placed = usual_splits(named), []
        for row in rows:
            first, *below = row.source.removeprefix(above).split("/")
            if below and row.source.startswith(above):
                label = below[0] if labels_from_folders and len(below) > 1 else None
                row = replace(row, split=split_of.get(first, DEFAULT_SPLIT), label=label)
            placed.append(row)
        folders = ", ".join(
            f"{escaped(name)} ({counted(count, 'file')}){f' as {split_of[name]}' if split_of[name] != name else ''}"
            for name, count in sorted(named.items(), key=lambda entry: split_rank(split_of[entry[0]]))
        )
        notes = [f"splits are read from the folders {folders}" + "; labels from those below" * labels_from_folders]
        if firsts[None]:
            notes.append(f"{counted(firsts[None], 'file')} next to the folders of the splits put in {DEFAULT_SPLIT}")
        return placed, notes
    notes = []
    parents = list(dict.fromkeys(part for name in audio for part in name.split("/")[:-1]))
    alike = [name for name in parents if look_like_splits([name])]
    other = next((name for name in parents if name not in alike), None)
    if alike and other is not None:
        taken = "are labels or parts of them, not splits" if labels_from_folders else "are not read as splits"
        notes.append(
            f"folders {', '.join(alike)} {taken}, because there are other folders next to or above them, such as "
            f"{escaped(other)}: all files are in split {DEFAULT_SPLIT}; if they are splits, keep only folders of "
            "splits at the top"
        )
    if labels_from_folders:
        within = above if len(named) > 1 else ""
        if within:
            notes.append(f"labels are the folders in {escaped(within)}, which holds all files")
        holding = [row.source.rstrip("/").rpartition("/")[0] + "/" for row in rows]
        labels = [folder.removeprefix(within).partition("/")[0] * folder.startswith(within) for folder in holding]
        rows = [replace(row, label=label or None) for row, label in zip(rows, labels, strict=True)]
    return rows, notes


def _firsts(names: list[str], above: str) -> Counter[str | None]:
    """Files in each first folder below `above`, which all names begin with; None: in no folder."""
    below = (name.removeprefix(above).partition("/") for name in names)
    return Counter(first if slash else None for first, slash, _ in below)
