"""FSD50K: 51,197 Freesound clips with labels of 200 classes, several a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import birdsong, urbansound8k
from unfused_fast.shards.datasets.dataset import PATH, Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import differs, listed_and_there, not_published, records_of, require, walk
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

CLASSES = 200
TRUTH = "FSD50K.ground_truth"
AUDIO = {"dev": "FSD50K.dev_audio", "eval": "FSD50K.eval_audio"}
SPLITS = {"train": "train", "val": "valid"}
CLIPS = {"train": 36_796, "valid": 4_170, "test": 10_231}

_COLUMNS = {PurePosixPath(urbansound8k.TABLE).name: "fsID", **dict.fromkeys(birdsong.FREEFIELD.tables, "itemid")}
"""Table of another data set -> its column of Freesound ids. Source for fsID: soundata urbansound8k.py. Not verified for
itemid: freefield1010 is cut from Freesound, and its items are assumed to be named by Freesound's ids."""


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """labels: all classes of a clip, its ancestors in the ontology among them; group: the Freesound id.

    clips=dev gives train and valid; clips=all also eval, as test. exclude leaves out what other data sets use, in every
    split: their paths, separated by commas.
    """
    parts = ["dev", "eval"] if choice["clips"] == "all" else ["dev"]
    needed = [entry for part in parts for entry in (AUDIO[part], f"{TRUTH}/{part}.csv")]
    require(root, [*needed, f"{TRUTH}/vocabulary.csv"])
    rows, notes = list[SourceRow](), list[str]()
    columns = ("number", "class", "mid")
    vocabulary = {record["class"] for record in records_of(root / TRUTH / "vocabulary.csv", columns, headless=True)}
    notes += differs("Classes in vocabulary.csv", len(vocabulary), CLASSES)
    for part in parts:
        published = {split: CLIPS[split] for split in CLIPS if (split == "test") == (part == "eval")}
        found = listed_and_there(root, _listed(root, part, vocabulary), f"{TRUTH}/{part}.csv", [AUDIO[part]], published)
        rows += found.rows
        notes += found.notes
    if choice["exclude"] != "none":
        rows = _without(rows, choice["exclude"], notes)
    return Discovery(rows, notes)


def _listed(root: Folder, part: str, vocabulary: set[str]) -> list[SourceRow]:
    table = root / TRUTH / f"{part}.csv"
    columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
    rows = []
    for record in records_of(table, columns):
        name, labels = record["fname"], tuple(record["labels"].split(","))
        if unknown := set(labels) - vocabulary:
            raise not_published(table, f"{name} has the label {min(unknown)!r}, which vocabulary.csv does not name")
        if part == "dev" and record["split"] not in SPLITS:
            raise not_published(table, f"{name} is in split {record['split']!r}, but splits are train and val")
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
        for name, ids in _freesound_ids(place).items():
            shared = Counter(row.split for row in rows if row.group in ids)
            rows = [row for row in rows if row.group not in ids]
            counts = ", ".join(f"{count:,} of {split}" for split, count in shared.items()) or "none"
            notes.append(f"Clips left out because their recording is one of the {len(ids):,} in {name}: {counts}.")
    if not rows:
        raise UserError(f"--option exclude={places}: no clips are left; name fewer folders or tables")
    return rows


def _freesound_ids(place: Folder) -> dict[str, set[str]]:
    """Name of a table -> Freesound ids in it, for UrbanSound8K's and freefield1010's at or below a path. Raises
    UserError: neither.
    """
    ids: dict[str, set[str]] = {}
    for table in [place] if place.is_file() else [here / name for here, names in walk(place) for name in names]:
        if column := _COLUMNS.get(table.name):
            ids[table.name] = {record[column].removesuffix(".wav") for record in records_of(table, (column,))}
            if not any(number.isdecimal() for number in ids[table.name]):
                raise not_published(table, f"no numbers in column {column}")
    if not ids:
        raise UserError(
            f"{place}: neither UrbanSound8K nor freefield1010; name the folder that you give to --dataset urbansound8k "
            f"or birdsong, or one of {', '.join(_COLUMNS)}"
        )
    return ids


DATASET = Dataset(
    name="fsd50k",
    task="sound events, multi-label",
    variants=(
        Variant("dev: train and valid", {"clips": "dev"}, CLASSES, {"train": CLIPS["train"], "valid": CLIPS["valid"]}),
        Variant("dev, and eval as test", {"clips": "all"}, CLASSES, CLIPS),
    ),
    licence="CC BY 4.0; each clip has its own: CC0, CC BY, CC BY-NC or CC Sampling+",
    source="https://zenodo.org/records/4060432 (FSD50K.dev_audio.z01 to .z05 and .zip, FSD50K.eval_audio.z01 and .zip, "
    "FSD50K.ground_truth.zip)",
    layout=f"ROOT/{AUDIO['dev']}/<fname>.wav, ROOT/{TRUTH}/dev.csv and vocabulary.csv; with clips=all also "
    f"ROOT/{AUDIO['eval']}/<fname>.wav and ROOT/{TRUTH}/eval.csv",
    find=find,
    options={"clips": ("dev", "all"), "exclude": ("none", PATH)},
    not_verified=("that LAPE pre-trains on dev alone", "that freefield1010's item ids are Freesound's (exclude)"),
)
