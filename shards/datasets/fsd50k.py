"""FSD50K: 51,197 Freesound clips with labels of 200 classes, several a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import PATH, Dataset, Discovery, Variant
from unfused_fast.shards.datasets.freesound import freesound_ids
from unfused_fast.shards.datasets.layout import (
    against_published,
    chosen,
    files_below,
    listed_and_there,
    records_of,
    require,
)
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NAME, CLASSES = "fsd50k", 200
TRUTH = "FSD50K.ground_truth"
AUDIO = {"dev": "FSD50K.dev_audio", "eval": "FSD50K.eval_audio"}
SPLITS = {"train": "train", "val": "valid"}
CLIPS = {"train": 36_796, "valid": 4_170, "test": 10_231}
OPTIONS = {"clips": ("dev", "all"), "exclude": ("none", PATH)}
LAYOUT = (
    f"ROOT/{AUDIO['dev']}/<fname>.wav, ROOT/{TRUTH}/dev.csv and vocabulary.csv; with clips=all also "
    f"ROOT/{AUDIO['eval']}/<fname>.wav and ROOT/{TRUTH}/eval.csv"
)


def discover(root: Folder, given: Mapping[str, str]) -> Discovery:
    """labels: all classes of a clip, its ancestors in the ontology among them; group: the Freesound id.

    clips=dev gives train and valid; clips=all also eval, as test. exclude leaves out what other data sets use, in every
    split: their paths, separated by commas.
    """
    choice = chosen(NAME, OPTIONS, given)
    parts = ["dev", "eval"] if choice["clips"] == "all" else ["dev"]
    needed = [entry for part in parts for entry in (AUDIO[part], f"{TRUTH}/{part}.csv")]
    require(root, [*needed, f"{TRUTH}/vocabulary.csv"], NAME, LAYOUT)
    notes: list[str] = []
    vocabulary = _vocabulary(root / TRUTH / "vocabulary.csv", notes)
    rows: list[SourceRow] = []
    for part in parts:
        listed = _listed(root, part, vocabulary)
        there = {f"{AUDIO[part]}/{name}" for name in files_below(root / AUDIO[part], ".wav")}
        found = listed_and_there(listed, there, f"{TRUTH}/{part}.csv", root)
        rows += found.rows
        notes += found.notes
    splits = {split: CLIPS[split] for split in CLIPS if split != "test" or "eval" in parts}
    notes += against_published((row.split for row in rows), splits)
    if choice["exclude"] != "none":
        rows = _without(rows, choice["exclude"], notes)
    return Discovery(rows, notes)


def _vocabulary(table: Folder, notes: list[str]) -> set[str]:
    """The classes; the table has no header: number, class, mid."""
    records = records_of(table, ("number", "class", "mid"), headless=True)
    names = {record["class"] for record in records}
    if len(names) != CLASSES:
        notes.append(f"{table.name} names {len(names)} classes; published: {CLASSES}.")
    return names


def _listed(root: Folder, part: str, vocabulary: set[str]) -> list[SourceRow]:
    table = root / TRUTH / f"{part}.csv"
    columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
    rows = []
    for record in records_of(table, columns):
        name, labels = record["fname"], tuple(record["labels"].split(","))
        if unknown := set(labels) - vocabulary:
            raise UserError(f"{table}: {name} has the label {min(unknown)!r}, which vocabulary.csv does not name")
        if part == "dev" and record["split"] not in SPLITS:
            raise UserError(f"{table}: {name} is in split {record['split']!r}, but splits are train and val")
        source = f"{AUDIO[part]}/{name}.wav"
        split = SPLITS[record["split"]] if part == "dev" else "test"
        rows.append(SourceRow(root / source, source, None, split, name, labels=labels))
    return rows


def _without(rows: list[SourceRow], places: str, notes: list[str]) -> list[SourceRow]:
    """Leaves out clips of Freesound recordings that the data sets at `places` use too."""
    for text in filter(None, (part.strip() for part in places.split(","))):
        place = Path(text).expanduser()
        if not place.exists():
            raise UserError(f"--option exclude={places}: no {place}; name folders or tables, separated by commas")
        for name, ids in freesound_ids(place).items():
            shared = Counter(row.split for row in rows if row.group in ids)
            rows = [row for row in rows if row.group not in ids]
            counts = ", ".join(f"{count:,} of {split}" for split, count in shared.items()) or "none"
            notes.append(f"Clips left out because {name} uses their recording ({len(ids):,} in all): {counts}.")
    if not rows:
        raise UserError(f"--option exclude={places}: no clips are left")
    return rows


DATASET = Dataset(
    name=NAME,
    task="sound events, multi-label",
    variants=(
        Variant("dev: train and valid", {"clips": "dev"}, CLASSES, {"train": CLIPS["train"], "valid": CLIPS["valid"]}),
        Variant("dev, and eval as test", {"clips": "all"}, CLASSES, CLIPS),
    ),
    licence="CC BY 4.0; each clip has its own: CC0, CC BY, CC BY-NC or CC Sampling+",
    source="https://zenodo.org/records/4060432 (FSD50K.dev_audio.z01 to .z05 and .zip, FSD50K.eval_audio.z01 and .zip, "
    "FSD50K.ground_truth.zip)",
    layout=LAYOUT,
    discover=discover,
    options=OPTIONS,
    not_verified=("that LAPE pre-trains on dev alone", "that freefield1010's item ids are Freesound's (exclude)"),
)
