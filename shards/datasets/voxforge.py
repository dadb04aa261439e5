"""VoxForge: which of six languages is spoken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from unfused_fast.errors import UserError, in_unicode
from unfused_fast.shards.datasets.dataset import PATH, Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.datasets.layout import differs, left_out, not_published, not_there, records_of, walk
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.splits import with_test

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
FILES = 176_428
"""Source: EVAR evar/metadata/voxforge.csv. The site grows and shrinks, so a copy may hold another number."""
TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.1
"""Of the speakers; the rest is the test. Source: tensorflow_datasets audio/voxforge.py."""
RANDOM_TEST_SHARE, RANDOM_SEED = 0.2, 1
"""Of the clips of each language. Source: A-SSL's list, a stratified 80/20 split; the draw is ours."""
EVAR_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
"""Not verified: the names of the three splits in EVAR's list."""


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Every clip of every unpacked archive; the group is the user, the archive's name before its first `-`."""
    protocol, table = choice["protocol"], choice["list"]
    if (protocol == "evar") != (table != "none"):
        raise UserError(
            "--option protocol=evar and --option list=PATH go together; PATH is EVAR's evar/metadata/voxforge.csv"
        )
    notes: list[str] = []
    rows = _clips(root, notes)
    if protocol == "evar":
        return Discovery(_by_list(rows, Path(table).expanduser(), notes), notes)
    notes += left_out([row.source for row in rows if row.label is None], "file", "no language in its path")
    rows = [row for row in rows if row.label is not None]
    if not rows:
        raise WrongLayout(f"{root}: no folder named {', '.join(LANGUAGES)} in any path")
    notes += differs("Clips in all languages", len(rows), FILES)
    if absent := [language for language in LANGUAGES if all(row.label != language for row in rows)]:
        notes.append(f"No clips in {', '.join(absent)}.")
    if protocol == "tfds":
        return Discovery(_by_speaker(rows, notes), notes)
    notes.append("The random split is ours; speakers are in both parts, as in LAPE's, so its accuracy is optimistic.")
    rows = with_test(rows, lambda row: row.label, RANDOM_SEED, lambda count: round(RANDOM_TEST_SHARE * count))
    return Discovery(rows, notes)


def _clips(root: Folder, notes: list[str]) -> list[SourceRow]:
    """The label is the language in the path, or None."""
    rows: list[SourceRow] = []
    packed, strays, twice = list[str](), list[str](), list[str]()
    for here, names in walk(root):
        packed += [name for name in names if name.endswith((".tgz", ".tar.gz"))]
        kind, archive = here.name, here.parent
        if kind not in ("wav", "flac"):
            continue
        parts = here.relative_to(root).parts
        sources = {name: in_unicode("/".join((*parts, name))) for name in names if name.lower().endswith(f".{kind}")}
        if "-" not in archive.name:
            strays += sources.values()
        elif kind == "flac" and any((archive / "wav").glob("*.wav")):
            twice += sources.values()
        else:
            user, language = in_unicode(archive.name.partition("-")[0]), _language(parts[:-1])
            rows += [SourceRow(here / name, source, language, group=user) for name, source in sources.items()]
    if not rows:
        todo = f"; unpack {packed[0]} and other archives, each into a folder of its name" if packed else ""
        raise WrongLayout(f"{root}: no unpacked VoxForge archives here{todo}")
    notes += left_out(packed, "archive", "not unpacked")
    notes += left_out(strays, "file", "its folder is not named <user>-<date>-<xxx>")
    notes += left_out(twice, "FLAC file", "its archive has a wav folder as well")
    return sorted(rows, key=lambda row: row.source)


def _language(parts: tuple[str, ...]) -> str | None:
    """The folder before Trunk, as on the server, or the first folder named like a language."""
    before = [part for part, after in pairwise(parts) if after == "Trunk"]
    return next((part for part in (*before, *parts) if part in LANGUAGES), None)


def _by_speaker(rows: list[SourceRow], notes: list[str]) -> list[SourceRow]:
    """TFDS: sorted speakers, shuffled by RandomState(0), cut at 70 and 80 %; the same speakers give the same split."""
    speakers = sorted({row.group or "" for row in rows})
    if len(speakers) < 3:
        raise UserError(f"voxforge: too few speakers ({len(speakers)}) for protocol=tfds, which splits them; add more")
    np.random.RandomState(0).shuffle(speakers)
    # The sum is 0.7999999999999999, and TFDS rounds down: 10 speakers are 7, 0 and 3.
    cuts = int(TRAIN_SHARE * len(speakers)), int((TRAIN_SHARE + VALIDATION_SHARE) * len(speakers))
    split = dict.fromkeys(speakers[: cuts[0]], "train") | dict.fromkeys(speakers[cuts[0] : cuts[1]], "valid")
    notes.append(f"Split by the rule of TFDS: its own split where these speakers are its ({len(speakers):,} here).")
    return [replace(row, split=split.get(row.group or "", "test")) for row in rows]


def _by_list(rows: Sequence[SourceRow], table: Path, notes: list[str]) -> list[SourceRow]:
    """Labels and splits of EVAR's list, whose files are known by the names of archive and clip: archive names are
    unique, and EVAR unpacks them without their language.
    """
    here = {_archive_and_clip(row.source): row for row in rows}
    found: dict[str, SourceRow] = {}
    absent = list[str]()
    for record in records_of(table, ("file_name", "label", "split")):
        name, label, split = record["file_name"], record["label"].lower(), record["split"].lower()
        if label not in LANGUAGES or split not in EVAR_SPLITS:
            problem = f"{name} has label {record['label']!r} and split {record['split']!r}, but labels are "
            raise not_published(table, f"{problem}{', '.join(LANGUAGES)} and splits train, valid, test")
        row = here.get(_archive_and_clip(name))
        if row is None:
            absent.append(name)
            continue
        found[row.source] = replace(row, label=label, split=EVAR_SPLITS[split])
    if not found:
        raise UserError(f"{table}: none of its files is here; a file_name must end like <archive>/wav/<clip>.wav")
    notes += not_there(absent, "file", table.name)
    notes += left_out([row.source for row in rows if row.source not in found], "file", f"not in {table.name}")
    notes.append("EVAR's list is split by archive, so a speaker may be in two splits.")
    return list(found.values())


def _archive_and_clip(name: str) -> tuple[str, str]:
    """a/b/user-2010-x/wav/en-01.wav -> user-2010-x, en-01."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("wav", "flac")]
    return (parts[-2] if len(parts) > 1 else "", PurePosixPath(parts[-1]).stem if parts else "")


DATASET = Dataset(
    name="voxforge",
    task="language identification, 6 languages",
    variants=(
        Variant("languages, split by speaker (tfds)", {"protocol": "tfds"}, len(LANGUAGES), {}),
        Variant("languages, EVAR's list", {"protocol": "evar", "list": PATH}, len(LANGUAGES), {}),
        Variant("languages, random split", {"protocol": "random"}, len(LANGUAGES), {}),
    ),
    licence="GPL 3 (not verified)",
    source="https://storage.googleapis.com/tfds-data/downloads/voxforge/voxforge_urls.txt (a list of archives)",
    layout="ROOT/.../<de|en|es|fr|it|ru>/.../<user>-<date>-<xxx>/wav/*.wav (or flac/*.flac): "
    "each archive unpacked into a folder of its name",
    find=find,
    options={"protocol": ("tfds", "evar", "random"), "list": ("none", PATH)},
    not_verified=("licence", "that the server still answers", "which archives hold FLAC", "contents of EVAR's list"),
)
