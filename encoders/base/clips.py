"""The clips that `base` learns from: 16 kHz mono WAVs of the packages of sources.csv, and OUT/clips.csv.

python encoders/base/clips.py OUT [--jobs 2]        after fetch.sh has filled OUT/raw; build.sh calls both

Deterministic: sorted lists, order and draws by hashes of names. What is left out: rows of sources.csv that are not
used, and held_out.txt: files that hold test clips of the development tasks, and the voices of their test words, as the
first eight hex digits of sha1 of PACKAGE/FILE and of words/ENGINE:VOICE.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import hashlib
import re
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

HERE = Path(__file__).parent
RATE, SEED = 16000, 20
LONGEST, SHORTEST_TAIL, PADDED, PIECES = 10.0, 1.0, 1.0, 20
"""Seconds of a piece, of the last piece of several, and of silence that shorter clips are filled up with; and most
pieces of a file."""
ENDINGS = {".ogg", ".oga", ".wav", ".flac", ".mp3", ".aif", ".aiff", ".au", ".wv"}
SHARED = re.compile(
    r"/silence|(?:^|/)(service-login|service-logout|select-confirm|squish1|pop|pop2|remove|bomb|whip|sound025|invalid"
    r"|object|pig_death|error|harbor1|harbor2|alert-user|gong|buzzer|save-object|no-answer|n-answer|large-movement"
    r"|camera_flashing_2|infotron|chronos.*/sound/3|laser2|mousesqueak|zonkdown|zonkpush|mus2|gnome-audio/warning"
    r"|snd_classic/laser|enemy-smashed|tuxok|youcannot|bigexplosion|filter_admit|splat|arrowfly_06"
    r"|battle_sea_subs_02_.*|placed_sea_02_.*sonar_ping)\.[a-z0-9]+$"
)
"""Sounds that several packages have, and silence."""
PLACES = re.compile(r"^(package/|usr/share/(games/|sounds/|scummvm/|lib/)?|usr/lib/|var/lib/)")
Sound = NDArray[np.float32]


class Clip(NamedTuple):
    """A piece of a file, written."""

    path: Path
    package: str
    source: str
    """The file in its package."""
    seconds: float
    digest: str
    """Of the whole file's samples."""


def hashed(name: str) -> float:
    """A number in [0, 1) from a name."""
    return int.from_bytes(hashlib.sha1(f"{SEED}|{name}".encode()).digest()[:7], "big") / float(1 << 56)


def plain(name: str) -> str:
    """An ASCII file name; a short hash keeps names apart that would become the same."""
    found = re.sub(r"[^A-Za-z0-9._+/-]", "_", name)
    return found if found == name else f"{found}-{hashlib.sha1(name.encode()).hexdigest()[:6]}"


def mono(samples: Any, rate: int) -> Sound:
    """(samples, channels) at any rate -> (samples,) at 16 kHz."""
    samples = samples.mean(axis=1)
    return np.asarray(soxr.resample(samples, rate, RATE) if rate != RATE else samples, dtype=np.float32)


def decoded(path: Path) -> Sound | None:
    """By libsndfile, else by ffmpeg; None: not a sound."""
    if path.suffix.lower() != ".wv":
        try:
            return mono(*soundfile.read(path, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError:
            pass
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "f32le", "-ac", "1", "-ar", str(RATE), "-"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    return None if done.returncode or len(done.stdout) < 400 else np.frombuffer(done.stdout, np.float32).copy()


def trimmed(samples: Sound, level: float, kept: float = 0.05) -> Sound:
    """Without ends below a share of the peak, but for some seconds."""
    peak = float(np.abs(samples).max()) if len(samples) else 0.0
    if peak < 1e-3:
        return samples[:0]
    loud, edge = np.flatnonzero(np.abs(samples) > level * peak), int(kept * RATE)
    return samples[max(0, loud[0] - edge) : loud[-1] + 1 + edge]


def pcm(samples: Sound) -> NDArray[np.int16]:
    """16-bit samples."""
    return np.asarray(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def write(path: Path, samples: Sound) -> None:
    """A WAV of a second or more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    missing = max(0, int(PADDED * RATE) - len(samples))
    soundfile.write(path, pcm(np.pad(samples, (0, missing))), RATE, subtype="PCM_16")


def converted(job: tuple[Path, Path, str, str]) -> list[Clip]:
    """The clips of one file; none of one that is silent or no sound."""
    raw, out, package, source = job
    samples = decoded(raw)
    if samples is None or not len(samples) or not np.isfinite(samples).all():
        return []
    samples = trimmed(samples - float(samples.mean()), 0.002)
    if len(samples) < int(0.08 * RATE):
        return []
    digest, length = hashlib.md5(pcm(samples).tobytes()).hexdigest(), int(LONGEST * RATE)
    samples = samples[: PIECES * length + int(SHORTEST_TAIL * RATE) - 1]
    pieces = [samples[start : start + length] for start in range(0, len(samples), length)]
    if len(pieces) > 1 and len(pieces[-1]) < SHORTEST_TAIL * RATE:
        pieces.pop()
    stem, made = re.sub(r"\.([A-Za-z0-9]+)(-[0-9a-f]{6})?$", r"_\1\2", plain(source)), []
    for number, piece in enumerate(pieces):
        if np.sqrt((piece**2).mean()) >= 3e-4:
            ending = "" if len(pieces) == 1 else f"__p{number:02d}"
            path = out / "audio" / package / f"{stem}{ending}.wav"
            write(path, piece)
            made.append(Clip(path, package, source, len(piece) / RATE, digest))
    return made


def converted_files(out: Path, jobs: int) -> list[Clip]:
    """The clips of all packages; of files with the same samples the first alone."""
    todo = []
    for folder in sorted(path for path in (out / "raw").iterdir() if path.is_dir()):
        unpack_containers(folder)
        for path in sorted(folder.rglob("*")):
            source = PLACES.sub("", str(path.relative_to(folder)))
            sound = path.suffix.lower() in ENDINGS and path.is_file() and not path.is_symlink()
            if sound and not SHARED.search(f"{folder.name}/{source}"):
                todo.append((path, out, folder.name, source))
    with Pool(jobs) as pool:
        every = [clip for made in pool.imap(converted, todo, chunksize=32) for clip in made]
    first: dict[str, tuple[str, str]] = {}
    return [clip for clip in every if first.setdefault(clip.digest, clip[1:3]) == clip[1:3]]


# Sounds inside archives of games and of Qt.


def unpack_containers(folder: Path) -> None:
    """Writes them beside their archive, which is then deleted."""
    kinds = {".zip": zipped, ".love": zipped, ".wad": doom, ".rcc": qt}
    for path in sorted(each for each in folder.rglob("*") if each.suffix in kinds and not each.is_symlink()):
        if path.is_file():
            for name, data in kinds[path.suffix](path):
                place = path.parent / f"{path.stem}_d" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(data, bytes):
                    place.write_bytes(data)
                else:
                    soundfile.write(place, data[1], data[0], subtype="PCM_U8")
            path.unlink()


def zipped(path: Path) -> Iterator[tuple[str, Any]]:
    """Sound files of a zip."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if re.search(r"\.(ogg|wav|mp3|flac)$", name, re.I) and ".." not in name:
                yield name, archive.read(name)


def doom(path: Path) -> Iterator[tuple[str, Any]]:
    """Lumps DS* of a WAD: 8-bit mono sound."""
    data = path.read_bytes()
    count, index = struct.unpack_from("<II", data, 4)
    for number in range(count):
        start, size, raw = struct.unpack_from("<II8s", data, index + 16 * number)
        name = raw.split(b"\0")[0].decode("latin1")
        if name.startswith("DS") and size > 500 and struct.unpack_from("<H", data, start)[0] == 3:
            rate, samples = struct.unpack_from("<HI", data, start + 2)
            values = np.frombuffer(data[start + 24 : start + 8 + samples - 16], np.uint8)
            yield f"{name.lower()}.wav", (rate, (values.astype(np.float32) - 128) / 128)


def qt(path: Path) -> Iterator[tuple[str, Any]]:
    """Sound files of a Qt resource file: a tree of nodes, names in UTF-16, data compressed by zlib or not."""
    data = path.read_bytes()
    if data[:4] != b"qres":
        return
    version, tree, content, names = struct.unpack_from(">IIII", data, 4)
    todo = [(0, "")]
    while todo:
        number, place = todo.pop()
        node = tree + (22 if version >= 2 else 14) * number
        name, flags = struct.unpack_from(">IH", data, node)
        if number:
            (length,) = struct.unpack_from(">H", data, names + name)
            place += "/" + data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be")
        if flags & 2:
            count, first = struct.unpack_from(">II", data, node + 6)
            todo += [(child, place) for child in range(first, first + count)]
        elif re.search(r"\.(ogg|wav|mp3)$", place) and not flags & 4:
            start = content + struct.unpack_from(">I", data, node + 10)[0]
            found = data[start + 4 : start + 4 + struct.unpack_from(">I", data, start)[0]]
            yield place.strip("/"), zlib.decompress(found[4:]) if flags & 1 else found


def used(clips: list[Clip]) -> list[Clip]:
    """Those whose row of sources.csv, the last that matches, is used, and whose file holds no test clip."""
    with (HERE / "sources.csv").open(newline="") as file:
        sources = list(csv.DictReader(file))
    held_out, patterns = set((HERE / "held_out.txt").read_text().split()), dict[str, list[tuple[list[str], bool]]]()
    for row in sources:
        folder = row["package"].lstrip("@").replace("/", "-")
        patterns.setdefault(folder, []).append((row["files"].split("|"), row["used"] == "yes"))

    def taken(clip: Clip) -> bool:
        found = [
            yes for files, yes in patterns[clip.package] if any(fnmatch.fnmatch(clip.source, one) for one in files)
        ]
        return bool(found) and found[-1] and short_hash(f"{clip.package}/{clip.source}") not in held_out

    return [clip for clip in clips if taken(clip)]


def short_hash(name: str) -> str:
    """As in held_out.txt."""
    return hashlib.sha1(name.encode()).hexdigest()[:8]


def main() -> None:
    """Files, notes, words; the list."""
    from synthetic import notes, words

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    out = given.out.resolve()
    shutil.rmtree(out / "audio", ignore_errors=True)
    every = converted_files(out, given.jobs)
    held_out = set((HERE / "held_out.txt").read_text().split())
    paths = [clip.path for clip in used(every)]
    with Pool(given.jobs) as pool:
        paths += notes(out, pool)
        background = [(clip.path, clip.package, clip.source) for clip in every if round(clip.seconds, 3) >= 1]
        made = words(out, pool, background)
    paths += [path for voice, path in made if short_hash(f"words/{voice}") not in held_out]
    paths.sort(key=lambda path: hashed("pool|" + str(path.relative_to(out / "audio"))))
    with (out / "clips.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["path"], *([path] for path in paths)])
    print(f"{len(every)} clips of files, {len(paths)} in {out / 'clips.csv'}")


if __name__ == "__main__":
    main()
