"""What `embed` embeds: files, folders, CSVs, archives, URLs and shard sets -> rows, each one recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from unfused_fast.embedding.parts import partial_path, rejected_path
from unfused_fast.errors import UserError, in_unicode
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.callbacks import OnMessage
from unfused_fast.shards.packing.journal import Journal
from unfused_fast.shards.sets.download import local_set
from unfused_fast.shards.sets.remote_folder import RemoteFolder
from unfused_fast.shards.sets.shard_files import index_path, read_index
from unfused_fast.shards.sets.table import MANIFEST, PART, ShardSet, open_shards
from unfused_fast.shards.sources.listing import archive_named, is_audio
from unfused_fast.shards.sources.location import ByteLocation, Kind, local_path, without_secrets
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.saved_sets import is_saved_set
from unfused_fast.shards.sources.source_rows import source_rows


def embed_rows(audio: Sequence[str], say: OnMessage, out: Path | None = None) -> list[SourceRow]:
    """Every recording that the arguments name, in their order; `source` is its path, below the argument as given: in a
    CSV below its folder, or the full path.

    A shard set gives its clips in order of clip_id, named by their sources.

    Args:
        say: called with a sentence for each choice that may surprise, and for what is not read.
        out: what `embed` writes to, which is no recording, nor are OUT.partial and OUT.rejected.csv.

    Raises:
        UserError: an argument that is nothing of the kind, holds no files, or is a part of a set or an unfinished one.
    """
    rows = [row for given in audio for row in _rows(given, say)]
    if out is not None:
        own = {place.resolve() for place in (out, partial_path(out), rejected_path(out))}
        names = {place.name for place in own}  # few paths are resolved
        rows = [
            row
            for row in rows
            if not (
                isinstance(row.path, Path)
                and not names.isdisjoint(row.path.parts)
                and any(row.path.resolve().is_relative_to(place) for place in own)
            )
        ]
    if not rows:
        raise UserError("nothing to embed; name a file, a folder, a CSV, an archive, a URL or a shard set")
    return rows


def _rows(given: str, say: OnMessage) -> list[SourceRow]:
    where = local_path(given)
    title = without_secrets(given).rstrip("/")
    if isinstance(where, Path):
        if any((where / name).is_file() for name in (MANIFEST, PART)) or Journal(where).begun:
            return shard_set_rows(open_shards(where))
        is_list = where.suffix.lower() == ".csv"
        if where.is_file() and not is_list and archive_named(where) is None:
            return [SourceRow(where, in_unicode(title))]
    else:
        name = PurePosixPath(unquote(urlsplit(where).path))
        is_list = name.suffix.lower() == ".csv"
        if is_audio(name.name):  # any other URL may be a folder
            return [SourceRow(ByteLocation((where,)), in_unicode(title))]
        if not (is_list or is_saved_set(where) or archive_named(where)) and _is_remote_set(where):
            say(f"{title}: a shard set, which is read from a copy on this machine")
            return shard_set_rows(open_shards(local_set(given, on_message=say)))
    rows = source_rows(given, note=say, of_splits=False)
    if not is_list:
        return [replace(row, source=f"{in_unicode(title)}/{row.source}") for row in rows]
    folder = where.parent.resolve() if isinstance(where, Path) else Path()
    return [
        replace(row, source=in_unicode(str(row.path)))
        if isinstance(row.path, Path) and not row.path.is_relative_to(folder) and not row.source.startswith("..")
        else row
        for row in rows
    ]


def _is_remote_set(url: str) -> bool:
    """Whether a shard set, which may be unfinished, is behind a URL."""
    remote = RemoteFolder(url)
    try:
        remote.read(MANIFEST)
    except FileNotFoundError:
        return remote.claim() is not None
    except UserError:
        return True  # opening it gives the reason
    return True


def shard_set_rows(shards: ShardSet) -> list[SourceRow]:
    """The clips of a set, as members of its tars, with their labels and where their recordings have them."""
    sources, labels, starts = (shards.clips[name].to_pylist() for name in ("source", "labels", "start"))
    names, rows = shards.manifest.label_names, list[SourceRow]()
    for split in shards.manifest.splits:
        for tar in shards.shard_paths(split):
            for members in read_index(index_path(tar)):
                clip = next((member for member in members if member.extension == shards.manifest.codec), None)
                if clip is None or len(rows) == len(sources):
                    raise UserError(f"{index_path(tar)}: not the index that its set was packed with; pack it again")
                place = ByteLocation((str(tar),), Kind.STORED, clip.offset, clip.size)
                own, start = tuple(names[label] for label in labels[len(rows)] or ()), starts[len(rows)]
                begins = None if start is None else start / SAMPLE_RATE_HZ
                rows.append(SourceRow(place, sources[len(rows)], labels=own, begins=begins))
    return rows
