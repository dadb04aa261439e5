"""Speech Commands v1 and v2: all words, or ten words, `unknown` and `silence`."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import soundfile

from unfused_fast.errors import UserError, cause
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.datasets.layout import (
    differing_splits,
    differs,
    first_of,
    left_out,
    listed_splits,
    matching,
    not_there,
)
from unfused_fast.shards.sources.listing import is_clutter
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

TEN = frozenset({"down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes"})
"""The words of the 12-class task; every other word is `unknown`."""
WORDS_V1 = TEN | {
    "bed", "bird", "cat", "dog", "eight", "five", "four", "happy", "house", "marvin", "nine", "one", "seven", "sheila",
    "six", "three", "tree", "two", "wow", "zero",
}  # fmt: skip
ONLY_V2 = frozenset({"backward", "follow", "forward", "learn", "visual"})
NOISE = "_background_noise_"
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}

NOISE_FILES = 6
"""In both versions. Source: EVAR evar/utils/make_metadata.py."""
CHOPS, CHOP_SEED = 1000, 0
"""Of each noise file, protocol=lape. Source: LAPE, which draws them without a seed; the seed is ours."""
VALID_NOISE, HOP_SECONDS = "running_tap.wav", 0.5
"""protocol=tf12: the recording of valid; distance of slices. Source: hear-preprocess speech_commands.py."""
TEST_CLIPS = {1: 3_081, 2: 4_890}
"""Version -> files of the separate test archive, from memory, not verified."""

_FILE = re.compile(r"([0-9A-Za-z]+)_nohash_[0-9]+\.wav")


@dataclass(frozen=True)
class _Version:
    """What differs between the two publications. Clips: source EVAR evar/utils/make_metadata.py."""

    number: int
    words: frozenset[str]
    clips: Mapping[str, int]
    """Of words, without silence."""
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


V1 = _Version(1, WORDS_V1, {"train": 51_088, "valid": 6_798, "test": 6_835}, ("lape", "tf12", "words"))
V2 = _Version(2, WORDS_V1 | ONLY_V2, {"train": 84_843, "valid": 9_981, "test": 11_005}, ("words", "lape", "tf12"))
"""Ours: words is the default of v2, as EVAR and BYOL-A use it; v1 is in the papers with 12 classes only."""


def find(version: _Version, root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Every clip of a word; the group is the speaker's hash before `_nohash_`."""
    protocol, base, notes = choice["protocol"], _base(root, version), list[str]()
    beside = base.parent if base.parts[-2:] == ("train", "audio") and not (base / LISTS["test"]).is_file() else base
    splits = listed_splits({split: first_of(beside, (name,)) for split, name in LISTS.items()})
    rows, strays = list[SourceRow](), list[str]()
    for word in sorted(version.words):
        label = word if protocol == "words" or word in TEN else "unknown"
        for path in matching(base / word, "*.wav"):
            source, name = f"{word}/{path.name}", _FILE.fullmatch(path.name)
            if name is None:
                strays.append(source)
            else:
                rows.append(SourceRow(path, source, label, splits.get(source, "train"), name[1]))
    if not rows:
        raise WrongLayout(f"{base}: word folders without clips")
    other = _folders(base) - version.words - {NOISE, "train", version.archive, version.test_archive}
    notes += left_out(strays, "WAV file", "its name is not <speaker>_nohash_<n>.wav")
    notes += left_out(sorted(other), "folder", f"no word of v{version.number}")
    notes += not_there(sorted(splits.keys() - {row.source for row in rows}), "clip", "the lists")
    notes += differing_splits(rows, version.clips)
    if protocol == "tf12":
        tested = _test_archive(root / version.test_archive)
        notes += differs("Clips of the test archive", len(tested), TEST_CLIPS[version.number])
        rows = [row for row in rows if row.split != "test"] + tested
        notes.append(
            f"Test clips come from {version.test_archive}; the clips of testing_list.txt are in no split. "
            "Training keeps all clips of unknown words, unbalanced."
        )
    if protocol != "words":
        rows += _silence(base, protocol, notes)
    return Discovery(rows, notes)


def _base(root: Folder, version: _Version) -> Folder:
    """The folder of the word folders, recognised by the ten words; the other version is refused by its words."""
    for base in (root, root / version.archive, root / "train" / "audio"):
        found = _folders(base) if base.is_dir() else set()
        if found & TEN:
            other = V1 if version is V2 else V2
            if bool(found & ONLY_V2) is (other is V2):
                raise UserError(f"{base}: these are the words of v{other.number}; use --dataset {other.name}")
            return base
    raise WrongLayout(f"{root}: no folders of words (yes, no, up, ...) here")


def _folders(base: Folder) -> set[str]:
    return {path.name for path in base.iterdir() if path.is_dir() and not is_clutter(path.name)}


def _test_archive(base: Folder) -> list[SourceRow]:
    """The separate, balanced test set. Not verified: how its `_unknown_` and `_silence_` files are named; any WAV is
    taken.
    """
    rows = []
    for word in sorted(TEN | {"_unknown_", "_silence_"}):
        for path in matching(base / word, "*.wav"):
            speaker = path.stem.partition("_nohash_")[0].rpartition("_")[2] if "_nohash_" in path.stem else None
            rows.append(SourceRow(path, f"{base.name}/{word}/{path.name}", word.strip("_"), "test", speaker))
    if not rows:
        raise WrongLayout(f"{base.parent}: no {base.name} with clips here, the test set of protocol=tf12")
    return rows


def _silence(base: Folder, protocol: str, notes: list[str]) -> list[SourceRow]:
    """One second each, cut from the noise recordings; the group is the recording."""
    paths = matching(base / NOISE, "*.wav")
    if not paths:
        raise WrongLayout(f"{base}: no {NOISE}/*.wav, from which protocol={protocol} cuts silence")
    notes += differs("Noise recordings", len(paths), NOISE_FILES)
    rows = []
    for path in paths:
        seconds = _seconds(path, notes)
        source = f"{NOISE}/{path.name}"
        split = "valid" if protocol == "tf12" and path.name == VALID_NOISE else "train"
        starts = _starts(protocol, path.name, seconds)
        rows += [
            SourceRow(path, f"{source}@{start:.3f}-{start + 1:.3f}", "silence", split, source, span=(start, start + 1))
            for start in starts
        ]
        if protocol == "lape" and len(starts) < CHOPS:
            notes += differs(f"Silences in {source}, {seconds:.1f} s long", len(starts), CHOPS)
    if protocol == "lape":
        notes.append(f"Clips of silence: {len(rows):,}, all in train as in LAPE. The draw is ours; theirs has no seed.")
    return rows


def _seconds(path: Folder, notes: list[str]) -> float:
    """Length of a recording; 0, with a note, for one that cannot be read."""
    try:
        with path.open("rb") as stream:
            return float(soundfile.info(stream).duration)
    except (OSError, soundfile.LibsndfileError) as error:
        why = cause(error) if isinstance(error, OSError) else error.error_string
        notes.append(f"{NOISE}/{path.name} cannot be read, so it gives no silence: {why}")
        return 0.0


def _starts(protocol: str, name: str, seconds: float) -> list[float]:
    """lape: `CHOPS` different starts in whole milliseconds, ascending, whose draw depends on no other recording; tf12:
    every `HOP_SECONDS`, as long as a whole second is left.
    """
    if seconds < 1:
        return []
    if protocol == "tf12":
        return [HOP_SECONDS * number for number in range(int((seconds - 1) / HOP_SECONDS) + 1)]
    places = range(int((seconds - 1) * 1000) + 1)
    chosen = random.Random(f"{CHOP_SEED} {name}").sample(places, min(CHOPS, len(places)))
    return [start / 1000 for start in sorted(chosen)]


def _variants(version: _Version) -> Iterator[Variant]:
    for protocol in version.protocols:
        clips = dict(version.clips)
        if protocol == "lape":
            clips["train"] += NOISE_FILES * CHOPS
        if protocol == "tf12":
            clips = {"test": TEST_CLIPS[version.number]}
        name = f"{len(version.words)} words" if protocol == "words" else "ten words, unknown, silence"
        classes = len(version.words) if protocol == "words" else len(TEN) + 2
        yield Variant(f"{name} ({protocol})", {"protocol": protocol}, classes, clips)


DATASET_V1, DATASET_V2 = (
    Dataset(
        name=version.name,
        task="keyword spotting",
        variants=tuple(_variants(version)),
        licence="CC BY 4.0",
        source=f"http://download.tensorflow.org/data/{version.archive}.tar.gz; for protocol=tf12 also "
        f"http://download.tensorflow.org/data/{version.test_archive}.tar.gz",
        layout=f"ROOT/<word>/<speaker>_nohash_<n>.wav, ROOT/{NOISE}/*.wav, ROOT/validation_list.txt, "
        f"ROOT/testing_list.txt (or all this in ROOT/{version.archive}; or as on Kaggle: ROOT/train/audio/<word>, the "
        f"lists in ROOT/train); protocol=tf12 also needs ROOT/{version.test_archive}/<word, _unknown_ or "
        "_silence_>/*.wav",
        find=partial(find, version),
        options={"protocol": version.protocols},
        not_verified=("clips and file names of the separate test archive", "LAPE's 6,000 chops of silence: unseeded"),
    )
    for version in (V1, V2)
)
