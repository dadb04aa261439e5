"""Names below a folder: which are listed, and how they are written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})
"""What operating systems leave in folders, in lower case, besides hidden names. Ours: listing it as rejected audio
would bury the files that a user has to know about."""

_CODED = (".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2")
_PLAIN = (".wav", ".wave", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".sph")
AUDIO_ENDINGS = _CODED + _PLAIN
"""How names of recordings end, in lower case. Ours: what libsndfile reads, by its usual names."""


def files_below(root: Path, sets: list[Path] | None = None) -> Iterator[tuple[Path, bool]]:
    """(file, whether it is a folder that may not be read) below a folder: no clutter, no shard sets, no pipes.

    Each folder comes once, whatever links lead to it: linked folders after the real ones, so loops come to an end.
    Ours: a link to a folder that holds `root` is not followed, because it would bring in what lies beside `root`.

    Args:
        sets: gets the folders of shard sets, which are left out.
    """
    waiting, seen = [root], set[tuple[int, int]]()
    closed: list[OSError] = []
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0), onerror=closed.append):
            status = Path(parent).stat()
            is_set = {"manifest.json", "clips.parquet"} <= set(names)
            if (status.st_dev, status.st_ino) in seen or is_set:
                folders.clear()
                if is_set and sets is not None:
                    sets.append(Path(parent))
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not is_clutter(name))
            links = [linked for name in folders if stat.S_ISLNK(_mode(linked := Path(parent, name)))]
            waiting += [linked for linked in links if not root.resolve().is_relative_to(linked.resolve())]
            for name in names:
                path = Path(parent, name)
                # A broken link is listed, so that it ends in rejected.csv; pipes, sockets and devices are not.
                if not is_clutter(name) and stat.S_IFMT(_mode(path)) in (stat.S_IFREG, stat.S_IFLNK, 0):
                    yield path, False
    yield from ((Path(error.filename), True) for error in closed)


def _mode(path: Path) -> int:
    """What kind of thing it is, a link not followed; 0 where the system does not say, as for too long a path."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def is_clutter(name: str) -> bool:
    """Whether this file or folder is left out without a word."""
    return name.startswith(".") or name.lower() in CLUTTER


def is_audio(name: str) -> bool:
    """Whether a file is audio by the ending of its name."""
    return name.lower().endswith(AUDIO_ENDINGS)
