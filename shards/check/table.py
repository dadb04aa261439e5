"""What the clips table tells without a look at the audio: damage, and what a user would want to know before training.

N clips.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.measures import CLIPPED_SHARE
from unfused_fast.shards.check.findings import EXAMPLES, Example, Finding, Kind, finding
from unfused_fast.shards.datasets import DATASETS
from unfused_fast.shards.sets.shard_files import KEY_DIGITS, index_path
from unfused_fast.shards.sets.table import CLIPS, NO_LABEL, REJECTED, Manifest
from unfused_fast.shards.sources.split_names import unread_splits

OUTLIER_FACTOR = 4.0
"""A clip this much longer or shorter than the median may be an outlier. Ours: speech and sounds vary by less."""
OUTLIER_SPREADS = 3.0
"""Distance from the quartiles, in interquartile ranges of the logarithm. Source: Tukey's "far out" fences."""


def table_damage(directory: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    """What cannot be in a table that the packer wrote."""
    table = directory / CLIPS
    counted = sum(info.clips for info in manifest.splits.values())
    if counted != clips.num_rows:
        yield finding(Kind.COUNT, table, f"{clips.num_rows} clips, but the manifest has {counted}")
    start = 0
    for split, info in manifest.splits.items():
        rows = clips.slice(start, info.clips)
        wrong = _rows_where(pc.not_equal(rows["split"], split)) + start
        if len(wrong):
            said = f"rows {start} to {start + info.clips - 1} are split {split} in the manifest, but not all here"
            yield _of_rows(Kind.SPLIT, table, said, clips, wrong)
        seconds = (pc.sum(rows["samples"]).as_py() or 0) / SAMPLE_RATE_HZ
        if not len(wrong) and not np.isclose(seconds, info.seconds, rtol=1e-6, atol=1e-3):
            said = f"split {split} has {seconds:.3f} s, but the manifest says {info.seconds:.3f} s"
            yield finding(Kind.COUNT, table, said)
        start += info.clips
    keys = pc.utf8_lpad(pc.cast(clips["clip_id"], pa.string()), KEY_DIGITS, "0")
    for kind, wrong_rows, said in (
        (Kind.KEY, pc.not_equal(clips["key"], keys), "keys that are not the clips' ids"),
        (
            Kind.COUNT,
            pc.not_equal(clips["seconds"], pc.divide(pc.cast(clips["samples"], pa.float64()), float(SAMPLE_RATE_HZ))),
            f"seconds that are not samples / {SAMPLE_RATE_HZ}",
        ),
    ):
        if len(wrong := _rows_where(wrong_rows)):
            yield _of_rows(kind, table, said, clips, wrong)
    yield from _label_damage(table, manifest, clips)
    yield from _rejected_damage(directory / REJECTED, manifest)


def _label_damage(table: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    classes, (parents, ids) = len(manifest.label_names), _labels(clips)
    label = clips["label"].to_numpy()
    outside = np.union1d(parents[(ids < 0) | (ids >= classes)], np.flatnonzero((label < NO_LABEL) | (label >= classes)))
    if len(outside):
        said = f"labels that are none of the manifest's {classes}"
        yield _of_rows(
            Kind.LABEL_ID, table, said, clips, outside, [f"label {label[row]}" for row in outside[:EXAMPLES]]
        )
    per_clip = np.bincount(parents, minlength=clips.num_rows)
    first = np.full(clips.num_rows, NO_LABEL)
    first[parents[::-1]] = ids[::-1]
    if len(wrong := np.flatnonzero((label != NO_LABEL) & ((per_clip != 1) | (first != label)))):
        yield _of_rows(Kind.LABEL_ID, table, "a label that is not the one in labels", clips, wrong)


def _rejected_damage(path: Path, manifest: Manifest) -> Iterator[Finding]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = sum(1 for _ in csv.reader(stream)) - 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        yield finding(Kind.REJECTED, path, f"cannot be read ({error})")
        return
    if lines != manifest.rejected:
        yield finding(Kind.REJECTED, path, f"{lines} rows, but the manifest says {manifest.rejected}")


def table_warnings(directory: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    """What a user would want to know: stray files, labels, leaks, duplicates, durations, published counts."""
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
    splits, split_names = _codes(clips["split"])
    labelled = np.bincount(parents, minlength=clips.num_rows) > 0
    for code, split in enumerate(split_names):
        without = np.flatnonzero((splits == code) & ~labelled)
        if len(without) and labelled[splits == code].any():
            said = f"{len(without)} of {(splits == code).sum()} clips of split {split} have no label"
            yield _of_rows(Kind.UNLABELLED, directory, said, clips, without)
    of_split = {
        split: np.bincount(ids[splits[parents] == code], minlength=len(names)) for code, split in enumerate(split_names)
    }
    for split in ("valid", "test"):
        if split in of_split and "train" in of_split and of_split["train"].any():
            unseen = np.flatnonzero((of_split[split] > 0) & (of_split["train"] == 0))
            if len(unseen):
                said = f"{len(unseen)} classes of split {split} have no clip in train"
                yield _of_classes(Kind.UNSEEN_CLASS, directory, said, names, unseen)
    clips_of = np.bincount(ids, minlength=len(names))
    if len(rare := np.flatnonzero(clips_of == 1)):
        yield _of_classes(Kind.RARE_CLASS, directory, f"{len(rare)} classes have one clip", names, rare)
    if len(empty := np.flatnonzero(clips_of == 0)):
        yield _of_classes(Kind.EMPTY_CLASS, directory, f"{len(empty)} classes have no clip", names, empty)


def _group_leaks(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    """Groups on both sides of a split, and of a published fold."""
    groups, group_names = _codes(clips["group"])
    for column, side in (("split", "split"), ("fold", "fold")):
        sides, side_names = _codes(clips[column])
        leaking = _on_two_sides(groups, sides)
        if not len(leaking):
            continue
        examples = []
        for group in leaking[:EXAMPLES]:
            rows = np.flatnonzero(groups == group)
            where = " and ".join(sorted({str(side_names[code]) for code in sides[rows]}))
            examples.append(_example(clips, int(rows[0]), f"{group_names[group]} in {where}"))
        said = f"{len(leaking)} groups (speakers, recordings) are in more than one {side}"
        yield finding(Kind.GROUP_LEAK, directory, said, examples, len(leaking))


def _same_audio(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    """Clips with the same samples: in two splits, twice in one, with different labels."""
    audio, _ = _codes(clips["sha256"])
    repeated = np.flatnonzero(np.bincount(audio) > 1)
    if not len(repeated):
        return
    rows = np.flatnonzero(np.isin(audio, repeated))
    rows = rows[np.argsort(audio[rows], kind="stable")]
    copies = np.split(rows, np.flatnonzero(np.diff(audio[rows])) + 1)
    taken = clips.take(pa.array(rows)).select(["split", "labels"])
    split_of = dict(zip(rows.tolist(), taken["split"].to_pylist(), strict=True))
    labels_of = dict(zip(rows.tolist(), map(tuple, taken["labels"].to_pylist()), strict=True))
    leaks = [same for same in copies if len({split_of[row] for row in same.tolist()}) > 1]
    twice = [same for same in copies if len({split_of[row] for row in same.tolist()}) < len(same)]
    conflicts = [same for same in copies if len({labels_of[row] for row in same.tolist()}) > 1]
    for kind, found, said in (
        (Kind.AUDIO_LEAK, leaks, "recordings are in more than one split, sample by sample the same"),
        (Kind.DUPLICATE, twice, "recordings are more than once in one split, sample by sample the same"),
        (Kind.LABEL_CONFLICT, conflicts, "recordings have different labels in different copies"),
    ):
        if found:
            sources = clips["source"]
            examples = []
            for first, *others in (same.tolist() for same in found[:EXAMPLES]):
                named = [f"{sources[row].as_py()} ({split_of[row]})" for row in others[:EXAMPLES]]
                more = f" and {len(others) - EXAMPLES} more" if len(others) > EXAMPLES else ""
                examples.append(_example(clips, first, f"same as {', '.join(named)}{more}"))
            yield finding(kind, directory, f"{len(found)} {said}", examples, len(found))


def _duration_outliers(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    seconds = clips["seconds"].to_numpy()
    logs = np.log(np.maximum(seconds, 1 / SAMPLE_RATE_HZ))
    low, middle, high = np.quantile(logs, [0.25, 0.5, 0.75])
    fence = OUTLIER_SPREADS * (high - low)
    far = (logs < low - fence) | (logs > high + fence)
    rows = np.flatnonzero(far & (np.abs(logs - middle) >= np.log(OUTLIER_FACTOR)))
    if len(rows):
        rows = rows[np.argsort(-np.abs(logs[rows] - middle), kind="stable")]
        said = f"{len(rows)} of {len(logs)} clips are far from the median length of {np.exp(middle):.2f} s"
        texts = [f"{seconds[row]:.2f} s" for row in rows[:EXAMPLES]]
        yield _of_rows(Kind.DURATION, directory, said, clips, rows, texts)


def _recording_faults(directory: Path, clips: pa.Table) -> Iterator[Finding]:
    """What was measured while the clips were packed."""
    clipped = pc.greater_equal(clips["clipped_share"], CLIPPED_SHARE)
    for kind, found, said in (
        (Kind.CLIPPED, clipped, f"are clipped: {100 * CLIPPED_SHARE:g} % of their samples or more at full scale"),
        (Kind.CONSTANT, clips["constant"], "hold no sound: all their samples are alike"),
    ):
        if len(rows := np.flatnonzero(pc.fill_null(found, False).to_numpy())):
            yield _of_rows(kind, directory, f"{len(rows)} of {clips.num_rows} clips {said}", clips, rows)


def _published_counts(directory: Path, manifest: Manifest, clips: pa.Table) -> Iterator[Finding]:
    """Files against published clips, split by split; a validation split that is ours counts as train."""
    if manifest.dataset is None:
        return
    name = manifest.dataset["name"]
    if name not in DATASETS:
        yield finding(Kind.PUBLISHED_COUNT, directory, f"of data set {name}, which this version does not know")
        return
    published = DATASETS[name].clips
    files = clips.group_by(["split", "source"]).aggregate([])["split"]
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(files).to_pylist()}
    if "valid" not in published and "train" in published:
        found["train"] = found.get("train", 0) + found.pop("valid", 0)
    differing = [
        f"{split} {found.get(split, 0):,} of {count:,}"
        for split, count in published.items()
        if found.get(split, 0) != count
    ]
    if differing:
        options = ", ".join(f"{key}={value}" for key, value in manifest.dataset.get("options", {}).items())
        said = (
            f"files packed, of those that {name} publishes: {'; '.join(differing)}; {manifest.rejected} were rejected"
        )
        yield finding(Kind.PUBLISHED_COUNT, directory, said + (f" (packed with {options})" if options else ""))


def _labels(clips: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, label id) of every label of every clip."""
    column = clips["labels"].combine_chunks()
    parents, ids = pc.list_parent_indices(column), pc.list_flatten(column)
    return parents.to_numpy(zero_copy_only=False).astype(np.int64), ids.to_numpy(zero_copy_only=False).astype(np.int64)


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[Any]]:
    """A column as numbers, -1 for null, and what each number stands for."""
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary.to_pylist()


def _on_two_sides(codes: NDArray[np.int64], sides: NDArray[np.int64]) -> NDArray[np.int64]:
    """The codes that occur with more than one side; a side of -1 is none."""
    known = (codes >= 0) & (sides >= 0)
    if not known.any():
        return np.empty(0, np.int64)
    width = int(sides.max()) + 1
    pairs = np.unique(codes[known] * width + sides[known])
    return np.flatnonzero(np.bincount(pairs // width) > 1)


def _rows_where(wrong: Any) -> NDArray[np.int64]:
    """Rows that are true or null."""
    return np.flatnonzero(pc.fill_null(wrong, True).to_numpy())


def _example(clips: pa.Table, row: int, text: str = "") -> Example:
    return Example(text, row, clips["source"][row].as_py())


def _of_rows(
    kind: Kind, file: Path, said: str, clips: pa.Table, rows: NDArray[np.int64], texts: Iterable[str] = ("",) * EXAMPLES
) -> Finding:
    examples = [_example(clips, int(row), text) for row, text in zip(rows, texts, strict=False)]
    return finding(kind, file, said, examples, len(rows))


def _of_classes(kind: Kind, file: Path, said: str, names: tuple[str, ...], classes: NDArray[np.int64]) -> Finding:
    return finding(kind, file, said, [Example(names[number]) for number in classes[:EXAMPLES]], len(classes))
