"""What all adapters refuse, and pass over, in the same way."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters import found, refused

from unfused_fast.shards.sources.listed_path import folder_of

Miniature = Callable[[str], Path]
NOISE = "_background_noise_"


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("nsynth", {"test": "train"}, "test=train: nsynth takes one of test, valid"),
        ("nsynth", {"pitch": "yes"}, "no such option; it has: test"),
        ("urbansound8k", {"fold": "1"}, "urbansound8k has no such option; it has: none"),
        ("iemocap", {"exc": "keep"}, "exc=keep: iemocap takes one of drop, hap"),
        ("librispeech-speaker", {"split": "chapters"}, "add label=reader"),
        ("voxforge", {"protocol": "evar"}, r"go together; PATH is EVAR's evar/metadata/voxforge\.csv"),
        ("voxforge", {"list": "a.csv"}, r"go together; PATH is EVAR's evar/metadata/voxforge\.csv"),
        ("audioset", {"sample": "half"}, "sample=half: audioset takes one of all, N"),
        ("audioset", {"seed": "4"}, "the seed belongs to the sample; add --option sample=N"),
    ],
)
def test_options_that_there_are_not(miniature: Miniature, name: str, given: dict[str, str], words: str) -> None:
    refused(words, name, miniature(name), **given)


@pytest.mark.parametrize(
    ("name", "damaged"),
    [("speechcommands-v1", f"{NOISE}/running_tap.wav"), ("tut2018", "audio/airport-paris-0-0-a.wav")],
)
def test_a_member_whose_header_in_the_zip_is_damaged_ends_no_listing(
    miniature: Miniature, tmp_path: Path, name: str, damaged: str
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", miniature(name)))
    place, data = zipfile.ZipFile(archive).getinfo(damaged).header_offset, bytearray(archive.read_bytes())
    data[place : place + 4] = bytes(4)
    archive.write_bytes(data)
    made = found(name, folder_of(archive))
    if name == "tut2018":  # packing rejects it
        assert damaged in {row.source for row in made.rows}
    else:
        why = "cannot be read, so it gives no silence: the zip has no file at the offset"
        assert any(note.startswith(f"{damaged} {why}") for note in made.notes)
