"""VoxCeleb1: 153,516 utterances of 1,251 speakers, the official split for identification."""

from __future__ import annotations

import re
from collections.abc import Mapping

from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant
from unfused_fast.shards.datasets.layout import files_below, lines_of, listed_and_there, not_published, require
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

TABLE = "iden_split.txt"
SPLITS = {"1": "train", "2": "valid", "3": "test"}
SPEAKERS = 1251
"""Source: EVAR evar/utils/make_metadata.py."""
CLIPS = {"train": 138361, "valid": 6904, "test": 8251}
"""Their sum is the published 153,516; each on its own is from memory, not verified."""
_LINE = re.compile(r"([123])\s+((id\d{5})/([^/]+)/[^/]+\.wav)")


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Label: the speaker's folder. Group: the YouTube video."""
    require(root, [TABLE])
    # As the archives unpack, or kept apart as s3prl does.
    parts = ("wav",) if (root / "wav").is_dir() else ("dev/wav", "test/wav")
    require(root, parts)
    place = {name: part for part in parts[1:] for name in files_below(root / part, ".wav")}
    rows = []
    for line in lines_of(root / TABLE):
        match = _LINE.fullmatch(line)
        if match is None:
            wanted = "1 id10001/1zcIwhmdeo4/00001.wav"
            raise not_published(root / TABLE, f"the line {line!r}, but a line must be like {wanted}")
        number, name, speaker, video = match.groups()
        source = f"{place.get(name, parts[0])}/{name}"
        rows.append(SourceRow(root / source, source, speaker, SPLITS[number], video))
    return listed_and_there(root, rows, TABLE, parts, CLIPS)


DATASET = Dataset(
    name="voxceleb1",
    task="speaker identification",
    variants=(Variant("speakers", {}, SPEAKERS, CLIPS),),
    licence="CC BY 4.0 (not verified), videos under their owners' copyright; by form",
    source="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html (vox1_dev_wav_parta{a..d} joined, "
    "vox1_test_wav.zip, meta/iden_split.txt)",
    layout="iden_split.txt and wav/idXXXXX/<youtube id>/<number>.wav, or dev/wav/ and test/wav/ in place of wav/",
    find=find,
    not_verified=("licence", "clips of each split (their sum, 153,516, is published)"),
)
