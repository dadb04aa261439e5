"""IEMOCAP: four emotions in five sessions, each of two actors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.dataset import Dataset, Discovery, Variant, WrongLayout
from unfused_fast.shards.datasets.layout import differs, first_of, left_out, lines_of, matching, not_published
from unfused_fast.shards.sources.location import Folder
from unfused_fast.shards.sources.row import SourceRow

EMOTIONS = ("neu", "ang", "sad", "hap")
SESSIONS = range(1, 6)
CLIPS = {"drop": {"train": 3_548, "test": 942}, "hap": {"train": 4_290, "test": 1_241}}
"""exc -> clips of sessions 1 to 4 and of session 5. Source: DECAR notebook cells 4-8 (drop); s3prl meta JSON (hap)."""

_TURN = re.compile(r"\[[^\t]*\t\s*(Ses[0-9A-Za-z_]+_[0-9A-Za-z]+)\s*\t([^\t]*)(?:\t.*)?")


def find(root: Folder, choice: Mapping[str, str]) -> Discovery:
    """Every turn with one of the four emotions; fold and group are the session, whose two actors are in no other."""
    exc, test = choice["exc"], choice["test"]
    base = first_of(root, ("IEMOCAP_full_release", "IEMOCAP", ""), "Session1")
    rows, notes, absent = list[SourceRow](), list[str](), list[str]()
    for session in SESSIONS:
        evaluations = base / f"Session{session}" / "dialog" / "EmoEvaluation"
        if not evaluations.is_dir():
            notes.append(f"Session {session} is not here: no Session{session}/dialog/EmoEvaluation.")
            continue
        for turn, emotion in _turns(evaluations):
            label = "hap" if emotion == "exc" and exc == "hap" else emotion
            if label not in EMOTIONS:
                continue
            source = f"Session{session}/sentences/wav/{turn.rpartition('_')[0]}/{turn}.wav"
            if not (base / source).is_file():
                absent.append(turn)
                continue
            split = "test" if test == "session5" and session == 5 else "train"
            rows.append(SourceRow(base / source, source, label, split, f"Session{session}", fold=session))
    if not rows:
        raise WrongLayout(f"{base}: no turn with both an emotion and a WAV file")
    notes += left_out(absent, "turn", "an emotion but no WAV file")
    counts = {split: sum((row.fold == 5) == (split == "test") for row in rows) for split in ("train", "test")}
    for sessions, split in (("sessions 1 to 4", "train"), ("session 5", "test")):
        if test == "session5" and not counts[split]:
            raise UserError(
                f"{base}: no clips of {sessions}, but session 5 is the test; add {sessions} or use test=cv5"
            )
        notes += differs(f"Clips of {sessions} with exc={exc}", counts[split], CLIPS[exc][split])
    if test == "cv5":
        notes.append("All clips are in split train; the fold is the session, each of which is the test once.")
    return Discovery(sorted(rows, key=lambda row: row.source), notes)


def _turns(evaluations: Folder) -> Iterator[tuple[str, str]]:
    """(turn, emotion) of a session. Only the files at the top: the folders below hold the ratings of single raters.

    A turn is one line `[start - end]<TAB>turn<TAB>emotion<TAB>[v, a, d]`; the lines that follow it are single votes.
    """
    seen: set[str] = set()
    for path in matching(evaluations, "*.txt"):
        for line in lines_of(path):
            if not line.startswith("["):
                continue
            match = _TURN.fullmatch(line)
            if match is None:
                raise not_published(path, f"no turn and emotion after the times in {line[:80]!r}, separated by tabs")
            turn, emotion = match.groups()
            if turn in seen:
                raise UserError(f"{path}: {turn} appears twice; delete the copy of its dialog")
            seen.add(turn)
            yield turn, emotion.strip()


DATASET = Dataset(
    name="iemocap",
    task="emotion recognition, 4 emotions",
    variants=tuple(
        Variant(f"4 emotions, {description}", {"exc": exc}, len(EMOTIONS), clips)
        for (exc, clips), description in zip(CLIPS.items(), ("without excited", "excited counts as happy"), strict=True)
    ),
    licence="by signed form, for research",
    source="https://sail.usc.edu/iemocap (signed form; no open download)",
    layout="ROOT/IEMOCAP_full_release/Session<1-5>/sentences/wav/<dialog>/<turn>.wav and "
    "Session<1-5>/dialog/EmoEvaluation/<dialog>.txt",
    find=find,
    options={"exc": ("drop", "hap"), "test": ("session5", "cv5")},
)
