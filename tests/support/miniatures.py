"""The published layouts of LAPE's data sets in miniature: a few short tones each, one pitch a class."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
TEN = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
WORDS_V1 = (
    *TEN,
    *[
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
    ],
)
WORDS_V2 = (*WORDS_V1, "backward", "follow", "forward", "learn", "visual")
STREET = [
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
]
SCENES = [
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
]


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
