"""Which Freesound recordings other data sets are cut from, so that pre-training does not hear what they test on."""

from __future__ import annotations

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets import birdsong, urbansound8k
from unfused_fast.shards.datasets.layout import records_of
from unfused_fast.shards.sources.location import Folder

_FIELD_RECORDINGS = birdsong.HALVES[0]
_TABLES = {
    urbansound8k.NAME: ("fsID", [f"{place}{urbansound8k.TABLE}" for place in (f"{urbansound8k.FOLDER}/", "")]),
    _FIELD_RECORDINGS.name: (
        "itemid",
        [
            f"{place}{table}"
            for place in ("", *(f"{folder}/" for folder in _FIELD_RECORDINGS.folders))
            for table in _FIELD_RECORDINGS.tables
        ],
    ),
}
"""Data set -> the column of Freesound ids, and where its table may lie. Source for fsID: soundata urbansound8k.py.
Not verified for itemid: freefield1010 is cut from Freesound, and its items are taken to be named by Freesound's ids."""


def freesound_ids(place: Folder) -> dict[str, set[str]]:
    """Data set -> Freesound ids it uses, for those that lie in a folder; or for the one whose table is named.

    Raises:
        UserError: nothing there, or neither UrbanSound8K nor freefield1010.
    """
    if place.is_file():
        tables = {name: place for name, (_, paths) in _TABLES.items() if place.name in {_name(path) for path in paths}}
    else:
        found = {
            name: next((place / path for path in paths if (place / path).is_file()), None)
            for name, (_, paths) in _TABLES.items()
        }
        tables = {name: path for name, path in found.items() if path is not None}
    if not tables:
        raise UserError(
            f"{place}: neither UrbanSound8K nor freefield1010; name the folder that you give to --dataset urbansound8k "
            "or birdsong, or their table UrbanSound8K.csv or ff1010bird_metadata_2018.csv"
        )
    ids = {
        name: {record[column].removesuffix(".wav") for record in records_of(path, (column,))}
        for name, path in tables.items()
        for column in _TABLES[name][:1]
    }
    for name, numbers in ids.items():
        if not any(number.isdecimal() for number in numbers):
            raise UserError(f"{tables[name]}: no numbers in column {_TABLES[name][0]}; fetch the file again")
    return ids


def _name(path: str) -> str:
    return path.rpartition("/")[2]
