"""AudioSet: ten seconds of 2 million videos with all their labels, from a downloaded copy."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from unfused_fast.errors import UserError, in_unicode
from unfused_fast.shards.datasets.dataset import NUMBER, Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.datasets.layout import differs, first_of, left_out, not_published, records_of, walk
from unfused_fast.shards.sources.listing import is_audio
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.splits import class_balanced

CLASSES = 527
LABELS = "class_labels_indices.csv"
TABLES = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
SEGMENTS = {"balanced": 22_160, "unbalanced": 2_041_789, "eval": 20_371}
"""Lines of the tables, by their second line and by EVAR's count (2,084,320 in all). The download page gives
22,176, 2,042,985 and 20,383."""
SAMPLE_FILE = "audioset-sample.csv"
PLACES = ("", "metadata/", "csv/")
"""Folders below the root in which the tables may be."""

_ID_LENGTH = 11


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Rows of the listed clips that are there. labels: the display_name of each mid; group: the video.

    The tables describe a clip, whatever folder it is in. Usual file names are recognised: the id is the first
    11 characters, or those after a `Y`.
    """
    if choice["seed"] != "0" and choice["sample"] == "all":
        raise UserError(f"--option seed={choice['seed']}: the seed belongs to the sample; add --option sample=N")
    parts = ["balanced", "unbalanced"] if choice["split"] == "both" else [choice["split"]]
    parts += ["eval"] if choice["eval"] == "test" else []
    tables = {part: first_of(root, [place + TABLES[part] for place in PLACES]) for part in parts}
    notes: list[str] = []
    label_of = _label_names(first_of(root, [place + LABELS for place in PLACES]), notes)
    names, name_of = _files(root)
    rows: dict[str, SourceRow] = {}
    again = list[str]()
    names_of: dict[str, tuple[str, ...]] = {}
    for part, table in tables.items():
        listed = there = 0
        for record in records_of(table, ("YTID", "start_seconds", "end_seconds", "mids"), headless=True):
            video, mids = record["YTID"], record["mids"]
            if mids not in names_of:
                if unknown := [mid for mid in mids.split(",") if mid not in label_of]:
                    raise not_published(table, f"{video} has the label {unknown[0]!r}, which {LABELS} does not name")
                names_of[mids] = tuple(dict.fromkeys(label_of[mid] for mid in mids.split(",")))
            listed += 1
            if video in name_of:
                there += 1
                split = "test" if part == "eval" else "train"
                if video in rows:
                    again.append(video)
                else:
                    name = name_of[video]
                    rows[video] = SourceRow(root / name, in_unicode(name), None, split, video, labels=names_of[mids])
        notes.append(f"{part}: {there:,} of {listed:,} listed clips are here ({there / max(listed, 1):.1%}).")
        notes += differs(f"Lines of {TABLES[part]}", listed, SEGMENTS[part])
    if not rows:
        raise WrongLayout(f"{root}: no audio file is named by a listed video")
    used = {row.source for row in rows.values()}
    notes += left_out(again, "line", "its clip is in an earlier one")
    others = [name for name in map(in_unicode, names) if name not in used]
    notes += left_out(others, "audio file", "not listed, or a second copy")
    if choice["sample"] == "all":
        return Discovery(list(rows.values()), notes)
    return _sampled(rows, int(choice["sample"]), int(choice["seed"]), notes)


def _label_names(table: Folder, notes: list[str]) -> dict[str, str]:
    """mid -> display_name; where two mids share one, with the mid after it."""
    records = list(records_of(table, ("mid", "display_name")))
    times = Counter(record["display_name"] for record in records)
    notes += differs(f"Classes in {table.name}", len(records), CLASSES)
    shared = [name for name, count in times.items() if count > 1]
    if shared:
        notes.append(f"Several classes have one name, to which their mid is added: {', '.join(shared)}.")
    return {
        record["mid"]: record["display_name"] + (f" ({record['mid']})" if record["display_name"] in shared else "")
        for record in records
    }


def _files(root: Folder) -> tuple[list[str], dict[str, str]]:
    """Every audio file below the root, relative to it; and the first of them for each id that a name may mean."""
    found, by_id = list[str](), dict[str, str]()
    for parent, names in walk(root):
        prefix = parent.relative_to(root).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        for name in filter(is_audio, names):
            stem = name.rpartition(".")[0]
            found.append(f"{prefix}{name}")
            prefixed = stem.startswith("Y") and len(stem) > _ID_LENGTH
            if not (prefixed and len(stem) == _ID_LENGTH + 1):
                by_id.setdefault(stem[:_ID_LENGTH], found[-1])
            if prefixed:
                by_id.setdefault(stem[1 : _ID_LENGTH + 1], found[-1])
    return found, by_id


def _sampled(rows: Mapping[str, SourceRow], size: int, seed: int, notes: list[str]) -> Discovery:
    """All of eval, and `size` clips of train, whose list and its digest are to be written next to the shards."""
    train = {video: row.labels for video, row in rows.items() if row.split == "train"}
    if not 1 <= size <= len(train):
        raise UserError(
            f"--option sample={size}: {len(train):,} train clips are here; give 1 to {len(train)}, or sample=all"
        )
    taken = class_balanced(train, size, seed)
    text = "ytid\n" + "".join(f"{video}\n" for video in sorted(taken))
    digest = hashlib.sha256(text.encode()).hexdigest()
    counts = Counter(label for video in taken for label in train[video])
    notes.append(
        f"sample: {size:,} of {len(train):,} train clips, seed {seed}, {min(counts.values()):,} to "
        f"{max(counts.values()):,} a class in {len(counts)} classes; sha256 of {SAMPLE_FILE}: {digest}."
    )
    kept = [row for video, row in rows.items() if row.split != "train" or video in taken]
    return Discovery(kept, notes, {SAMPLE_FILE: text, f"{SAMPLE_FILE}.sha256": f"{digest}  {SAMPLE_FILE}\n"})


DATASET = Dataset(
    name="audioset",
    task="sound events of videos, multi-label; pre-training needs no labels",
    variants=(
        Variant("all of train", {"split": "both"}, CLASSES, {"train": 2_063_949, "test": 20_371}),
        Variant("balanced train", {"split": "balanced"}, CLASSES, {"train": 22_160, "test": 20_371}),
        Variant(
            "class-balanced sample, as LAPE's tenth for pre-training",
            {"eval": "none", "sample": "200000"},
            CLASSES,
            {"train": 200_000},
        ),
    ),
    licence="tables CC BY 4.0 (not verified); the audio belongs to the videos' owners and is not distributed",
    source="tables: https://research.google.com/audioset/download.html; audio: your own download of the videos",
    layout=f"ROOT/{LABELS}, ROOT/{TABLES['balanced']} (but for split=unbalanced), ROOT/{TABLES['unbalanced']} (but "
    f"for split=balanced) and ROOT/{TABLES['eval']} (but for eval=none), or all of these in ROOT/metadata; and "
    "anywhere below ROOT audio named by the video: <id>.wav, <id>_<seconds>.flac, Y<id>.wav",
    find=find,
    options={
        "split": ("both", "balanced", "unbalanced"),
        "eval": ("test", "none"),
        "sample": ("all", NUMBER),
        "seed": ("0", NUMBER),
    },
    not_verified=("licence", "lines of the unbalanced table", "LAPE's list of 0.2 million clips is not published"),
)
