"""Speech Commands v1 and v2: all words, or ten words and `unknown`. The class `silence` is not packed yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery
from unfused_fast.shards.datasets.layout import against_published, chosen, lines_of
from unfused_fast.shards.sources import SourceRow

TEN = frozenset({"down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes"})
"""The words of the 12-class task; every other word is `unknown`."""
WORDS_V1 = TEN | frozenset(
    {
        "bed",
        "bird",
        "cat",
        "dog",
        "eight",
        "five",
        "four",
        "happy",
        "house",
        "marvin",
        "nine",
        "one",
        "seven",
        "sheila",
        "six",
        "three",
        "tree",
        "two",
        "wow",
        "zero",
    }
)
ONLY_V2 = frozenset({"backward", "follow", "forward", "learn", "visual"})
NOISE = "_background_noise_"
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}

_FILE = re.compile(r"([0-9A-Za-z]+)_nohash_[0-9]+\.wav")


@dataclass(frozen=True)
class _Version:
    """What differs between the two publications. Clips: source EVAR evar/utils/make_metadata.py."""

    number: int
    words: frozenset[str]
    clips: Mapping[str, int]
    protocols: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"speechcommands-v{self.number}"

    @property
    def archive(self) -> str:
        return f"speech_commands_v0.0{self.number}"

    @property
    def test_archive(self) -> str:
        return f"speech_commands_test_set_v0.0{self.number}"

    @property
    def layout(self) -> str:
        return (
            f"ROOT/<word>/<speaker>_nohash_<n>.wav, ROOT/{NOISE}/*.wav, ROOT/validation_list.txt, ROOT/testing_list.txt"
            f" (or all this in ROOT/{self.archive}; or as on Kaggle: ROOT/train/audio/<word>, the lists in ROOT/train);"
            f" protocol=tf12 also needs ROOT/{self.test_archive}/<word, _unknown_ or _silence_>/*.wav"
        )


V1 = _Version(1, WORDS_V1, {"train": 51_088, "valid": 6_798, "test": 6_835}, ("lape", "tf12", "words"))
V2 = _Version(2, WORDS_V1 | ONLY_V2, {"train": 84_843, "valid": 9_981, "test": 11_005}, ("words", "lape", "tf12"))
"""Ours: words is the default of v2, the one protocol that is packed whole; v1 is in the papers with 12 classes only."""


def discover_v1(root: Path, options: Mapping[str, str]) -> Discovery:
    return _discover(root, options, V1)


def discover_v2(root: Path, options: Mapping[str, str]) -> Discovery:
    return _discover(root, options, V2)


def _discover(root: Path, options: Mapping[str, str], version: _Version) -> Discovery:
    """Every clip of a word; the group is the speaker's hash before `_nohash_`."""
    protocol = chosen(version.name, {"protocol": version.protocols}, options)["protocol"]
    base = _base(root, version)
    notes: list[str] = []
    splits = _listed(base, version)
    rows, strays = [], 0
    for word in sorted(version.words):
        for path in sorted((base / word).glob("*.wav")):
            source = f"{word}/{path.name}"
            name = _FILE.fullmatch(path.name)
            if name is None:
                strays += not path.name.startswith(".")
                continue
            rows.append(SourceRow(path, source, _label(word, protocol), splits.get(source, "train"), name[1]))
    if not rows:
        raise UserError(f"{base}: word folders without clips; the layout must be: {version.layout}")
    if strays:
        notes.append(f"{strays} WAV files left out: their names are not <speaker>_nohash_<n>.wav.")
    if absent := splits.keys() - {row.source for row in rows}:
        notes.append(f"{len(absent):,} clips of the lists are not here, such as {min(absent)}.")
    notes += against_published((row.split for row in rows), version.clips)
    if other := _folders(base) - version.words - {NOISE, "train", version.archive, version.test_archive}:
        notes.append(f"Folders left out, no words of v{version.number}: {', '.join(sorted(other)[:5])}.")
    if protocol == "tf12":
        rows = [row for row in rows if row.split != "test"] + _test_archive(root, version)
        notes.append(
            f"Test clips come from {version.test_archive}; the clips of testing_list.txt are in no split. "
            "Training keeps every unknown word, in its natural number."
        )
    if protocol != "words":
        notes.append(
            f"protocol={protocol} has 12 classes, of which 11 are packed: silence is not there yet, "
            f"because it is cut from inside the files of {NOISE}. Numbers do not compare with published 12-class ones."
        )
    return Discovery(rows, notes)


def _label(word: str, protocol: str) -> str:
    return word if protocol == "words" or word in TEN else "unknown"


def _base(root: Path, version: _Version) -> Path:
    """The folder of the word folders, known by the ten words; the other version is refused by its words."""
    for base in (root, root / version.archive, root / "train" / "audio"):
        found = _folders(base) if base.is_dir() else set()
        if not found & TEN:
            continue
        if version is V1 and found & ONLY_V2:
            word = min(found & ONLY_V2)
            raise UserError(f"{base}: the folder {word} is of v2, this is v1; say --dataset {V2.name}")
        if version is V2 and not found & ONLY_V2:
            raise UserError(f"{base}: none of {', '.join(sorted(ONLY_V2))}, so this is v1; say --dataset {V1.name}")
        return base
    raise UserError(f"{root}: no folders of words (yes, no, up, ...) here; the layout must be: {version.layout}")


def _folders(base: Path) -> set[str]:
    return {path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _listed(base: Path, version: _Version) -> dict[str, str]:
    """<word>/<file> -> split, for the clips in a list; the lists lie beside the words, on Kaggle one folder up."""
    splits: dict[str, str] = {}
    above = [base.parent] if base.parts[-2:] == ("train", "audio") else []
    for split, name in LISTS.items():
        path = next((folder / name for folder in (base, *above) if (folder / name).is_file()), None)
        if path is None:
            raise UserError(f"{base}: no {name}, which says the official split; the layout must be: {version.layout}")
        listed = {line.strip() for line in lines_of(path)}
        if both := listed & splits.keys():
            raise UserError(f"{path}: {min(both)} is in {LISTS['valid']} too; take the lists from the archive again")
        splits |= dict.fromkeys(listed, split)
    return splits


def _test_archive(root: Path, version: _Version) -> list[SourceRow]:
    """The balanced test set of its own. Not verified: how its `_unknown_` files are named; any WAV is taken."""
    base = root / version.test_archive
    if not base.is_dir():
        raise UserError(
            f"{root}: no {version.test_archive}, the test set of tf12; unpack {version.test_archive}.tar.gz"
        )
    rows = []
    for word in sorted(TEN | {"_unknown_"}):
        for path in sorted(base.glob(f"{word}/*.wav")):
            if not path.name.startswith("."):
                speaker = path.stem.partition("_nohash_")[0].rpartition("_")[2] if "_nohash_" in path.stem else None
                source = f"{version.test_archive}/{word}/{path.name}"
                rows.append(SourceRow(path, source, "unknown" if word == "_unknown_" else word, "test", speaker))
    if not rows:
        raise UserError(f"{base}: no test clips in it; the layout must be: {version.layout}")
    return rows


def _dataset(version: _Version, task: str, classes: int) -> Dataset:
    return Dataset(
        name=version.name,
        task=task,
        classes=classes,
        clips=version.clips,
        licence="CC BY 4.0",
        source=f"http://download.tensorflow.org/data/{version.archive}.tar.gz",
        layout=version.layout,
        discover=discover_v1 if version is V1 else discover_v2,
        options={"protocol": version.protocols},
    )


DATASET_V1 = _dataset(
    V1, "keyword spotting, 12 classes of which silence is not packed yet, so 11; protocol=words: 30 words", 11
)
DATASET_V2 = _dataset(
    V2, "keyword spotting, 35 words; protocol=lape|tf12: 12 classes of which silence is not packed yet, so 11", 35
)
