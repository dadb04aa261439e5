"""Archives of every kind that is read, made of files or of a folder, and what is listed in them."""

from __future__ import annotations

import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from unfused_fast.shards.sources.location import ByteLocation
from unfused_fast.shards.sources.reader import open_location
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.source_rows import source_rows

STEM = "100%s{0}"


def make_tar(path: Path, folder: Path, mode: str = "w") -> Path:
    """A tar of what lies in a folder."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for path_in in sorted(folder.iterdir()):
            tar.add(path_in, path_in.name)
    return path


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of these names and contents."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def contents_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def make_spanned_zip(path: Path, files: dict[str, bytes], pieces: int) -> None:
    """A split zip as Info-ZIP writes it: places in its list are counted from the start of each part."""
    parts: list[bytearray] = [bytearray(b"PK\7\x08")]
    listed = []
    share = sum(map(len, files.values())) // pieces
    for name, data in files.items():
        if len(parts[-1]) > share and len(parts) < pieces:
            parts.append(bytearray())
        head = (len(parts) - 1, len(parts[-1]))
        raw = name.encode()
        sizes = (zlib.crc32(data), len(data), len(data), len(raw))
        local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0x800, 0, 0, 0, *sizes, 0) + raw
        listed.append(
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0x800, 0, 0, 0, *sizes, 0, 0, head[0], 0, 0, head[1]) + raw
        )
        # Data may go on in the next part, as they do where a part is full.
        parts[-1] += local + data[: len(data) // 2]
        if head[0] < pieces - 1 and len(parts[-1]) > share:
            parts.append(bytearray())
        parts[-1] += data[len(data) // 2 :]
    place, central = len(parts[-1]), b"".join(listed)
    last = len(parts) - 1
    parts[-1] += central + struct.pack(
        "<4s4H2LH", b"PK\5\6", last, last, len(listed), len(listed), len(central), place, 0
    )
    for number, part in enumerate(parts):
        (path.parent / (path.name if number == last else f"{path.stem}.z{number + 1:02d}")).write_bytes(part)


def make_archive(kind: str, audio: Path, where: Path) -> Path:
    """The archive of this kind, or the folder that it lies in where it has several files; its name is no format."""
    where.mkdir()
    if kind in ("tar", "tar.gz"):
        return make_tar(where / f"{STEM}.{kind}", audio, "w:gz" if kind == "tar.gz" else "w")
    path, files = where / f"{STEM}.zip", contents_of(audio)
    if kind == "spanned.zip":
        make_spanned_zip(path, files, 3)
        return where
    make_zip(path, files, zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED)
    if kind in ("stored.zip", "deflated.zip"):
        return path
    data, size = path.read_bytes(), path.stat().st_size // 3 + 1
    for number in range(3):
        name = f"{STEM}.zip.{number + 1:03d}" if kind == "zip.001" else f"{STEM}_parta{'abc'[number]}"
        (where / name).write_bytes(data[number * size :][:size])
    path.unlink()
    return where


def read_row(row: SourceRow) -> bytes:
    """Content of a row that is not a separate file."""
    assert isinstance(row.path, ByteLocation)
    with open_location(row.path) as file:
        return file.read()


def reasons(path: Path, **options: int) -> dict[str, str]:
    """Name -> reason, empty for members that are read."""
    rows = source_rows(path, **options)  # type: ignore[arg-type]
    return {row.source: row.path.why if isinstance(row.path, ByteLocation) else "" for row in rows}
