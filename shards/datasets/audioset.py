"""AudioSet: ten seconds of 2 million videos with all their labels, from a downloaded copy."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from unfused_fast.errors import UserError, in_unicode
from unfused_fast.shards.datasets.dataset import NUMBER, Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.datasets.layout import first_of, not_published, records_of, walk
from unfused_fast.shards.datasets.splits import class_balanced
from unfused_fast.shards.sources.listing import is_audio
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

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
_COUNT = re.compile(r"#.*\bnum_segs=(\d+)")


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Rows of the listed clips that are there. labels: the display_name of each mid; group: the video.

    The tables describe a clip, whatever folder it is in. Usual file names are recognised: the id is the first
    11 characters, or those after a `Y`.
    """
    if choice["seed"] != "0" and choice["sample"] == "all":
        raise UserError(f"--option seed={choice['seed']}: the seed belongs to the sample; add --option sample=N")
    parts = ["balanced", "unbalanced"] if choice["split"] == "both" else [choice["split"]]
    parts += ["eval"] if choice["eval"] == "test" else []
    tables = {part: _table(root, TABLES[part], part) for part in parts}
    notes: list[str] = []
    label_of = _label_names(_table(root, LABELS, ""), notes)
    names, name_of = _files(root)
    rows: dict[str, SourceRow] = {}
    again = 0
    for part, table in tables.items():
        listed = there = 0
        for video, labels in _segments(table, label_of, notes):
            listed += 1
            name = name_of.get(video)
            if name is None:
                continue
            there += 1
            if video in rows:
                again += 1
                continue
            split = "test" if part == "eval" else "train"
            rows[video] = SourceRow(root / name, in_unicode(name), None, split, video, labels=labels)
        notes.append(f"{part}: {there:,} of {listed:,} listed clips are here ({there / max(listed, 1):.1%}).")
        if listed != SEGMENTS[part]:
            notes.append(f"{TABLES[part]} lists {listed:,} clips; published: {SEGMENTS[part]:,}.")
    if not rows:
        raise WrongLayout(f"{root}: {len(names)} audio files, but none is named by a listed video")
    if again:
        notes.append(f"{again} clips are listed twice; the first line is used.")
    if more := len(names) - len(rows):
        used = {row.source for row in rows.values()}
        example = next(name for name in map(in_unicode, names) if name not in used)
        notes.append(f"{more:,} audio files left out: not listed, or a second copy, such as {example}.")
    if choice["sample"] == "all":
        return Discovery(list(rows.values()), notes)
    return _sampled(rows, int(choice["sample"]), int(choice["seed"]), notes)


def _table(root: Folder, name: str, part: str) -> Folder:
    try:
        return first_of(root, [place + name for place in PLACES])
    except WrongLayout as error:
        without = {"eval": "eval=none", "balanced": "split=unbalanced", "unbalanced": "split=balanced"}
        raise WrongLayout(f"{error} (download it, or use --option {without[part]})" if part else error) from None


def _label_names(table: Folder, notes: list[str]) -> dict[str, str]:
    """mid -> display_name; where two mids share one, with the mid after it."""
    records = records_of(table, ("mid", "display_name"))
    times = Counter(record["display_name"] for record in records)
    if len(records) != CLASSES:
        notes.append(f"{table.name} names {len(records)} classes; published: {CLASSES}.")
    shared = [name for name, count in times.items() if count > 1]
    if shared:
        notes.append(f"{len(shared)} names belong to several classes; the mid is added to them, as in {shared[0]}.")
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


def _segments(table: Folder, label_of: Mapping[str, str], notes: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(video, labels) of each line `YTID, start_seconds, end_seconds, "mid,mid"`; lines with `#` come before them.

    Raises:
        UserError: another line, or a mid that the table of classes does not name.
    """
    names_of: dict[str, tuple[str, ...]] = {}
    declared, lines = None, 0
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True)
            for fields in reader:
                if not fields or fields[0].startswith("#"):
                    if count := _COUNT.match(", ".join(fields)):
                        declared = int(count[1])
                    continue
                if len(fields) != 4 or len(fields[0]) != _ID_LENGTH:
                    wanted = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"'
                    problem = f"line {reader.line_num} is {', '.join(fields)[:80]!r}, but a line must be like {wanted}"
                    raise not_published(table, problem)
                mids = fields[3]
                if mids not in names_of:
                    unknown = [mid for mid in mids.split(",") if mid not in label_of]
                    if unknown:
                        raise not_published(table, f"line {reader.line_num}: {unknown[0]!r} is not a class in {LABELS}")
                    names_of[mids] = tuple(dict.fromkeys(label_of[mid] for mid in mids.split(",")))
                lines += 1
                yield fields[0], names_of[mids]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise not_published(table, f"cannot be read ({error})") from error
    if declared not in (None, lines):
        notes.append(f"{table.name} has {lines:,} clips, but its second line says {declared:,}: it is incomplete.")


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
        Variant(
            "all of train",
            {"split": "both"},
            CLASSES,
            {"train": SEGMENTS["balanced"] + SEGMENTS["unbalanced"], "test": SEGMENTS["eval"]},
        ),
        Variant(
            "balanced train",
            {"split": "balanced"},
            CLASSES,
            {"train": SEGMENTS["balanced"], "test": SEGMENTS["eval"]},
        ),
        Variant(
            "class-balanced sample, as LAPE's tenth for pre-training",
            {"eval": "none", "sample": "200000"},
            CLASSES,
            {"train": 200_000},
        ),
    ),
    licence="tables CC BY 4.0 (not verified); the audio belongs to the videos' owners and is not distributed",
    source="tables: https://research.google.com/audioset/download.html; audio: your own download of the videos",
    layout=f"ROOT/{LABELS}, ROOT/{TABLES['balanced']}, ROOT/{TABLES['unbalanced']} and ROOT/{TABLES['eval']} (or in "
    "ROOT/metadata), and anywhere below ROOT audio named by the video: <id>.wav, <id>_<seconds>.flac, Y<id>.wav",
    find=find,
    options={
        "split": ("both", "balanced", "unbalanced"),
        "eval": ("test", "none"),
        "sample": ("all", NUMBER),
        "seed": ("0", NUMBER),
    },
    not_verified=("licence", "lines of the unbalanced table", "LAPE's list of 0.2 million clips is not published"),
)
