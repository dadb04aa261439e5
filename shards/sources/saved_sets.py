"""A data set of the `datasets` library -> its rows: a folder that it saved, parquet files of it, or hf://datasets/NAME.

`datasets` keeps a set as Arrow files that are mapped into memory, with each recording's bytes as one piece; a row says
where they are in the file, so nothing is copied. Sets behind hf:// are downloaded by it, to its cache (HF_HOME).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from unfused_fast.errors import UserError, cause, escaped, in_unicode
from unfused_fast.optional import importing
from unfused_fast.shards.callbacks import OnMessage, no_message
from unfused_fast.shards.sources.csv_rows import numbered_names
from unfused_fast.shards.sources.location import ByteLocation, Kind, Location, refused
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.split_names import usual_splits

OPTIONS = {
    "audio": "the column with the recordings, where there are several",
    "label": "the column of labels: a name or class, or a list of them; none for none",
    "group": "the column that says what must stay on one side of a split, such as speaker_id",
    "config": "the configuration, of a set on the Hub that has several",
}
"""Of `--option`, for these sources."""
_ON_HUB = re.compile(r"hf:/{1,2}datasets/([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")


def is_saved_set(source: Path | str) -> bool:
    """Whether this is hf://datasets/..., a folder of save_to_disk, or one of parquet files that `datasets` wrote."""
    if str(source).startswith("hf:/"):
        return True
    folder = Path(source)
    names = {"dataset_dict.json", "state.json"}
    try:
        if not folder.is_dir() or (folder / "manifest.json").exists():  # a shard set has a parquet file too
            return False
        return any((folder / name).is_file() for name in names) or _is_of_datasets(next(_parquet_in(folder), None))
    except OSError:  # a folder that may not be read; listing it says so
        return False


def _parquet_in(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.parquet"))
    yield from sorted(folder.glob("data/*.parquet"))


def _is_of_datasets(file: Path | None) -> bool:
    if file is None:
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"huggingface" in (pq.read_schema(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def saved_rows(source: Path | str, choice: Mapping[str, str], note: OnMessage = no_message) -> list[SourceRow]:
    """The recordings of all its splits. Labels are those of the one column of classes, or of the column label or
    labels; groups and folds those of columns of these names. Usual names of splits become train, valid and test.

    Args:
        choice: OPTIONS -> columns.
        note: called with a sentence for each choice, and for what is not read.

    Raises:
        UserError: no such set, no column of audio, no such column, `datasets` is missing, or a set that it cannot read.
    """
    title = str(source)
    if unknown := [name for name in choice if name not in OPTIONS]:
        raise UserError(f"--option {unknown[0]}: no such option; a data set of `datasets` has {', '.join(OPTIONS)}")
    with importing("datasets", "datasets", title, "pip install '.[hub]'"):
        import datasets
        from huggingface_hub.errors import HfHubHTTPError
    network: Any = HfHubHTTPError.__mro__[1]  # of httpx, httpx2 or requests, by version
    try:
        found = _loaded(datasets, source, choice.get("config"))
    except ImportError as error:
        raise UserError(f"{title}: its recordings are not in its tables; `datasets` says: {error}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError, network) as error:
        said = " ".join(str(error).split())[:400] or cause(error)
        raise UserError(f"{title}: `datasets` cannot read it: {said}") from error
    splits = dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}
    columns = _columns(datasets, title, next(iter(splits.values())).features, choice, note)
    renamed = usual_splits(splits)
    rows = [
        row for name, split in splits.items() for row in _rows(split, columns, re.sub(r"\W", "_", renamed[name]), title)
    ]
    if not rows:
        raise UserError(f"{title}: no rows in it; name a set with recordings")
    return numbered_names(rows)


def _loaded(datasets: Any, source: Path | str, config: str | None) -> Any:
    """A Dataset, or a dict of them by split. No code of the set is run: `datasets` has none since version 4."""
    if str(source).startswith("hf:/"):
        named = _ON_HUB.fullmatch(str(source))
        if named is None:
            raise UserError(f"{source}: want hf://datasets/NAME or hf://datasets/USER/NAME, with @REVISION or not")
        return datasets.load_dataset(named[1], config, revision=named[2])
    if next(_parquet_in(Path(source)), None) is None:
        return datasets.load_from_disk(str(source))
    return datasets.load_dataset(str(source), config)


@dataclass(frozen=True)
class _Columns:
    """Names of the columns that are read, and the names of classes where the label is a number of one."""

    audio: str
    label: str | None
    classes: Sequence[str] | None
    group: str | None
    fold: str | None


def _columns(datasets: Any, title: str, features: Any, choice: Mapping[str, str], note: OnMessage) -> _Columns:
    for option, name in choice.items():
        if option != "config" and name not in features and (option, name) != ("label", "none"):
            raise UserError(f"--option {option}={name}: {title} has no such column; it has {', '.join(features)}")
    found = [name for name, kind in features.items() if isinstance(kind, datasets.Audio)]
    audio = [name for name in found if name == choice.get("audio", name)]
    if len(audio) != 1:
        advice = "choose one with --option audio=NAME" if found else "save the recordings in a column of type Audio"
        there = f"{', '.join(found) or 'none'} among {', '.join(features)}"
        raise UserError(f"{title}: one column of audio is needed, found {there}; {advice}")

    def classes(name: str) -> Sequence[str] | None:
        kind = getattr(features[name], "feature", features[name])  # of a list, its elements
        return kind.names if isinstance(kind, datasets.ClassLabel) else None

    of_classes = [name for name in features if classes(name) is not None]
    plain = [name for name in ("label", "labels") if name in features]
    label = choice.get("label") or next(iter(plain or (of_classes if len(of_classes) == 1 else [])), None)
    label = None if label == "none" else label
    group = choice.get("group") or ("group" if "group" in features else None)
    fold = "fold" if "fold" in features and str(features["fold"].dtype).startswith("int") else None
    used = [audio[0], *filter(None, (label, group, fold))]
    if label is not None:
        note(f"{title}: labels are those of column {label}")
    elif len(of_classes) > 1:
        note(f"{title}: columns {', '.join(of_classes)} have classes; choose one with --option label=NAME")
    if unread := [escaped(name)[:40] for name in features if name not in used]:
        note(f"{title}: columns not read: {', '.join(unread[:10])}{', ...' if unread[10:] else ''}")
    return _Columns(audio[0], label, None if label is None else classes(label), group, fold)


def _rows(split: Any, columns: _Columns, name: str, title: str) -> Iterator[SourceRow]:
    """Of one split, in its order."""
    if split._indices is not None:
        raise UserError(f"{title}: its rows are in another order than its files have; save it with save_to_disk first")
    wanted = [one for one in (columns.label, columns.group, columns.fold) if one is not None]
    if lacking := [one for one in (columns.audio, *wanted) if one not in split.features]:
        raise UserError(
            f"{title}: split {name} has no column {lacking[0]}, which the first split has; add it there, or choose "
            f"columns that all splits have, such as with --option label=none"
        )
    number = count()
    for file in split.cache_files:
        for batch, places in _batches(Path(file["filename"]), columns.audio):
            values = {one: batch.column(one).to_pylist() for one in wanted}
            for row, (location, path) in enumerate(places):
                own: dict[str | None, Any] = {one: _known(values[one][row]) for one in wanted}
                label, group, fold = (own.get(one) for one in (columns.label, columns.group, columns.fold))
                several = label if isinstance(label, list) else None
                names = [_label(one, columns.classes) for one in ([label] if several is None else several)]
                place = next(number)
                if fold is not None and not 0 <= fold < 10**9:
                    raise UserError(
                        f"{title}: row {place} of split {name} has fold {fold}, but a fold is a whole number such as "
                        "1; number the folds, or leave out the column"
                    )
                last = in_unicode(Path(path).name) if path else f"{place:09}"
                yield SourceRow(
                    location,
                    f"{name}/{last}",
                    names[0] if several is None else None,
                    name,
                    None if group is None else str(group),
                    fold,
                    () if several is None else tuple(dict.fromkeys(filter(None, names))),
                )


def _known(value: Any) -> Any:
    """None for NaN, as pandas writes what is not known."""
    return None if value != value else value


def _label(value: Any, classes: Sequence[str] | None) -> str | None:
    """Ours: -1 is a clip without a label, as in test splits of the Hub."""
    value = _known(value)
    if value is None or (classes is not None and value < 0):
        return None
    return (str(value) if classes is None else classes[value]).strip() or None


def _batches(file: Path, audio: str) -> Iterator[tuple[Any, list[tuple[Location, str | None]]]]:
    """The record batches of an Arrow file with, for each row, where the bytes of its recording are, and its path."""
    import numpy as np
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        base = mapped.read_buffer(mapped.size()).address
        mapped.seek(0)
        try:
            batches = list(pa.ipc.open_stream(mapped))
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(mapped)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            column = batch.column(audio)
            data, paths = column.field("bytes"), column.field("path").to_pylist()
            wide = pa.types.is_large_binary(data.type)
            ends = np.frombuffer(data.buffers()[1], np.int64 if wide else np.int32)[data.offset :][: len(data) + 1]
            start = 0 if data.buffers()[2] is None else data.buffers()[2].address - base
            there = data.is_valid().to_pylist()
            places: list[tuple[Location, str | None]] = []
            for row, path in enumerate(paths):
                if there[row]:
                    first, size = start + int(ends[row]), int(ends[row + 1] - ends[row])
                    places.append((ByteLocation((str(file),), Kind.STORED, first, size), path))
                elif path is not None and Path(path).is_absolute():
                    places.append((Path(path), path))
                else:
                    places.append((refused("its row has no recording, or only a name; save the set with it"), path))
            yield batch, places
