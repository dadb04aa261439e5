"""LibriSpeech train-clean-100 as speaker identification: 585 speaker-chapters (LAPE) or 251 readers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.datasets.layout import differs, first_of, left_out, listed_splits, matching, not_there
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.shards.sources.splits import with_test

SUBSET = "train-clean-100"
UTTERANCES, READERS, CHAPTERS = 28_539, 251, 585
"""In the whole subset. Source: the authors' utt2spk (utterances, chapters); s3prl's speaker lists (readers)."""
CLIPS = {"train": 22_830, "test": 5_708}
"""Lines of the lists. Source: s3prl speaker_linear_utter_libri/data/{train,test}_split.txt."""
LISTS = {"train": "train_split.txt", "test": "test_split.txt"}
SEED = 0
"""Of split=seeded. Ours: the lists of the authors are not shipped here."""

_FILE = re.compile(r"([0-9]+)-([0-9]+)-[0-9]+\.flac")


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Every utterance of the subset; the group is the chapter, recorded in one session."""
    split = choice["split"]
    if split == "chapters" and choice["label"] != "reader":
        raise UserError(
            "--option split=chapters keeps a chapter in one split, so it cannot be the label; add --option label=reader"
        )
    base = first_of(root, ("LibriSpeech", ""), SUBSET)
    notes: list[str] = []
    rows = list(_utterances(base, choice["label"], notes))
    if not rows:
        raise WrongLayout(f"{base / SUBSET}: no utterances in it")
    notes += differs("Utterances", len(rows), UTTERANCES)
    notes += differs("Readers", len({_reader(row) for row in rows}), READERS)
    notes += differs("Chapters", len({row.group for row in rows}), CHAPTERS)
    if split == "files":
        return Discovery(_by_lists(rows, root, base, notes), notes)
    if split == "chapters":
        return Discovery(_by_chapters(rows, notes), notes)
    share = CLIPS["test"] / sum(CLIPS.values())
    notes.append(
        f"The split is ours, {share:.0%} of each chapter in test as in the authors' lists; to use theirs, put "
        "train_split.txt and test_split.txt of s3prl into ROOT and add split=files."
    )
    rows = with_test(rows, lambda row: row.group, SEED, lambda n: min(max(1, round(share * n)), n - 1))
    return Discovery(rows, notes)


def _utterances(base: Folder, label: str, notes: list[str]) -> Iterator[SourceRow]:
    strays = list[str]()
    for path in matching(base / SUBSET, "*/*/*.flac"):
        name = _FILE.fullmatch(path.name)
        if name is None or name.groups() != path.parts[-3:-1]:
            strays.append(path.name)
            continue
        reader, chapter = name.groups()
        group = f"{reader}-{chapter}"
        source = path.relative_to(base).as_posix()
        yield SourceRow(path, source, group if label == "chapter" else reader, group=group)
    notes += left_out(strays, "FLAC file", "named by another reader or chapter than their folder")


def _by_lists(rows: list[SourceRow], root: Folder, base: Folder, notes: list[str]) -> list[SourceRow]:
    lists = {}
    for split, name in LISTS.items():
        found = [place / name for place in (root, base) if (place / name).is_file()]
        if not found:
            raise UserError(
                f"{root}: no {name}, which --option split=files needs; put it there or use --option split=seeded"
            )
        lists[split] = found[0]
    splits = {PurePosixPath(name).stem: split for name, split in listed_splits(lists).items()}
    counts = Counter(splits.values())
    for split, name in LISTS.items():
        notes += differs(f"Utterances in {name}", counts[split], CLIPS[split])
    kept = [replace(row, split=splits[_utterance(row)]) for row in rows if _utterance(row) in splits]
    if not kept:
        raise UserError(f"{root}: the lists name none of the utterances here; a line must begin like 103-1240-0000")
    notes += not_there(sorted(splits.keys() - {_utterance(row) for row in kept}), "utterance", "the lists")
    notes += left_out([row.source for row in rows if _utterance(row) not in splits], "utterance", "in neither list")
    return kept


def _by_chapters(rows: list[SourceRow], notes: list[str]) -> list[SourceRow]:
    """Ours: the shortest chapter of each reader is the test, so that most of the speech is left for training."""
    sizes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        sizes[_reader(row)][row.group or ""] += 1
    test = {min(chapters, key=lambda name: (chapters[name], name)) for chapters in sizes.values() if len(chapters) > 1}
    if not test:
        raise UserError("--option split=chapters: no reader here has two chapters; use --option split=seeded")
    kept = [row for row in rows if len(sizes[_reader(row)]) > 1]
    notes.append("The split by chapters is ours: the chapter with the fewest utterances of each reader is the test.")
    lone = [row.source for row in rows if len(sizes[_reader(row)]) == 1]
    notes += left_out(lone, "utterance", "of readers with one chapter only")
    return [replace(row, split="test" if row.group in test else "train") for row in kept]


def _reader(row: SourceRow) -> str:
    return row.source.split("/")[-3]


def _utterance(row: SourceRow) -> str:
    return PurePosixPath(row.source).stem


DATASET = Dataset(
    name="librispeech-speaker",
    task="speaker identification: 585 speaker-chapters (LAPE), or with label=reader 251 readers",
    variants=(
        Variant("speaker-chapters", {"label": "chapter"}, CHAPTERS, CLIPS),
        Variant("readers", {"label": "reader"}, READERS, CLIPS),
    ),
    licence="CC BY 4.0",
    source="https://www.openslr.org/12 (train-clean-100.tar.gz)",
    layout=f"ROOT/LibriSpeech/{SUBSET}/<reader>/<chapter>/<reader>-<chapter>-<utterance>.flac; "
    "with split=files also ROOT/train_split.txt and ROOT/test_split.txt",
    find=find,
    options={"label": ("chapter", "reader"), "split": ("seeded", "files", "chapters")},
)
