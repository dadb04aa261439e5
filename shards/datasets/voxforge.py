"""VoxForge: which of six languages is spoken."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery
from unfused_fast.shards.datasets.layout import chosen
from unfused_fast.shards.sources import SourceRow

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
FILES = 176_428
"""Source: EVAR evar/metadata/voxforge.csv. The site grows and shrinks, so a copy may hold another number."""
TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.1
"""Of the speakers; the rest is the test. Source: tensorflow_datasets audio/voxforge.py."""
RANDOM_TEST_SHARE, RANDOM_SEED = 0.2, 1
"""Of the clips of each language. Source: A-SSL's list, a stratified 80/20 split; the draw is ours."""
OPTIONS = {"protocol": ("tfds", "random")}
LAYOUT = (
    "ROOT/.../<de|en|es|fr|it|ru>/.../<user>-<date>-<xxx>/wav/*.wav (or flac/*.flac): "
    "each archive unpacked into a folder of its name"
)


def discover(root: Path, options: Mapping[str, str]) -> Discovery:
    """Every clip of every unpacked archive; the group is the user, the archive's name before its first `-`."""
    protocol = chosen("voxforge", OPTIONS, options)["protocol"]
    notes: list[str] = []
    rows = _clips(root, notes)
    if len(rows) != FILES:
        notes.append(f"{len(rows):,} clips here; EVAR counted {FILES:,}. There is no fixed published set.")
    if absent := [language for language in LANGUAGES if all(row.label != language for row in rows)]:
        notes.append(f"No clips in {', '.join(absent)}.")
    if protocol == "tfds":
        return Discovery(_by_speaker(rows, notes), notes)
    return Discovery(_by_clip(rows, notes), notes)


def _clips(root: Path, notes: list[str]) -> list[SourceRow]:
    rows: list[SourceRow] = []
    packed = strays = twice = 0
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        packed += sum(name.endswith((".tgz", ".tar.gz")) for name in names)
        here = Path(parent)
        kind = here.name
        if kind not in ("wav", "flac"):
            continue
        audio = sorted(name for name in names if name.lower().endswith(f".{kind}") and not name.startswith("."))
        parts = here.relative_to(root).parts[:-1]
        language = _language(parts)
        if language is None or "-" not in here.parent.name:
            strays += len(audio)
        elif kind == "flac" and any(here.parent.glob("wav/*.wav")):
            twice += len(audio)
        else:
            user = _printable(here.parent.name.partition("-")[0])
            for name in audio:
                source = _printable("/".join((*parts, kind, name)))
                rows.append(SourceRow(here / name, source, language, group=user))
    if not rows:
        todo = f"; {packed} archives are still to be unpacked, each into a folder of its name" if packed else ""
        raise UserError(f"{root}: no unpacked VoxForge archives here{todo}; the layout must be: {LAYOUT}")
    if packed:
        notes.append(f"{packed:,} archives (.tgz) beside them were not read; unpack them to have their clips.")
    if strays:
        notes.append(
            f"{strays:,} files left out: no language in their path, or a folder not named <user>-<date>-<xxx>."
        )
    if twice:
        notes.append(f"{twice:,} FLAC files left out: their archive has a wav folder as well.")
    return sorted(rows, key=lambda row: row.source)


def _language(parts: tuple[str, ...]) -> str | None:
    """The folder before Trunk, as on the server, or the first folder named like a language."""
    before = [part for part, after in pairwise(parts) if after == "Trunk"]
    return next((part for part in (*before, *parts) if part in LANGUAGES), None)


def _by_speaker(rows: list[SourceRow], notes: list[str]) -> list[SourceRow]:
    """TFDS: sorted speakers, shuffled by RandomState(0), cut at 70 and 80 %; the same speakers give the same split."""
    speakers = sorted({row.group or "" for row in rows})
    if len(speakers) < 3:
        raise UserError(f"voxforge: {len(speakers)} speakers, but protocol=tfds splits speakers in three; add more")
    np.random.RandomState(0).shuffle(speakers)
    # The sum is 0.7999999999999999, and TFDS rounds down: 10 speakers are 7, 0 and 3.
    cuts = int(TRAIN_SHARE * len(speakers)), int((TRAIN_SHARE + VALIDATION_SHARE) * len(speakers))
    split = dict.fromkeys(speakers[: cuts[0]], "train") | dict.fromkeys(speakers[cuts[0] : cuts[1]], "valid")
    notes.append(
        f"Split by speaker with the rule of TFDS over the {len(speakers):,} speakers here; "
        "with other speakers than in its list of archives the split is another one."
    )
    return [replace(row, split=split.get(row.group or "", "test")) for row in rows]


def _by_clip(rows: list[SourceRow], notes: list[str]) -> list[SourceRow]:
    languages: dict[str | None, list[str]] = defaultdict(list)
    for row in rows:
        languages[row.label].append(row.source)
    test: set[str] = set()
    for language, names in languages.items():
        random.Random(f"{RANDOM_SEED} {language}").shuffle(names)
        test.update(names[: round(RANDOM_TEST_SHARE * len(names))])
    notes.append(
        "The random 80/20 split is ours, in the manner of LAPE, whose list is not published; "
        "speakers are on both sides, so accuracy on it is too high."
    )
    return [replace(row, split="test" if row.source in test else "train") for row in rows]


def _printable(name: str) -> str:
    """The name as text that every file format takes: user names come in other encodings."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


DATASET = Dataset(
    name="voxforge",
    task="language identification, 6 languages",
    classes=len(LANGUAGES),
    clips={},
    licence="GPL 3",
    source="https://storage.googleapis.com/tfds-data/downloads/voxforge/voxforge_urls.txt (a list of archives)",
    layout=LAYOUT,
    discover=discover,
    options=OPTIONS,
)
