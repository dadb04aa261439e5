"""The published layouts of LAPE's data sets in miniature: a few short tones each, one pitch a class."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
TEN = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
WORDS_V1 = (
    *TEN, "bed", "bird", "cat", "dog", "eight", "five", "four", "happy", "house", "marvin", "nine", "one", "seven",
    "sheila", "six", "three", "tree", "two", "wow", "zero",
)  # fmt: skip
WORDS_V2 = (*WORDS_V1, "backward", "follow", "forward", "learn", "visual")
STREET = [
    "air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling", "engine_idling", "gun_shot",
    "jackhammer", "siren", "street_music",
]  # fmt: skip
SCENES = [
    "airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall", "street_pedestrian",
    "street_traffic", "tram",
]  # fmt: skip
SEGMENTS = {
    "balanced_train": {
        "--PJHxphWEs": "/m/09x0r,/t/dd00088",
        "_ABCDEFGHIJ": "/m/0l15bq",
        "YAbcdefghij": "/m/07rv4dm",
    },
    "unbalanced_train": {"---1_cCGK4M": "/m/05zppz,/m/09x0r", "zzzzzzzzzzz": "/m/09x0r", "missing1234": "/m/09x0r"},
    "eval": {"-0RWZT-miFs": "/m/09x0r"},
}
SEGMENT_FILES = (
    "balanced_train_segments/--PJHxphWEs_30.000_40.000.wav",  # EVAR: the id is the first 11 characters
    "balanced_train_segments/_ABCDEFGHIJ.flac",
    "audiocaps/YYAbcdefghij.wav",  # a Y before an id that begins with one
    "---1_cCGK4M.WAV",
    "audiocaps/Yzzzzzzzzzzz_0_10.wav",
    "eval_segments/-0RWZT-miFs.wav",
)
FREESOUND = {
    "dev": {
        "64760": ("Guitar,Music", "train"),
        "16399": ("Guitar,Music", "train"),
        "100032": ("Bark,Dog,Animal", "train"),
        "44981": ("Bird,Animal", "val"),
    },
    "eval": {"37199": ("Guitar,Music", ""), "100033": ("Bark,Dog,Animal", "")},
}


def tone(path: Path, pitch: int, seconds: float = 0.4) -> None:
    """A loud tone with a little noise, its pitch by class: no two files are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(path.as_posix().encode()))
    times = np.arange(round(seconds * RATE)) / RATE
    hertz = 150 * 1.1**pitch * generator.uniform(0.98, 1.02)
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * hertz * times) + 0.01 * generator.standard_normal(len(times)), RATE)


def speech_commands(root: Path, words: Iterable[str]) -> None:
    """Two clips of train, one of valid, one of test for each word; six noises of a little more than a second."""
    speakers = {"0a7c2a8d": 2, "b83c1acf": 1, "c1d39ce8": 1}
    for pitch, word in enumerate(words := tuple(words)):
        for speaker, clips in speakers.items():
            for number in range(clips):
                tone(root / word / f"{speaker}_nohash_{number}.wav", pitch)
    for number, noise in enumerate(["dishes", "dude", "bike", "pink_noise", "running_tap", "white_noise"]):
        tone(root / "_background_noise_" / f"{noise}.wav", 45 + number, 1.001)
    (root / "validation_list.txt").write_text("".join(f"{word}/b83c1acf_nohash_0.wav\n" for word in words))
    (root / "testing_list.txt").write_text("".join(f"{word}/c1d39ce8_nohash_0.wav\n" for word in words))


def librispeech(root: Path) -> None:
    """Four chapters of three readers, ten utterances each."""
    for pitch, chapter in enumerate(("60/121082", "103/1240", "103/1241", "19/198")):
        for number in range(10):
            tone(root / "train-clean-100" / chapter / f"{chapter.replace('/', '-')}-{number:04d}.flac", 6 * pitch)
    readers = "".join(f"{reader} | M | train-clean-100 | 1.0 | Name\n" for reader in (60, 103, 19))
    (root / "SPEAKERS.TXT").write_text(readers)


def voxceleb(root: Path) -> None:
    """Three speakers with four videos for train, one each for valid and test."""
    lines = []
    for pitch in range(3):
        for video, split in enumerate("111123"):
            name = f"id1000{pitch}/video{pitch}{video}/00001.wav"
            tone(root / "wav" / name, 8 * pitch)
            lines.append(f"{split} {name}\n")
    (root / "iden_split.txt").write_text("".join(lines))


def voxforge(root: Path) -> None:
    """Three users of each of six languages, five clips each."""
    for pitch, language in enumerate(("de", "en", "es", "fr", "it", "ru")):
        for user in ("anna", "boris", "carla"):
            for clip in range(5):
                tone(root / language / "Trunk" / f"{user}{language}-20100101-abc" / "wav" / f"c-{clip}.wav", 5 * pitch)


def iemocap(root: Path) -> None:
    """Five sessions, three turns of each emotion."""
    for session in range(1, 6):
        folder, dialog = root / f"Session{session}", f"Ses0{session}F_script01_1"
        lines = []
        for pitch, emotion in enumerate(("neu", "ang", "sad", "hap")):
            for number in range(3):
                turn = f"{dialog}_F{pitch}{number:02d}"
                tone(folder / "sentences/wav" / dialog / f"{turn}.wav", 7 * pitch)
                lines.append(f"[1.0 - 2.0]\t{turn}\t{emotion}\t[2.5, 2.5, 2.5]\n")
        table = folder / "dialog/EmoEvaluation" / f"{dialog}.txt"
        table.parent.mkdir(parents=True)
        table.write_text("".join(lines))


def nsynth(root: Path) -> None:
    """Three families, two instruments each in train, another in valid and in test; four notes an instrument."""
    families = {"bass": 0, "keyboard": 4, "vocal": 10}
    for split, instruments in {"train": ("000", "001"), "valid": ("002",), "test": ("003",)}.items():
        examples = {}
        for place, (family, number) in enumerate(families.items()):
            for instrument in instruments:
                for pitch in range(4):
                    note = f"{family}_acoustic_{instrument}-{40 + pitch:03d}-100"
                    tone(root / f"nsynth-{split}/audio/{note}.wav", 8 * place + pitch)
                    examples[note] = {
                        "note_str": note,
                        "instrument_family": number,
                        "instrument_family_str": family,
                        "pitch": 40 + pitch,
                        "velocity": 100,
                    }
        (root / f"nsynth-{split}/examples.json").write_text(json.dumps(examples))


def birdsong(root: Path) -> None:
    """Ten clips of each half, every other one with a bird."""
    tables = {"ff1010bird": "ff1010bird_metadata_2018.csv", "warblrb10k": "warblrb10k_public_metadata.csv"}
    for half, table in tables.items():
        for number in range(10):
            tone(root / half / "wav" / f"{half}{number}.wav", 20 * (number % 2))
        lines = [f"{half}{number},{number % 2}\n" for number in range(10)]
        (root / table).write_text("itemid,hasbird\n" + "".join(lines))


def tut(root: Path) -> None:
    """Three locations of each scene for train, one for test."""
    lists: dict[str, list[str]] = {"fold1_train.txt": [], "fold1_evaluate.txt": []}
    for pitch, scene in enumerate(SCENES):
        for location in range(4):
            name = f"audio/{scene}-paris-{pitch * 10 + location}-{location}-a.wav"
            tone(root / name, 3 * pitch)
            lists["fold1_evaluate.txt" if location == 3 else "fold1_train.txt"].append(f"{name}\t{scene}\n")
    for table, lines in lists.items():
        path = root / "evaluation_setup" / table
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))


def urbansound(root: Path) -> None:
    """One slice of each class in each of the ten folds."""
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class\n"]
    for number, name in enumerate(STREET):
        for fold in range(1, 11):
            recording = 1000 + 10 * number + fold
            file = f"{recording}-{number}-0-0.wav"
            tone(root / f"audio/fold{fold}" / file, 3 * number)
            lines.append(f"{file},{recording},0.0,4.0,1,{fold},{number},{name}\n")
    (root / "metadata").mkdir()
    (root / "metadata/UrbanSound8K.csv").write_text("".join(lines))


def segments_table(path: Path, lines: dict[str, str]) -> None:
    """As AudioSet's tables: three lines of comment, then video, start, end, mids."""
    text = "".join(f'{video}, 30.000, 40.000, "{mids}"\n' for video, mids in lines.items())
    counts = f"# num_ytids={len(lines)}, num_segs={len(lines)}, num_unique_labels=527, num_positive_labels=52882"
    head = f"# Segments csv created\n{counts}\n# YTID, start_seconds, end_seconds, positive_labels\n"
    path.write_text(head + text)


def audioset(root: Path) -> None:
    """Six of seven listed videos, under names of all kinds; two classes have one name."""
    for pitch, name in enumerate(SEGMENT_FILES):
        tone(root / name, pitch)
    for table, lines in SEGMENTS.items():
        segments_table(root / f"{table}_segments.csv", lines)
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
        '2,/t/dd00088,"Gargling"\n3,/m/0l15bq,"Clatter"\n4,/m/07rv4dm,"Clatter"\n'
    )


def fsd50k(root: Path) -> None:
    """Four clips of dev, two of eval, with a vocabulary of six classes."""
    truth = root / "FSD50K.ground_truth"
    for part, clips in FREESOUND.items():
        for pitch, name in enumerate(clips):
            tone(root / f"FSD50K.{part}_audio" / f"{name}.wav", pitch)
    truth.mkdir()
    lines = [f'{name},"{labels}","/m/0,/m/1",{split}' for name, (labels, split) in FREESOUND["dev"].items()]
    (truth / "dev.csv").write_text("\n".join(["fname,labels,mids,split", *lines]) + "\n")
    lines = [f'{name},"{labels}","/m/0,/m/1"' for name, (labels, _) in FREESOUND["eval"].items()]
    (truth / "eval.csv").write_bytes("\r\n".join(["fname,labels,mids", *lines]).encode("utf-8-sig"))
    classes = ("Animal", "Bark", "Bird", "Dog", "Guitar", "Music")
    (truth / "vocabulary.csv").write_text("".join(f"{n},{name},/m/{n}\n" for n, name in enumerate(classes)))


def all_of_lape(root: Path) -> None:
    """The ten data sets of the eleven tasks, each in a folder as its archive unpacks, or as the adapter is called."""
    speech_commands(root / "speech_commands_v0.01", WORDS_V1)
    speech_commands(root / "speech_commands_v0.02", WORDS_V2)
    librispeech(root / "LibriSpeech")
    voxceleb(root / "voxceleb1")
    voxforge(root / "voxforge")
    iemocap(root / "IEMOCAP_full_release")
    nsynth(root / "nsynth")
    birdsong(root / "birdsong")
    tut(root / "TUT-urban-acoustic-scenes-2018-development")
    urbansound(root / "UrbanSound8K")


BUILDERS: dict[str, Callable[[Path], None]] = {
    "speechcommands-v1": partial(speech_commands, words=WORDS_V1),
    "speechcommands-v2": partial(speech_commands, words=WORDS_V2),
    "librispeech-speaker": librispeech,
    "voxceleb1": voxceleb,
    "voxforge": voxforge,
    "iemocap": iemocap,
    "nsynth": nsynth,
    "birdsong": birdsong,
    "tut2018": tut,
    "urbansound8k": urbansound,
    "audioset": audioset,
    "fsd50k": fsd50k,
}
"""By name of the adapter."""


def replaced(path: Path, old: str, new: str) -> None:
    """One text in a table by another, at its first place. The file is made anew: a miniature's files may be links."""
    text = path.read_text(encoding="utf-8-sig")
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new, 1))
