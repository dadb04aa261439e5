"""A folder of audio, an archive, a CSV that lists audio, or a URL of one of these -> rows, each one file to pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from unfused_fast.errors import UserError, escaped, in_unicode
from unfused_fast.shards.sources.archives import LARGEST_INFLATED, is_archive, is_unread_archive
from unfused_fast.shards.sources.csv_rows import apart, csv_rows
from unfused_fast.shards.sources.listing import files_below, is_audio, is_clutter
from unfused_fast.shards.sources.places import Kind, Location, Place, local_path, place_title, refused
from unfused_fast.shards.sources.row import DEFAULT_SPLIT, SourceRow
from unfused_fast.shards.sources.split_names import look_like_splits, split_rank, usual_splits
from unfused_fast.shards.sources.tree import Tree
from unfused_fast.shards.sources.trees import archive_named, tree_of
from unfused_fast.shards.telling import Say, unheard


def source_rows(
    source: Path | str,
    *,
    labels_from_folders: bool = False,
    work: Path | None = None,
    largest: int = LARGEST_INFLATED,
    say: Say = unheard,
    note: Say = unheard,
) -> list[SourceRow]:
    """A folder, an archive, a CSV, or a URL of one of these -> its rows, in a fixed order.

    A folder gives every file below it except hidden ones, clutter and shard sets, in the splits that its folders name
    (see `_by_folders`), or all in split `train`; what is not audio is found when it is packed. Its archives (tar,
    tar.gz, zip, split ones too) give what they hold, as if they had been unpacked in place; what lies there unpacked
    too comes once. An archive alone gives the same. For a CSV see `csv_sources.csv_rows`; a path in it may be a URL.

    Args:
        labels_from_folders: the label is the first folder below `source`, or below the folder of a split; files beside
            these folders have none.
        work, largest, say: see `trees.folder_of`.
        note: told how the source is read where that may surprise, and what of it is not read.

    Raises:
        UserError: nothing at `source`, none of these, nothing listed, a CSV that csv_rows refuses,
            `labels_from_folders` with a CSV, or a package that a URL needs is missing.
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
        return csv_rows(source, note)
    if not is_folder and archive_named(source) is None:
        raise UserError(
            f"{place_title(source)}: neither a folder, an archive nor a CSV; name a folder of audio, "
            "a tar, tar.gz or zip archive, or a .csv with a column path"
        )
    tree = tree_of(source, work=work, largest=largest, say=say, splits_apart=True)
    rows = _tree_rows(tree) if tree is not None else []
    sets: list[Path] = []
    if isinstance(source, Path) and is_folder:
        rows += _folder_rows(source, tree.hidden if tree is not None else set(), sets)
    if not rows:
        what = "in this folder or below it" if is_folder else "in this archive"
        raise UserError(f"{place_title(source)}: no files {what}; name a folder that holds audio files")
    rows, notes = _by_folders(rows, labels_from_folders)
    if sets:
        notes.append(f"{len(sets)} shard sets in it are left out, such as {sets[0]}")
    for sentence in notes:
        note(f"{place_title(source)}: {sentence}")
    return sorted(apart(rows), key=lambda row: row.source)


def _by_folders(rows: list[SourceRow], labels_from_folders: bool) -> tuple[list[SourceRow], list[str]]:
    """Splits, and labels if they are asked for, from the folders that hold the files; and sentences about them.

    The first folders are splits where all that hold audio have usual names of splits, see split_names; folders that
    hold everything else are looked into first, such as the one in an archive. Labels are then the folders below, at
    the next level only: train/animals/dog/1.wav is `animals`. Ours: as image folders are read; a class that is called
    test is a class as long as one beside it is called otherwise.
    """
    audio = [row.source for row in rows if is_audio(row.source) and not _is_refused(row)]
    above, firsts = "", _firsts(audio, "")
    while len(firsts) == 1 and None not in firsts and not look_like_splits(map(str, firsts)):
        above += f"{next(iter(firsts))}/"
        firsts = _firsts(audio, above)
    named = Counter({name: count for name, count in firsts.items() if name is not None})
    if look_like_splits(named):
        split_of = usual_splits(named)
        placed = []
        for row in rows:
            first, *rest = row.source.removeprefix(above).split("/")
            if not rest or not row.source.startswith(above):
                placed.append(row)
                continue
            label = rest[0] if labels_from_folders and len(rest) > 1 else None
            placed.append(replace(row, split=split_of.get(first, DEFAULT_SPLIT), label=label))
        folders = ", ".join(
            f"{escaped(name)} ({count} files){f' as {split_of[name]}' if split_of[name] != name else ''}"
            for name, count in sorted(named.items(), key=lambda entry: split_rank(split_of[entry[0]]))
        )
        notes = [f"splits are read from the folders {folders}" + "; labels from those below" * labels_from_folders]
        if firsts[None]:
            notes.append(f"{firsts[None]} files beside the folders of the splits are taken for {DEFAULT_SPLIT}")
        return placed, notes
    notes = []
    parents = list(dict.fromkeys(part for name in audio for part in name.split("/")[:-1]))
    alike = [name for name in parents if look_like_splits([name])]
    others = [name for name in parents if not look_like_splits([name])]
    if alike and others:
        taken = "are not read as splits" if not labels_from_folders else "are labels or parts of them, not splits"
        notes.append(
            f"folders {', '.join(alike)} {taken}, because there are others beside or above them, such as "
            f"{escaped(others[0])}: all files are in split {DEFAULT_SPLIT}; if they are splits, keep only folders of "
            "splits at the top"
        )
    if not labels_from_folders:
        return rows, notes
    labelled = [
        replace(row, label=row.source.partition("/")[0]) if "/" in row.source.rstrip("/") else row for row in rows
    ]
    return labelled, notes


def _firsts(names: list[str], above: str) -> Counter[str | None]:
    """Files in each first folder below `above`, which all names begin with; None: beside the folders."""
    found: Counter[str | None] = Counter()
    for name in names:
        first, slash, _ = name[len(above) :].partition("/")
        found[first if slash else None] += 1
    return found


def _folder_rows(root: Path, hidden: set[str], sets: list[Path]) -> Iterator[SourceRow]:
    """Args: hidden: paths of the archives whose members are listed instead; sets: see files_below."""
    for path, closed in files_below(root, sets):
        relative = path.relative_to(root).as_posix()
        if closed:  # a folder that may not be read ends in rejected.csv too
            yield SourceRow(path, in_unicode(relative) + "/")
        elif relative not in hidden:
            yield _row(path, relative)


def _tree_rows(tree: Tree) -> list[SourceRow]:
    rows = [SourceRow(refused(why), name) for name, why in tree.refused if not _has_clutter(name)]
    for relative in tree.files():
        if not _has_clutter(relative):
            location = tree.location(relative)
            if is_archive(relative):
                location = refused("an archive inside an archive; unpack the outer one")
            rows.append(_row(location, relative))
    return rows


def _row(location: Location, relative: str) -> SourceRow:
    if is_unread_archive(relative):
        location = refused("an archive of a kind that is not read; unpack it, or pack it as tar.gz or zip")
    return SourceRow(location, in_unicode(relative))


def _is_refused(row: SourceRow) -> bool:
    return isinstance(row.path, Place) and row.path.kind is Kind.REFUSED


def _has_clutter(name: str) -> bool:
    return any(is_clutter(part) for part in name.split("/") if part != "..")
