"""Notes of two General MIDI fonts, and words of two speech synthesisers over background noise, for clips.py.

The fonts are free software (sources.csv); the voices are espeak's and flite's own. A program's licence does not extend
to the sound that it makes.
"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
from collections.abc import Sequence
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import soundfile
from clips import RATE, SEED, Sound, mono, plain, trimmed, write

FAMILIES = {
    **dict.fromkeys(range(0, 8), "keyboard"),
    **dict.fromkeys(range(8, 16), "mallet"),
    **dict.fromkeys(range(16, 24), "organ"),
    **dict.fromkeys(range(24, 32), "guitar"),
    **dict.fromkeys(range(32, 40), "bass"),
    **dict.fromkeys((*range(40, 47), *range(48, 52)), "string"),  # without timpani
    **dict.fromkeys(range(52, 55), "vocal"),
    **dict.fromkeys(range(56, 64), "brass"),
    **dict.fromkeys(range(64, 72), "reed"),
    **dict.fromkeys(range(72, 80), "flute"),
    **dict.fromkeys(range(80, 88), "synth_lead"),
    **dict.fromkeys(range(88, 96), "synth_pad"),
}
CENTRES = {"bass": 38, "brass": 57, "reed": 62, "flute": 74, "string": 59, "guitar": 54, "mallet": 69}
"""MIDI note in the middle of a family's range; 60 for the others."""
FONTS = {"airfont320": "denemo-data", "freepats": "freepats"}
LEFT_OUT = {
    "airfont320": {
        *(0, 1, 2, 4, 5, 6, 7, 10, 11, 12, 13, 15, 16, 17, 18, 20, 25, 26, 32, 33, 34, 35, 36, 38, 39, 46, 53, 57, 58),
        *(61, 62, 74, 79, 85, 91),
    },
    "freepats": {0, 1, 7, 8, 13, 26, 27, 32, 33, 35, 45, 46, 53, 58, 70, 71, 79},
}
"""Programs whose samples many fonts share, the test's among them."""
SLOT, HELD = 2.8, 1.5
"""Seconds from note to note, and until it is released."""
WORDS = (
    *("red", "blue", "green", "yellow", "cat", "dog", "horse", "bird", "house", "tree", "water", "fire"),
    *("open", "close", "start", "play", "music", "light", "door", "window"),
)
ACCENTS = ("en", "en-us", "en-sc", "en-n", "en-rp", "en-wm", "en-wi")
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5"),
    *("croak", "klatt", "klatt2", "klatt3"),
)
NOISE = re.compile(
    r"ambient|weather|wind|rain|river|crowd|market|forest|engine|fire|water|traffic|factory|cave|night|dayscape|alarm"
    r"|construction"
)
NOISY = (
    *("0ad-data", "scratch", "minetest-data", "gcompris-qt-data", "crrcsim-data", "triplea", "micropolis-data"),
    *("simutrans-pak64", "opencity-data", "trackballs-data"),
)


def notes(out: Path, pool: Pool) -> list[Path]:
    """WAVs of single notes."""
    return [path for made in pool.map(font_notes, [(out, name) for name in FONTS], chunksize=1) for path in made]


def font_notes(job: tuple[Path, str]) -> list[Path]:
    """Of one font."""
    out, name = job
    draws, folder = np.random.RandomState(SEED + len(name)), out / "tmp" / name
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((out / "raw" / FONTS[name]).rglob("*"))
    font = next(path for path in files if path.name.endswith((".sf2", "freepats.cfg")) and not path.is_symlink())
    wanted, made, seen = list[tuple[int, int, int]](), list[Path](), set[str]()
    for program, family in sorted(FAMILIES.items()):
        if program not in LEFT_OUT[name]:
            steps = draws.choice(np.arange(-11, 12), 14 if family == "vocal" else 9, replace=False)
            wanted += [
                (program, int(CENTRES.get(family, 60) + step), int(draws.choice([55, 75, 95, 115])))
                for step in sorted(steps)
            ]
    for start in range(0, len(wanted), 128):
        some = wanted[start : start + 128]
        for (program, note, velocity), samples in zip(some, rendered(font, some, folder), strict=True):
            samples = trimmed(samples, 0.004)
            if len(samples) < 0.05 * RATE or np.abs(samples).max() < 0.003:
                continue
            shape = (samples / np.abs(samples).max() * 100).round().astype(np.int8)
            digest = hashlib.md5(shape.tobytes()).hexdigest()
            if digest not in seen:  # a missing program falls back to another one
                seen.add(digest)
                tag = f"p{program:03d}_n{note:03d}_v{velocity:03d}"
                made.append(out / "audio" / "render_instrument" / name / f"{tag}.wav")
                write(made[-1], samples)
    return made


def rendered(font: Path, wanted: Sequence[tuple[int, int, int]], folder: Path) -> list[Sound]:
    """A sound for each (program, note, velocity)."""
    events, before = list[tuple[float, bytes]](), -1
    for number, (program, note, velocity) in enumerate(wanted):
        start = number * SLOT
        if program != before:
            events.append((max(0, start - 0.05), bytes([0xC0, program])))
            before = program
        events += [
            (start + 0.02, bytes([0x90, note, velocity])),
            (start + 0.02 + HELD, bytes([0x80, note, 0])),
            (start + SLOT - 0.1, bytes([0xB0, 120, 0])),
        ]
    score, sound = folder / "notes.mid", folder / "notes.wav"
    score.write_bytes(midi(events))
    if font.suffix == ".cfg":
        settings = folder / "timidity.cfg"
        settings.write_text(f"dir {next(font.parents[2].rglob('Tone_000')).parent}\nsource {font}\n")
        command = ["timidity", "-c", settings, "-EFreverb=0", "-EFchorus=0", "-s", "44100", "-OwS", "-o", sound, score]
    else:
        command = ["fluidsynth", "-niq", "-R", "0", "-C", "0", "-g", "0.6", "-r", "44100", "-F", sound, font, score]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    samples = mono(*soundfile.read(sound, dtype="float32", always_2d=True))
    samples = np.pad(samples, (0, int((len(wanted) + 1) * SLOT * RATE)))
    return [
        samples[int(number * SLOT * RATE) : int(((number + 1) * SLOT - 0.12) * RATE)] for number in range(len(wanted))
    ]


def midi(events: Sequence[tuple[float, bytes]]) -> bytes:
    """A file of one track, 960 ticks a second."""
    data, last = b"", 0
    for seconds, event in sorted(events, key=lambda pair: pair[0]):
        tick = round(seconds * 960)
        data += variable(tick - last) + event
        last = tick
    data += variable(960) + b"\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(data)) + data


def variable(number: int) -> bytes:
    """MIDI's numbers of any length: seven bits a byte."""
    found = [number & 0x7F]
    while number > 127:
        number >>= 7
        found.append(number & 0x7F | 0x80)
    return bytes(reversed(found))


def words(out: Path, pool: Pool, clips: Sequence[tuple[Path, str, str]]) -> list[tuple[str, Path]]:
    """(ENGINE:VOICE, WAV) of each word; backgrounds are of some `clips` (path, package, file), of 1 s or more."""
    (out / "tmp").mkdir(exist_ok=True)
    noises = sorted(
        str(path)
        for path, package, source in clips
        if package in NOISY
        and NOISE.search(source.lower())
        and not re.search("music|voice|speech|interface", source.lower())
    )
    voices = [
        f"espeak:{ACCENTS[(3 * number + more) % len(ACCENTS)]}+{variant}"
        for number, variant in enumerate(VARIANTS)
        for more in range(4)
    ]
    voices += [f"flite:{voice}" for voice in ("kal16", "awb", "rms", "slt")]
    return [pair for made in pool.imap(spoken, [(out, voice, noises) for voice in voices]) for pair in made]


def spoken(job: tuple[Path, str, list[str]]) -> list[tuple[str, Path]]:
    """The words of one voice."""
    out, name, noises = job
    seed = hashlib.md5(f"{SEED}{name}".encode()).hexdigest()[:8]
    draws, made = np.random.RandomState(int(seed, 16)), list[tuple[str, Path]]()
    engine, voice = name.split(":", 1)
    sound = out / "tmp" / f"{plain(name)}.wav"
    for word in WORDS:
        for number in range(2 if engine == "espeak" else 6):
            if engine == "espeak":
                rate, pitch = str(draws.randint(120, 190)), str(draws.randint(25, 75))
                command = ["espeak", "-v", voice, "-s", rate, "-p", pitch, "-w", str(sound), word]
            else:
                stretch, pitch = f"{draws.uniform(0.8, 1.3):.2f}", f"{draws.uniform(85, 200):.0f}"
                command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}"]
                command += ["--setf", f"int_f0_target_mean={pitch}", "-t", word, "-o", str(sound)]
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
            if done.returncode or not sound.exists():
                continue
            samples = trimmed(mono(*soundfile.read(sound, dtype="float32", always_2d=True)), 0.01, 0.02)[:RATE]
            sound.unlink()
            if len(samples) < 0.1 * RATE:
                continue
            mixed = np.zeros(RATE, np.float32)
            start = draws.randint(0, RATE - len(samples) + 1)
            mixed[start : start + len(samples)] = samples
            noise, _ = soundfile.read(noises[draws.randint(len(noises))], dtype="float32")
            start = draws.randint(0, max(1, len(noise) - RATE))
            noise = np.resize(noise[start : start + RATE], RATE)
            level = float(np.sqrt((noise**2).mean()))
            if level > 1e-5:  # 3 to 25 dB below the word
                mixed += noise / level * float(np.sqrt((samples**2).mean())) * 10 ** (-draws.uniform(3, 25) / 20)
            mixed *= draws.uniform(0.15, 0.9) / max(1e-4, float(np.abs(mixed).max()))
            path = out / "audio" / "words_synth" / engine / plain(voice) / f"{word}_{number}.wav"
            write(path, mixed)
            made.append((name, path))
    return made
