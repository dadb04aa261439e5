"""VoxCeleb1: 153,516 utterances of 1,251 speakers, the official split for identification."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import (
    against_published,
    chosen,
    files_below,
    lines_of,
    listed_and_there,
    require,
)
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

NAME, TABLE = "voxceleb1", "iden_split.txt"
LAYOUT = "iden_split.txt and wav/idXXXXX/<youtube id>/<number>.wav, or dev/wav/ and test/wav/ in place of wav/"
PARTS = (("wav",), ("dev/wav", "test/wav"))
"""Where the audio may lie: as the archives unpack, or kept apart as s3prl does."""
SPLITS = {"1": "train", "2": "valid", "3": "test"}
SPEAKERS, UTTERANCES = 1251, 153_516
"""Of iden_split.txt. Source: EVAR evar/utils/make_metadata.py."""
CLIPS = {"train": 138361, "valid": 6904, "test": 8251}
"""Their sum is the published 153,516; each on its own is from memory, not verified."""
_LINE = re.compile(r"([123])\s+((id\d{5})/([^/]+)/[^/]+\.wav)")


def discover(root: Folder, given: Mapping[str, str]) -> Discovery:
    """Label: the speaker's folder. Group: the YouTube video."""
    chosen(NAME, {}, given)
    require(root, [TABLE], NAME, LAYOUT)
    parts = next((parts for parts in PARTS if any((root / part).is_dir() for part in parts)), None)
    if parts is None:
        raise UserError(f"{root}: no wav here, nor dev/wav and test/wav, but {NAME} wants {LAYOUT}")
    require(root, parts, NAME, LAYOUT)
    place = {name: part for part in parts for name in files_below(root / part, ".wav")}
    rows, notes = [], list[str]()
    for line in lines_of(root / TABLE):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{root / TABLE}: the line {line!r}, but a line must be like 1 id10001/1zcIwhmdeo4/00001.wav; "
                "fetch the file again"
            )
        number, name, speaker, video = match.groups()
        source = f"{place.get(name, parts[0])}/{name}"
        rows.append(SourceRow(root / source, source, speaker, SPLITS[number], video))
    _say_of_table(rows, notes)
    found = listed_and_there(rows, {f"{part}/{name}" for name, part in place.items()}, TABLE, root)
    splits_of: dict[str | None, set[str]] = {}
    for row in found.rows:
        splits_of.setdefault(row.group, set()).add(row.split)
    shared = sum(len(splits) > 1 for splits in splits_of.values())
    if shared:
        found.notes.append(f"{shared} of {len(splits_of)} videos are in more than one of the official splits.")
    found.notes.extend(against_published((row.split for row in found.rows), CLIPS))
    return Discovery(found.rows, notes + found.notes)


def _say_of_table(rows: list[SourceRow], notes: list[str]) -> None:
    """The table itself against what is published of it, whatever audio there is."""
    speakers = len({row.label for row in rows})
    if (len(rows), speakers) != (UTTERANCES, SPEAKERS):
        notes.append(
            f"{TABLE} lists {len(rows):,} clips of {speakers:,} speakers; published: {UTTERANCES:,} of {SPEAKERS:,}."
        )
    counts = Counter(row.split for row in rows)
    if len(rows) == UTTERANCES and counts != CLIPS:
        numbers = ", ".join(f"{counts[split]:,} {split}" for split in CLIPS)
        notes.append(f"{TABLE} lists {numbers}: the clips of each split in --list, not verified, are wrong.")


DATASET = Dataset(
    name=NAME,
    task="speaker identification",
    variants=(Variant("speakers", {}, SPEAKERS, CLIPS),),
    licence="CC BY 4.0 (not verified), videos under their owners' copyright; by form",
    source="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html (vox1_dev_wav_parta{a..d} joined, "
    "vox1_test_wav.zip, meta/iden_split.txt)",
    layout=LAYOUT,
    discover=discover,
    not_verified=("licence", "clips of each split (their sum, 153,516, is published)"),
)
