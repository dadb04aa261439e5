"""What the clips table shows without reading the audio: damage, and warnings to read before training.

N clips.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unfused_fast.console import counted
from unfused_fast.errors import cause
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.measures import CLIPPED_SHARE
from unfused_fast.shards.check.findings import EXAMPLES, Example, Finding, Kind, finding
from unfused_fast.shards.datasets import DATASETS
from unfused_fast.shards.sets.shard_files import KEY_DIGITS, index_path
from unfused_fast.shards.sets.table import CLIPS, REJECTED, Manifest
from unfused_fast.shards.sources.split_names import unread_splits

OUTLIER_FACTOR = 4.0
"""A clip this much longer or shorter than the median may be an outlier. Ours: speech and sounds vary by less."""
OUTLIER_SPREADS = 3.0
"""Distance from the quartiles, in interquartile ranges of the logarithm. Source: Tukey's "far out" fences."""


def table_damage(directory: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    """What does not match the manifest, or is inconsistent; the digest, a separate job, covers the rest."""
    table, start = directory / CLIPS, 0
    for split, info in manifest.splits.items():
        rows = clips.slice(start, info.clips)
        seconds = (pc.sum(rows["samples"]).as_py() or 0) / SAMPLE_RATE_HZ
        same_length = np.isclose(seconds, info.seconds, rtol=1e-6, atol=1e-3)
        if len(rows) != info.clips or rows["split"].unique().to_pylist() != [split] or not same_length:
            summary = f"rows {start} to {start + info.clips - 1} do not match split {split} of the manifest"
            yield finding(Kind.COUNT, table, f"{summary}, {info.clips} clips and {info.seconds:.3f} s")
        start += info.clips
    if start != clips.num_rows:
        yield finding(Kind.COUNT, table, f"{clips.num_rows} clips, but the manifest has {start}")
    keys = pc.utf8_lpad(pc.cast(clips["clip_id"], pa.string()), KEY_DIGITS, "0")
    lengths = pc.divide(pc.cast(clips["samples"], pa.float64()), float(SAMPLE_RATE_HZ))
    wrong = pc.or_(pc.not_equal(clips["key"], keys), pc.not_equal(clips["seconds"], lengths))
    if len(found := np.flatnonzero(pc.fill_null(wrong, True).to_numpy())):
        yield _of_rows(Kind.KEY, table, "keys or seconds that do not match id and samples", clips, found)
    try:
        if (lines := len(_rejected(directory))) != manifest.rejected:
            summary = f"{counted(lines, 'row')}, but the manifest says {manifest.rejected}"
            yield finding(Kind.REJECTED, directory / REJECTED, summary)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        yield finding(Kind.REJECTED, directory / REJECTED, f"cannot be read ({cause(error)})")


def _rejected(directory: Path) -> list[str | None]:
    """The file of each row of rejected.csv, which has a row for each piece of a long file that is not packed."""
    with (directory / REJECTED).open(encoding="utf-8", newline="") as stream:
        return [row.get("path") for row in csv.DictReader(stream)]


def table_warnings(directory: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    """Warnings for the user: stray files, labels, leaks, duplicates, durations, published counts."""
    listed = {name for info in manifest.splits.values() for name in info.shards}
    listed |= {index_path(Path(name)).name for name in listed}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".tar", ".idx") and path.name not in listed:
            yield finding(Kind.STRAY_FILE, path, "not in the manifest; readers that take every tar would read it")
    if unread := unread_splits({name: info.clips for name, info in manifest.splits.items()}):
        yield finding(Kind.UNREAD_SPLIT, directory, unread)
    if not clips.num_rows:
        return
    yield from _label_warnings(directory, manifest, clips)
    yield from _group_leaks(directory, clips)
    yield from _same_audio(directory, clips)
    yield from _duration_outliers(directory, clips)
    yield from _recording_faults(directory, clips)
    yield from _published_counts(directory, manifest, clips)


def _label_warnings(directory: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    names, (parents, ids) = manifest.label_names, _labels(clips)
    if not len(ids) or ids.min() < 0 or ids.max() >= len(names):
        return
    split_of, of_split = clips["split"].to_numpy(), dict[str, NDArray[np.int64]]()
    labelled = np.bincount(parents, minlength=clips.num_rows) > 0
    for split in manifest.splits:
        there = split_of == split
        of_split[split] = np.bincount(ids[there[parents]], minlength=len(names))
        without = np.flatnonzero(there & ~labelled)
        if len(without) and of_split[split].any():
            summary = f"{len(without)} of {there.sum()} clips of split {split} have no label"
            yield _of_rows(Kind.UNLABELLED, directory, summary, clips, without)
    train, total = of_split.get("train", np.zeros(len(names))), np.bincount(ids, minlength=len(names))
    unseen = [split for split in ("valid", "test") if split in of_split and train.any()]
    for kind, found, summary in (
        *(
            (Kind.UNSEEN_CLASS, (of_split[split] > 0) & (train == 0), f"classes of split {split} have no clip in train")
            for split in unseen
        ),
        (Kind.RARE_CLASS, total == 1, "classes have one clip"),
        (Kind.EMPTY_CLASS, total == 0, "classes have no clip"),
    ):
        if count := int(found.sum()):
            examples = [Example(names[number]) for number in np.flatnonzero(found)[:EXAMPLES]]
            yield finding(kind, directory, f"{count} of {len(names)} {summary}", examples, count)


def _group_leaks(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    """Groups on both sides of a split, and of a published fold."""
    for side in ("split", "fold"):
        known = clips.filter(pc.and_(pc.is_valid(clips["group"]), pc.is_valid(clips[side])))
        sides = known.group_by("group").aggregate([(side, "distinct"), (side, "count_distinct"), ("clip_id", "min")])
        leaking = sides.filter(pc.greater(sides[f"{side}_count_distinct"], 1)).sort_by("clip_id_min")
        if not leaking.num_rows:
            continue
        first = leaking.slice(0, EXAMPLES)
        texts = [
            f"{row['group']} in {' and '.join(sorted(map(str, row[f'{side}_distinct'])))}" for row in first.to_pylist()
        ]
        summary = f"{counted(leaking.num_rows, 'group')} in more than one {side}"
        yield _of_rows(Kind.GROUP_LEAK, directory, summary, clips, leaking["clip_id_min"].to_numpy(), texts)


def _same_audio(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    """Clips with the same samples: in two splits, twice in one, with different labels."""
    times = clips.group_by("sha256").aggregate([([], "count_all")])
    repeated = times.filter(pc.greater(times["count_all"], 1))["sha256"].combine_chunks()
    rows = clips.filter(pc.is_in(clips["sha256"], value_set=repeated))
    copies: dict[str, list[dict[str, Any]]] = {}
    for row in rows.select(["clip_id", "split", "labels", "source", "sha256"]).to_pylist():
        copies.setdefault(row["sha256"], []).append(row)
    in_splits, in_one_split, otherwise = list[Any](), list[Any](), list[Any]()
    for same in copies.values():
        splits = {row["split"] for row in same}
        in_splits += [same] if len(splits) > 1 else []
        in_one_split += [same] if len(splits) < len(same) else []
        otherwise += [same] if len({tuple(row["labels"]) for row in same}) > 1 else []
    for kind, found, summary in (
        (Kind.AUDIO_LEAK, in_splits, "in more than one split, with identical samples"),
        (Kind.DUPLICATE, in_one_split, "more than once in one split, with identical samples"),
        (Kind.LABEL_CONFLICT, otherwise, "with different labels in different copies"),
    ):
        texts = []
        for _, *others in found[:EXAMPLES]:
            named = [f"{row['source']} ({row['split']})" for row in others[:EXAMPLES]]
            more = f" and {len(others) - EXAMPLES} more" if len(others) > EXAMPLES else ""
            texts.append(f"same as {', '.join(named)}{more}")
        if found:
            first = np.array([same[0]["clip_id"] for same in found])
            yield _of_rows(kind, directory, f"{counted(len(found), 'recording')} {summary}", clips, first, texts)


def _duration_outliers(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    seconds = clips["seconds"].to_numpy()
    logs = np.log(np.maximum(seconds, 1 / SAMPLE_RATE_HZ))
    low, middle, high = np.quantile(logs, [0.25, 0.5, 0.75])
    fence = OUTLIER_SPREADS * (high - low)
    far = (logs < low - fence) | (logs > high + fence)
    rows = np.flatnonzero(far & (np.abs(logs - middle) >= np.log(OUTLIER_FACTOR)))
    if len(rows):
        rows = rows[np.argsort(-np.abs(logs[rows] - middle), kind="stable")]
        summary = f"{len(rows)} of {len(logs)} clips are far from the median length of {np.exp(middle):.2f} s"
        texts = [f"{seconds[row]:.2f} s" for row in rows[:EXAMPLES]]
        yield _of_rows(Kind.DURATION, directory, summary, clips, rows, texts)


def _recording_faults(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    """What was measured while the clips were packed."""
    clipped = pc.greater_equal(clips["clipped_share"], CLIPPED_SHARE)
    for kind, found, summary in (
        (Kind.CLIPPED, clipped, f"are clipped: {100 * CLIPPED_SHARE:g} % of their samples or more at full scale"),
        (Kind.CONSTANT, clips["constant"], "hold no sound: all their samples are equal"),
    ):
        if len(rows := np.flatnonzero(pc.fill_null(found, False).to_numpy())):
            yield _of_rows(kind, directory, f"{len(rows)} of {clips.num_rows} clips {summary}", clips, rows)


def _published_counts(directory: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    """Compares files with published clips, split by split; a validation split that is ours counts as train."""
    if manifest.dataset is None:
        return
    name, options = manifest.dataset["name"], manifest.dataset.get("options", {})
    if name not in DATASETS:
        summary = f"packed from data set {name}, which this version does not know: its files are not counted"
        yield finding(Kind.PUBLISHED_COUNT, directory, f"{summary}; check it with {manifest.written_by}")
        return
    published = DATASETS[name].clips
    files = clips.group_by(["split", "source"]).aggregate([])
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(files["split"]).to_pylist()}
    if "valid" not in published and "train" in published:
        found["train"] = found.get("train", 0) + found.pop("valid", 0)
    differing = [
        f"{split} {found.get(split, 0):,} of {count:,}"
        for split, count in published.items()
        if found.get(split, 0) != count
    ]
    if differing:
        with suppress(OSError, UnicodeDecodeError, csv.Error):  # table_damage names that
            lost = set(_rejected(directory)) - set(files["source"].to_pylist())
            differing.append(f"{counted(len(lost), 'file')} rejected")
        chosen = ", ".join(f"{key}={value}" for key, value in options.items())
        summary = f"files packed of those published for {name}: {'; '.join(differing)}"
        yield finding(Kind.PUBLISHED_COUNT, directory, summary + (f" (packed with {chosen})" if chosen else ""))


def _labels(clips: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, label id) of every label of every clip."""
    column = clips["labels"].combine_chunks()
    parents, ids = pc.list_parent_indices(column), pc.list_flatten(column)
    return parents.to_numpy(zero_copy_only=False).astype(np.int64), ids.to_numpy(zero_copy_only=False).astype(np.int64)


def _of_rows(
    kind: Kind,
    file: Path,
    summary: str,
    clips: pa.Table,
    rows: NDArray[np.int64],
    texts: Iterable[str] = ("",) * EXAMPLES,
) -> Finding:
    sources = clips["source"]
    examples = [Example(text, int(row), sources[row].as_py()) for row, text in zip(rows, texts, strict=False)]
    return finding(kind, file, summary, examples, len(rows))
