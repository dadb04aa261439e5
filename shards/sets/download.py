"""A local copy of a shard set behind a URL.

CACHE/sets/KEY_OF_URL/KEY_OF_MANIFEST/NAME is a copy, which is never changed; it is complete once it has a manifest.

CACHE is UNFUSED_CACHE, or ~/.cache/unfused-fast. Ours: nothing there is deleted automatically, because a training run
may be reading it; CACHE/sets, or any folder in it, may be deleted when no run does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout
from rich.filesize import decimal

from unfused_fast.errors import UserError, cause
from unfused_fast.shards.callbacks import OnMessage, OnProgress, no_message, no_progress
from unfused_fast.shards.sets.remote_folder import RemoteFolder, cache_folder
from unfused_fast.shards.sets.shard_files import index_path, replace_file
from unfused_fast.shards.sets.table import CLIPS, MANIFEST, REJECTED, Manifest, clips_digest, read_clips, read_manifest
from unfused_fast.shards.sources.location import local_path

DOWNLOADS = 8
"""Files fetched at once. Ours: one connection rarely uses the full bandwidth."""


def local_set(place: str | Path, *, on_message: OnMessage = no_message, progress: OnProgress = no_progress) -> Path:
    """The folder of a set, for open_shards(): the given folder, or a complete local copy of what is behind the URL now.

    A copy that is there is used again while the manifest behind the URL is the same. A stopped download resumes with
    the files that are missing.

    Args:
        progress: called with files there, files in all, 0.

    Raises:
        UserError: no set there, an unfinished one, one that changes during the download; not readable; a full disk.
    """
    folder = local_path(place)
    if isinstance(folder, Path):
        return folder
    remote = RemoteFolder(str(place))
    home = cache_folder() / "sets" / remote.key
    try:
        manifest = remote.read(MANIFEST)
    except FileNotFoundError:
        raise _no_set(remote) from None
    except UserError as error:
        copies = sorted(home.glob(f"*/{remote.name}/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
        if not copies:
            raise
        raise UserError(
            f"{error}; or name the copy that was fetched last, which may be old: {copies[-1].parent}"
        ) from error
    folder = home / hashlib.sha256(manifest).hexdigest()[:16] / remote.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(home / "lock", on_message, remote):
            with TemporaryDirectory() as name, remote.named(Path(name)):
                (Path(name) / MANIFEST).write_bytes(manifest)
                info = read_manifest(Path(name))
            shards = [folder / name for split in info.splits.values() for name in split.shards]
            files = [folder / CLIPS, folder / REJECTED, *(path for tar in shards for path in (tar, index_path(tar)))]
            missing = [path for path in files if not path.is_file()]
            if missing or not (folder / MANIFEST).is_file():
                _download(remote, missing, len(files), progress)
                _check(remote, manifest, info, folder)
                replace_file(folder / MANIFEST, manifest)
    except OSError as error:
        raise UserError(
            f"{home}: cannot be written ({cause(error)}); fix that, or set UNFUSED_CACHE to another folder"
        ) from error
    return folder


def _no_set(remote: RemoteFolder) -> UserError:
    claim = remote.claim()
    if claim is not None:
        return UserError(
            f"{remote.shown}: unfinished, {claim['by']} has been packing to it since {claim['since']}; wait "
            "for it, or finish it with the same unfused-fast shard command that started it, on that machine"
        )
    return UserError(
        f"{remote.shown}: holds no {MANIFEST}, so it is not a shard set; make one with: "
        f"unfused-fast shard SOURCE {remote.shown}"
    )


def _download(remote: RemoteFolder, missing: list[Path], files: int, progress: OnProgress) -> None:
    there = {} if remote.is_web else remote.listing()  # a web server has no listing
    needed = sum(there.get(path.name, (0, ""))[0] for path in missing)
    free = shutil.disk_usage(missing[0].parent).free if missing else 0
    if needed > free:
        raise UserError(
            f"{remote.shown}: {decimal(needed, precision=2)} must be downloaded, but {missing[0].parent} has "
            f"{decimal(free, precision=2)} free; make room, or set UNFUSED_CACHE to a folder on a larger disk"
        )

    def fetch(path: Path) -> None:
        new, (size, _) = path.with_name(f"{path.name}.{os.getpid()}.new"), there.get(path.name, (0, ""))
        try:
            remote.fetch(path.name, new)
        except FileNotFoundError:
            raise UserError(
                f"{remote.shown}: {path.name}: missing, but {MANIFEST} lists it; if the set is being replaced, run the "
                "same command again, else copy the whole set or pack it again"
            ) from None
        if size and new.stat().st_size != size:
            raise UserError(
                f"{remote.shown}/{path.name}: {new.stat().st_size} of {size} bytes arrived; run the same command again"
            )
        new.replace(path)

    done = files - len(missing)
    progress(done, files, 0)
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        for _ in pool.map(fetch, missing):  # where it raises, the files that are not begun are left
            done += 1
            progress(done, files, 0)


def _check(remote: RemoteFolder, manifest: bytes, info: Manifest, folder: Path) -> None:
    """Raises UserError: the set changed during the download, or its table belongs to another set."""
    try:
        unchanged = remote.read(MANIFEST) == manifest
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        shutil.rmtree(folder)
        raise UserError(f"{remote.shown}: changed during the download; run the same command again")
    if clips_digest(read_clips(folder), info.label_names) != info.digest:
        (folder / CLIPS).unlink()
        raise UserError(
            f"{remote.shown}/{CLIPS}: its digest does not match the manifest; copy or pack the set there again"
        )


@contextmanager
def _locked(path: Path, on_message: OnMessage, remote: RemoteFolder) -> Iterator[None]:
    """Prevents other processes from downloading this set while the block runs, if the file system has locks."""
    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            on_message(f"{remote.shown}: waiting for another process to finish downloading it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
