"""Bird detection: freefield1010 (7,690 clips), then warblrb10k (8,000), split as LAPE splits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import differs, first_of, listed_and_there, not_published, records_of
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

TEST_FRACTION, SEED = 0.2, 1
"""Source: LAPE, train_test_split(test_size=0.2, random_state=1, stratify=Label) of both tables one after the other."""
CLIPS = {"train": 12552, "test": 3138}
LABELS = {"0": "absent", "1": "present"}
"""hasbird -> label; sorted, the labels keep its numbers."""


class Half(NamedTuple):
    """One of the two sets."""

    published: int
    """Clips."""
    folders: tuple[str, ...]
    """Usual folders to unpack it into; the archives themselves hold only wav/."""
    tables: tuple[str, ...]
    """Newest first; figshare and DCASE ship it under several names."""


FREEFIELD = Half(
    7690,
    ("ff1010bird", "ff1010bird_wav", "freefield1010"),
    ("ff1010bird_metadata_2018.csv", "ff1010bird_metadata.csv"),
)
WARBLR = Half(
    8000,
    ("warblrb10k", "warblrb10k_public_wav", "warblrb10k_public"),
    ("warblrb10k_public_metadata_2018.csv", "warblrb10k_public_metadata.csv"),
)


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Labels absent and present. The split is made over all lines of both tables, whether their files are there or
    not, so that a copy with gaps splits as the whole does. Each recording is a separate group.
    """
    from sklearn.model_selection import train_test_split

    rows, folders, notes = list[SourceRow](), list[str](), list[str]()
    for half in (FREEFIELD, WARBLR):
        folder = first_of(root, half.folders, "wav").name
        table = first_of(root, [place + name for name in half.tables for place in ("", f"{folder}/")])
        records = list(records_of(table, ("itemid", "hasbird")))
        for record in records:
            name = f"{folder}/wav/{record['itemid'].removesuffix('.wav')}.wav"
            if record["hasbird"] not in LABELS:
                raise not_published(table, f"hasbird of {record['itemid']} is {record['hasbird']!r}, not 0 or 1")
            rows.append(SourceRow(root / name, name, LABELS[record["hasbird"]]))
        notes += differs(f"Lines of {table.name}, over which the split is made", len(records), half.published)
        folders.append(f"{folder}/wav")
    if len(rows) < 10 or {row.label for row in rows} != set(LABELS.values()):
        raise UserError(f"{root}: too few clips of absent and present are listed to split; download the tables again")
    labels = [row.label for row in rows]
    _, test = train_test_split(range(len(rows)), test_size=TEST_FRACTION, random_state=SEED, stratify=labels)
    for place in test:
        rows[place] = replace(rows[place], split="test")
    found = listed_and_there(root, rows, "the two tables", folders, CLIPS)
    return Discovery(found.rows, [*notes, *found.notes])


DATASET = Dataset(
    name="birdsong",
    task="bird detection",
    variants=(Variant("bird or not", {}, 2, CLIPS),),
    licence="CC BY 4.0 (not verified), see the figshare pages",
    source="https://dcase.community/challenge2018/task-bird-audio-detection: ff1010bird_wav.zip, "
    "warblrb10k_public_wav.zip and their tables (figshare files 10853303 or 6035814, 10853306 or 6035817)",
    layout="ff1010bird/ with wav/<itemid>.wav and ff1010bird_metadata_2018.csv, and warblrb10k/ with wav/<itemid>.wav "
    "and warblrb10k_public_metadata.csv",
    find=find,
    not_verified=("licence", "8,000 clips of warblrb10k (15,690 less 7,690)"),
)
