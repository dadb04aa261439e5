"""The tasks of the papers as data: LAPE's eleven and DECAR's nine, with the numbers that the papers print.

"Paper" is UnFuSeD (arXiv 2303.05668), "DECAR" arXiv 2110.08895, "authors" the code they released. What no source gives
is None, or marked as ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unfused_fast.config.bounds import chosen_names

LAPE_COLUMNS = ("BYOL-A", "SimCLR", "DECAR-v1", "DeLoRes-S", "MoCo", "DeLoRes-M", "DECAR-v2", "UnFuSeD")
"""Source: paper Table 1: linear evaluation, frozen encoder, accuracy in per cent."""
DECAR_COLUMNS = (
    "random, frozen",
    "random, fine-tuned",
    "DECAR, frozen",
    "DECAR, fine-tuned",
    "k-means 256",
    "k-means 512",
    "k-means 1024",
    "PIC",
)
"""Source: DECAR Table 2 (the first four) and Table 3 (fine-tuned, by clustering), test accuracy in per cent. `PIC` of
Table 3 is `DECAR, fine-tuned` of Table 2.
"""


@dataclass(frozen=True)
class Task:
    """One task of a paper's table."""

    name: str
    """On our command line."""
    title: str
    """In the paper."""
    benchmark: Literal["lape", "decar"]
    kind: Literal["speech", "non-speech"] | None
    """As LAPE groups them."""
    dataset: str
    """Adapter, see `shard --list`."""
    labels: str
    """What the label of a clip is."""
    classes: int
    seconds: float
    """lape: the window of the authors' code, in seconds; decar: average duration in DECAR Table 1."""
    split: str
    """How train and test are separated, and by whom."""
    results: Mapping[str, float | None]
    """Column of the paper -> accuracy in per cent; None where the paper has a dash."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the adapter, on the way to the paper's split."""
    by_folds: bool = False
    """Cross-validated over the folds that the publisher made."""
    unclear: str = ""
    """What the sources leave open, or state in two ways."""


def _lape(*numbers: float | None) -> dict[str, float | None]:
    return dict(zip(LAPE_COLUMNS, numbers, strict=True))


_SPEECH_COMMANDS = "testing_list.txt is the test; validation_list.txt is held out, which the authors train on"
_TWELVE = "ten words, every other word `unknown`, and `silence`, which the test does not have"
_VOXFORGE = "random 80/20 of each language, as the authors' (not by speaker); the draw is ours, theirs is not published"
_BIRDS = "both tables one after the other, stratified 80/20, seed 1, as the authors"
_SESSIONS = "sessions 1 to 4 against session 5"
_TUT = "fold1_train.txt against fold1_evaluate.txt"
_LIBRISPEECH = "a fifth of each chapter is the test; our draw, or s3prl's lists with split=files"

LAPE_TASKS = (
    Task(
        "sc-v1", "SC-V1", "lape", "speech", "speechcommands-v1", _TWELVE, 12, 1.0, _SPEECH_COMMANDS,
        _lape(None, 77.3, 82.3, 86.1, 93.6, 94.0, 91.6, 94.4),
        {"protocol": "lape"},
        unclear="the authors' 6,000 clips of silence are drawn without a seed",
    ),
    Task(
        "sc-v2-12", "SC-V2(12)", "lape", "speech", "speechcommands-v2", _TWELVE, 12, 1.0, _SPEECH_COMMANDS,
        _lape(91.0, 77.2, 83.0, 85.4, 93.2, 93.3, 90.6, 94.1),
        {"protocol": "lape"},
        unclear="as sc-v1",
    ),
    Task(
        "sc-v2-35", "SC-V2(35)", "lape", "speech", "speechcommands-v2", "the word", 35, 1.0, _SPEECH_COMMANDS,
        _lape(92.2, 66.0, 73.6, 80.0, 89.3, 89.7, 87.2, 90.1),
        {"protocol": "words"},
    ),
    Task(
        "lbs", "LBS", "lape", "speech", "librispeech-speaker", "reader and chapter", 585, 13.0, _LIBRISPEECH,
        _lape(None, 89.0, 91.0, 90.0, 95.5, 95.7, 92.5, 97.0),
        {"label": "chapter"},
        unclear="called speaker identification, but a class is a chapter of one of 251 readers",
    ),
    Task(
        "vc", "VC", "lape", "speech", "voxceleb1", "the speaker", 1251, 8.0, "iden_split.txt, as its publisher",
        _lape(40.1, 28.9, 25.6, 31.2, 42.5, 45.3, 33.0, 50.0),
        unclear="1,251 speakers in the authors' code, 1,211 in DECAR Table 1; their lists are not published",
    ),
    Task(
        "ic", "IC", "lape", "speech", "iemocap", "neutral, angry, sad, happy (without excited)", 4, 4.0, _SESSIONS,
        _lape(None, 59.8, 63.2, 60.7, 65.1, 65.2, 65.2, 66.0),
        {"exc": "drop", "test": "session5"},
    ),
    Task(
        "vf", "VF", "lape", "speech", "voxforge", "the language", 6, 6.0, _VOXFORGE,
        _lape(90.2, 69.2, 74.1, 76.5, 87.3, 88.0, 78.2, 89.8),
        {"protocol": "random"},
        unclear="which 8,803 clips (DECAR Table 1) of the site's are used is not published",
    ),
    Task(
        "ns", "NS", "lape", "non-speech", "nsynth", "the instrument's family", 11, 4.0,
        "nsynth-train against nsynth-valid, as the authors' code",
        _lape(74.1, 61.3, 70.7, 66.3, 74.7, 75.0, 69.8, 76.4),
        {"test": "valid"},
        unclear="whether the paper tested on the official valid or test split",
    ),
    Task(
        "bsd", "BSD", "lape", "non-speech", "birdsong", "whether a bird is heard", 2, 10.0, _BIRDS,
        _lape(None, 85.2, 87.7, 86.7, 89.0, 89.6, 88.5, 90.0),
    ),
    Task(
        "tut", "TUT", "lape", "non-speech", "tut2018", "the scene", 10, 9.0, _TUT,
        _lape(None, 52.4, 62.5, 58.6, 66.7, 65.7, 64.6, 66.8),
    ),
    Task(
        "us8k", "US8K", "lape", "non-speech", "urbansound8k", "the sound's class", 10, 4.0,
        "mean over the ten published folds, as BYOL-A",
        _lape(79.1, 69.1, 70.1, 71.2, 81.2, 82.7, 73.2, 83.2),
        by_folds=True,
        unclear="the authors' protocol and window are in none of their repositories; 4 s is EVAR's",
    ),
)  # fmt: skip
"""Source: paper Table 1, in its order."""


def _decar(like: str, title: str, seconds: float, numbers: tuple[float, ...], **other: Any) -> Task:
    """A task of DECAR's on the data of one of LAPE's."""
    (task,) = (task for task in LAPE_TASKS if task.name == like)
    results = dict(zip(DECAR_COLUMNS, numbers, strict=True))
    values = {"name": f"decar-{like}", "title": title, "seconds": seconds, "results": results, "unclear": "", **other}
    return replace(task, benchmark="decar", kind=None, **values)


DECAR_TASKS = (
    _decar("lbs", "Speaker Id. (LBS)", 12.69, (4.2, 94.6, 62.5, 97.0, 96.6, 96.2, 97.3, 97.0)),
    _decar(
        "vc", "Speaker Id. (Voxceleb)", 8.20, (0.2, 57.6, 2.5, 57.5, 53.4, 49.7, 57.0, 57.5), classes=1211,
        unclear="1,211 speakers, 153,397 clips; iden_split.txt has 1,251 and 153,516",
    ),
    _decar("sc-v1", "Speech Commands (V1)", 0.98, (62.0, 97.4, 63.9, 97.6, 97.3, 97.0, 97.4, 97.6)),
    _decar(
        "sc-v2-12", "Speech Commands (V2)", 0.98, (62.9, 97.7, 65.7, 97.6, 97.4, 97.3, 97.4, 97.6), name="decar-sc-v2"
    ),
    _decar("tut", "Acoustic Scenes", 10.00, (32.6, 61.6, 51.4, 66.9, 68.2, 68.7, 66.5, 66.9)),
    _decar("ic", "Speech Emotion", 4.49, (52.3, 61.8, 60.5, 62.4, 62.1, 64.0, 63.1, 62.4)),
    _decar(
        "bsd", "Birdsong Detection", 10.08, (67.6, 90.0, 76.4, 90.3, 89.6, 89.5, 90.1, 90.3),
        unclear="DECAR's own draw is another one of 80/20, not stratified",
    ),
    _decar(
        "vf", "Language ID", 6.68, (26.3, 73.4, 46.0, 76.5, 75.4, 75.0, 73.9, 76.5),
        unclear="which 8,803 clips are used is not published",
    ),
    _decar(
        "ns", "Music Instrument", 4.00, (23.6, 78.6, 59.9, 78.4, 77.3, 77.5, 78.1, 78.4),
        split="nsynth-train against nsynth-valid: the clips of DECAR Table 1 are those of both",
    ),
)  # fmt: skip
"""Source: DECAR Tables 1 to 3, in the order of Table 2."""

TASKS: dict[str, Task] = {task.name: task for task in (*LAPE_TASKS, *DECAR_TASKS)}


def chosen_tasks(names: str | None) -> list[Task]:
    """Names between commas -> tasks, LAPE's eleven for None. Raises UserError for an unknown one."""
    if names is None:
        return list(LAPE_TASKS)
    return [TASKS[name] for name in dict.fromkeys(chosen_names("--tasks", names, TASKS, "us8k,ic"))]
