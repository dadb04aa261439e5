"""Bird detection: freefield1010 (7,690 clips), then warblrb10k (8,000), split as LAPE splits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import against_published, chosen, files_below, listed_and_there, records_of
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NAME = "birdsong"
LAYOUT = (
    "ff1010bird/ with wav/<itemid>.wav and ff1010bird_metadata_2018.csv, and warblrb10k/ with wav/<itemid>.wav and "
    "warblrb10k_public_metadata.csv"
)
TEST_FRACTION, SEED = 0.2, 1
"""Source: LAPE, train_test_split(test_size=0.2, random_state=1, stratify=Label) of both tables one after the other."""
CLIPS = {"train": 12552, "test": 3138}
LABELS = {"0": "absent", "1": "present"}
"""hasbird -> label; sorted, the labels keep its numbers."""


@dataclass(frozen=True)
class _Half:
    name: str
    published: int
    folders: tuple[str, ...]
    """Where people unpack it; the archives themselves hold only wav/."""
    tables: tuple[str, ...]
    """Newest first; figshare and DCASE ship it under several names."""


HALVES = (
    _Half(
        "freefield1010",
        7690,
        ("ff1010bird", "ff1010bird_wav", "freefield1010"),
        ("ff1010bird_metadata_2018.csv", "ff1010bird_metadata.csv"),
    ),
    _Half(
        "warblrb10k",
        8000,
        ("warblrb10k", "warblrb10k_public_wav", "warblrb10k_public"),
        ("warblrb10k_public_metadata_2018.csv", "warblrb10k_public_metadata.csv"),
    ),
)


def discover(root: Folder, given: Mapping[str, str]) -> Discovery:
    """Labels absent and present. The split is made over all lines of both tables, whether their files are there or
    not, so that a copy with gaps splits as the whole does. Each recording is a group of its own.
    """
    chosen(NAME, {}, given)
    rows: list[SourceRow] = []
    there: set[str] = set()
    notes = []
    for half in HALVES:
        folder, table = _find(root, half)
        records = records_of(root / table, ("itemid", "hasbird"))
        for record in records:
            name = f"{folder}/wav/{record['itemid'].removesuffix('.wav')}.wav"
            if record["hasbird"] not in LABELS:
                raise UserError(f"{root / table}: hasbird of {record['itemid']} is {record['hasbird']!r}, not 0 or 1")
            rows.append(SourceRow(root / name, name, LABELS[record["hasbird"]]))
        if len(records) != half.published:
            notes.append(
                f"{table} lists {len(records)} clips, {half.published} are published: the split is not LAPE's."
            )
        there |= {f"{folder}/wav/{name}" for name in files_below(root / folder / "wav", ".wav")}
    if len(rows) < 10 or {row.label for row in rows} != set(LABELS.values()):
        raise UserError(
            f"{root}: {len(rows)} clips are listed, too few of absent and present to split; fetch the tables again"
        )
    test = stratified_test([row.label or "" for row in rows], TEST_FRACTION, SEED)
    split = [replace(row, split="test" if held else "train") for row, held in zip(rows, test, strict=True)]
    found = listed_and_there(split, there, "the two tables", root)
    return Discovery(found.rows, [*notes, *found.notes, *against_published((row.split for row in found.rows), CLIPS)])


def _find(root: Folder, half: _Half) -> tuple[str, str]:
    """Names of a half's folder and table, below root. Raises UserError: not there."""
    folder = next((name for name in half.folders if (root / name / "wav").is_dir()), None)
    places = ("", f"{folder}/")
    table = next((place + name for name in half.tables for place in places if (root / place / name).is_file()), None)
    if folder is None or table is None:
        lacks = f"{half.folders[0]}/wav" if folder is None else half.tables[0]
        raise UserError(f"{root}: no {lacks} here, but {NAME} wants {LAYOUT}; name the folder that holds both")
    return folder, table


def stratified_test(labels: Sequence[str], fraction: float, seed: int) -> NDArray[np.bool_]:
    """(N,) whether scikit-learn's train_test_split(test_size=fraction, random_state=seed, stratify=labels) puts a row
    in test: its draws, one after the other, from numpy's RandomState.
    """
    _, classes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(classes)
    test_size = int(np.ceil(fraction * len(labels)))
    generator = np.random.RandomState(seed)
    in_train = _shares(sizes, len(labels) - test_size, generator)
    in_test = _shares(sizes - in_train, test_size, generator)
    test = np.zeros(len(labels), bool)
    for number, size in enumerate(sizes):
        order = np.flatnonzero(classes == number)[generator.permutation(size)]
        test[order[in_train[number] : in_train[number] + in_test[number]]] = True
    return test


def _shares(sizes: NDArray[np.int64], draws: int, generator: np.random.RandomState) -> NDArray[np.int64]:
    """How many of `draws` go to each class: in proportion, what is left over to the largest remainders, ties drawn."""
    exact = sizes / sizes.sum() * draws
    shares = np.floor(exact)
    remainders = exact - shares
    missing = int(draws - shares.sum())
    for value in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        tied = np.flatnonzero(remainders == value)
        added = min(len(tied), missing)
        shares[generator.choice(tied, size=added, replace=False)] += 1
        missing -= added
    counts: NDArray[np.int64] = shares.astype(np.int64)
    return counts


DATASET = Dataset(
    name=NAME,
    task="is a bird heard",
    variants=(Variant("bird or not", {}, 2, CLIPS),),
    licence="CC BY 4.0 (not verified), see the figshare pages",
    source="https://dcase.community/challenge2018/task-bird-audio-detection: ff1010bird_wav.zip, "
    "warblrb10k_public_wav.zip and their tables (figshare files 10853303 or 6035814, 10853306 or 6035817)",
    layout=LAYOUT,
    discover=discover,
    not_verified=("licence", "8,000 clips of warblrb10k (15,690 less 7,690)"),
)
