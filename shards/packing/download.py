"""A shard set behind a URL, brought to this machine.

CACHE/sets/KEY_OF_URL/KEY_OF_MANIFEST/NAME            a complete copy; it is never changed
CACHE/sets/KEY_OF_URL/KEY_OF_MANIFEST/NAME.partial    one being downloaded
CACHE/sets/KEY_OF_URL/current                         KEY_OF_MANIFEST of the copy that was asked for last

CACHE is UNFUSED_CACHE, or ~/.cache/unfused-fast. Ours: nothing there is deleted by itself, because a training run may
be reading it; CACHE/sets, or any folder in it, may be deleted when no run does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from unfused_fast.errors import UserError
from unfused_fast.shards.packing.upload import SHARD_NAME, RemoteSet, cache_folder
from unfused_fast.shards.sets.shard_files import index_path, replace_file
from unfused_fast.shards.sets.table import CLIPS, MANIFEST, REJECTED, clips_digest, read_clips, read_manifest
from unfused_fast.shards.sources.location import local_path
from unfused_fast.shards.telling import Progress, Say, unheard, unseen

DOWNLOADS = 8
"""Files fetched at once. Ours: one connection seldom fills the line."""


def local_set(place: str | Path, *, say: Say = unheard, progress: Progress = unseen) -> Path:
    """The folder of a set: a folder itself, or a complete local copy of what is behind a URL now, for open_shards().

    A copy that is there is used again when the manifest behind the URL is still the same. When the URL cannot be asked,
    the copy that was used last is used, and `say` is told. A stopped download goes on with the files that are missing.

    Args:
        progress: called with files there, files in all, 0.

    Raises:
        UserError: no set there, an unfinished one, one that changes meanwhile; not to be read; too little room.
    """
    folder = local_path(place)
    if isinstance(folder, Path):
        return folder
    remote = RemoteSet(str(place))
    home = cache_folder() / "sets" / remote.key
    try:
        manifest = remote.read(MANIFEST)
    except FileNotFoundError:
        raise _no_set(remote) from None
    except OSError as error:
        known = home / "current"
        kept = home / known.read_text(encoding="ascii") / remote.name if known.is_file() else None
        if isinstance(error, PermissionError) or kept is None or not _is_whole(kept):
            raise UserError(
                f"{remote.shown}: cannot be read ({error}); look at the name, the credentials and the network"
            ) from error
        say(f"{remote.shown}: cannot be asked whether it has changed ({error}); the copy in {kept} is used")
        return kept
    key = hashlib.sha256(manifest).hexdigest()[:16]
    folder = home / key / remote.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(home / "lock", say, remote) as alone:
            if not _is_whole(folder):
                _download(remote, manifest, folder, alone, progress)
            if not (home / "current").is_file() or (home / "current").read_text(encoding="ascii") != key:
                replace_file(home / "current", key.encode())
    except OSError as error:
        raise UserError(
            f"{home}: cannot be written ({error.strerror or error}); mend that, or set UNFUSED_CACHE to another folder"
        ) from error
    return folder


def _no_set(remote: RemoteSet) -> UserError:
    claim = remote.claim()
    if claim is not None:
        return UserError(
            f"{remote.shown}: unfinished, {claim['by']} has been packing to it since {claim['since']}; wait "
            "for it, or finish it with the same unfused-fast shard command that began it, on that machine"
        )
    return UserError(
        f"{remote.shown}: holds no {MANIFEST}, so it is no shard set; make one with: "
        f"unfused-fast shard SOURCE {remote.shown}"
    )


def _changed(remote: RemoteSet) -> UserError:
    return UserError(f"{remote.shown}: was changed while it was downloaded; give the same command again")


def _is_whole(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and all((folder / name).is_file() for name in _names(folder))


def _names(folder: Path) -> list[str]:
    """All files of the set whose manifest is in `folder`, but the manifest."""
    shards = [Path(name) for info in read_manifest(folder).splits.values() for name in info.shards]
    for shard in shards:
        if not SHARD_NAME.fullmatch(str(shard)):
            raise UserError(f"{folder / MANIFEST}: {str(shard)!r} is no name of a shard; pack the set again")
    return [CLIPS, REJECTED, *(path.name for shard in shards for path in (shard, index_path(shard)))]


def _download(remote: RemoteSet, manifest: bytes, folder: Path, alone: bool, progress: Progress) -> None:
    """Makes `folder` whole; another process may do the same when this one is not alone."""
    partial = folder.with_name(f"{folder.name}.partial" if alone else f"{folder.name}.{os.getpid()}.partial")
    if folder.exists() and alone:  # a file was deleted from it
        shutil.rmtree(partial, ignore_errors=True)
        folder.rename(partial)
    partial.mkdir(exist_ok=True)
    replace_file(partial / MANIFEST, manifest)
    with remote.named(partial):
        names = _names(partial)
    sizes = _sizes(remote, names)
    missing = [name for name in names if _size(partial / name) != sizes[name]]
    needed, free = sum(sizes[name] for name in missing), shutil.disk_usage(partial).free
    if needed > free:
        raise UserError(
            f"{remote.shown}: {needed / 1e9:.2f} GB are to be downloaded, but {partial.parent} has {free / 1e9:.2f} GB "
            "free; make room, or set UNFUSED_CACHE to a folder on a larger disk"
        )
    progress(len(names) - len(missing), len(names), 0)
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        try:
            fetched = [pool.submit(_fetch, remote, name, sizes[name], partial) for name in missing]
            for done, future in enumerate(as_completed(fetched), len(names) - len(missing) + 1):
                future.result()
                progress(done, len(names), 0)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    try:
        unchanged = remote.read(MANIFEST) == manifest
    except FileNotFoundError:
        unchanged = False
    except OSError as error:
        raise UserError(f"{remote.shown}: cannot be read ({error}); give the same command again") from error
    if not unchanged:
        shutil.rmtree(partial)
        raise _changed(remote)
    about = read_manifest(partial)
    if clips_digest(read_clips(partial), about.label_names) != about.digest:
        (partial / CLIPS).unlink()
        raise UserError(f"{remote.shown}/{CLIPS}: its digest is not the manifest's; copy or pack the set there again")
    try:
        partial.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise
        shutil.rmtree(partial)  # another process was faster


def _sizes(remote: RemoteSet, names: list[str]) -> dict[str, int]:
    """In bytes, of files all of which must be there."""
    try:
        if remote.is_web:  # a web server has no listing
            with ThreadPoolExecutor(DOWNLOADS) as pool:
                return dict(zip(names, pool.map(remote.size, names), strict=True))
        there = remote.listing()
        return {name: there[name][0] for name in names}
    except (FileNotFoundError, KeyError) as error:
        missing = f"{error.args[0]}: " if isinstance(error, KeyError) else ""
        raise UserError(
            f"{remote.shown}: {missing}missing, but {MANIFEST} lists it; copy the whole set or pack it again"
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _fetch(remote: RemoteSet, name: str, size: int, folder: Path) -> None:
    new = folder / f"{name}.new"
    try:
        remote.fetch(name, new)
    except FileNotFoundError:  # it was there when sizes were asked for
        raise _changed(remote) from None
    if size and _size(new) != size:
        raise UserError(f"{remote.shown}/{name}: {_size(new)} of {size} bytes have come; give the same command again")
    new.replace(folder / name)


@contextmanager
def _locked(path: Path, say: Say, remote: RemoteSet) -> Iterator[bool]:
    """Whether no other process downloads this set while the block runs; False where the file system has no locks."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{remote.shown}: waiting for another process that downloads it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
