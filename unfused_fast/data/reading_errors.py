"""Which shard it was that could not be read in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path

from unfused_fast.data.order import Reading
from unfused_fast.errors import UserError


def unreadable(split: str, reading: Reading, rows: slice, error: Exception) -> UserError:
    """The error for a batch that DALI could not give; `rows` are those of the batch among the clips that are read.

    Ours: DALI does not always name the file, and reads ahead, so all shards from those of the batch to those of the
    next are named, a few at most.
    """
    shards = _shards_of(reading, slice(rows.start, 2 * rows.stop - rows.start))
    reason = _last_line(error)
    named = [path for path in shards if str(path) in str(error)] or [path for path in shards if not readable(path)]
    if not named:  # its graph opens the first shards of all as it is built
        named = [path for path, _ in reading.order if str(path) in str(error)][:1]
    if named or len(shards) == 1:
        which = f"{(named or shards)[0]}: it cannot be read or decoded any more"
    else:
        which = (
            f"{shards[0].parent}: one of {', '.join(path.name for path in shards[:4])}"
            f"{' ...' if len(shards) > 4 else ''} cannot be read or decoded"
        )
    return UserError(f"{which} (split {split}: {reason}); unfused-fast check {shards[0].parent} says what is wrong")


def _shards_of(reading: Reading, rows: slice) -> list[Path]:
    found, begin = list[Path](), 0
    for path, lines in reading.order:
        if begin < rows.stop and begin + len(lines) > rows.start and path not in found:
            found.append(path)
        begin += len(lines)
    return found


def readable(path: Path) -> bool:
    """Whether every member that the index lists lies within the shard, which can be opened."""
    try:
        with path.open("rb") as file:
            file.read(1)
        last = path.with_suffix(".idx").read_text(encoding="ascii").splitlines()[-1].split()
        return path.stat().st_size >= max(int(last[at + 1]) + int(last[at + 2]) for at in range(0, len(last), 4))
    except (OSError, ValueError, IndexError):
        return False


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("Assert", "Error", "Unsupported"))]
    return (named or lines or [type(error).__name__])[-1][:200]
