"""VoxForge: the language from the path, the user from the archive's name."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from unfused_fast.errors import UserError
from unfused_fast.shards.datasets.voxforge import DATASET, LANGUAGES

SERVER = "www.repository.voxforge1.org/downloads/{}/Trunk/Audio/Main/16kHz_16bit"


def _archive(folder: Path, kind: str = "wav", clips: int = 5) -> None:
    (folder / "etc").mkdir(parents=True, exist_ok=True)
    (folder / "etc" / "PROMPTS").write_text("x")
    (folder / kind).mkdir()
    for number in range(clips):
        soundfile.write(folder / kind / f"{folder.name[:2]}-{number:03d}.{kind}", np.zeros(160), 16000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for language in LANGUAGES:
        base = tmp_path / SERVER.format(language)
        for user in ("anonymous", f"{language}user", f"{language}other"):
            _archive(base / f"{user}-20100101-abc")
        _archive(base / f"{language}user-20110101-xyz", clips=1)
    return tmp_path


def test_languages_users_and_the_split_by_speaker(root: Path) -> None:
    found = DATASET.discover(root, {})
    assert Counter(row.label for row in found.rows) == dict.fromkeys(LANGUAGES, 16)
    assert {row.group for row in found.rows if row.label == "it"} == {"anonymous", "ituser", "itother"}
    assert found.rows[0].source == f"{SERVER.format('de')}/anonymous-20100101-abc/wav/an-000.wav"
    assert len({row.source for row in found.rows}) == len(found.rows)
    sides = defaultdict(set)
    for row in found.rows:
        sides[row.group].add(row.split)
    assert all(len(splits) == 1 for splits in sides.values())
    # 13 speakers: int(9.1) = 9 in train, up to int(10.4) = 10 in valid, three in test
    assert Counter(min(splits) for splits in sides.values()) == {"train": 9, "valid": 1, "test": 3}
    # The published rule, worked by hand: sorted names, shuffled by RandomState(0) as a list of numbers.
    places = list(range(13))
    np.random.RandomState(0).shuffle(places)
    names = sorted(sides)
    assert {names[place] for place in places[10:]} == {name for name in names if sides[name] == {"test"}}
    assert any("96 clips here; EVAR counted 176,428" in note for note in found.notes)
    assert any("rule of TFDS over the 13 speakers" in note for note in found.notes)


def test_short_paths_and_flac_archives(tmp_path: Path) -> None:
    _archive(tmp_path / "fr" / "a-2010-x", "flac")
    _archive(tmp_path / "fr" / "b-2010-x", "wav")
    _archive(tmp_path / "fr" / "b-2010-x", "flac")
    _archive(tmp_path / "de" / "c-2010-x")
    _archive(tmp_path / "nl" / "d-2010-x")
    (tmp_path / "fr" / "e-2010-x.tgz").write_bytes(b"x")
    found = DATASET.discover(tmp_path, {})
    assert {row.source.rsplit("/", 1)[0] for row in found.rows} == {
        "fr/a-2010-x/flac",
        "fr/b-2010-x/wav",
        "de/c-2010-x/wav",
    }
    notes = " ".join(found.notes)
    assert "No clips in en, es, it, ru." in notes and "1 archives (.tgz)" in notes
    assert "5 files left out: no language" in notes and "5 FLAC files left out" in notes


def test_random_split_is_by_clip_and_by_language(root: Path) -> None:
    found = DATASET.discover(root, {"protocol": "random"})
    counts = Counter((row.label, row.split) for row in found.rows)
    assert all(counts[language, "test"] == 3 and counts[language, "train"] == 13 for language in LANGUAGES)
    assert any("ours" in note and "on both sides" in note for note in found.notes)
    assert DATASET.discover(root, {"protocol": "random"}) == found


def test_evar_list_gives_labels_and_splits_to_archives_without_a_language(tmp_path: Path) -> None:
    _archive(tmp_path / "it-user-2010-x", clips=2)
    _archive(tmp_path / "deuser-2011-y", "flac", clips=2)
    _archive(tmp_path / "en" / "enuser-2012-z", clips=3)
    table = tmp_path / "voxforge.csv"
    table.write_text(
        "file_name,label,split\n"
        "it-user-2010-x/wav/it-000.wav,it,train\n"
        "it-user-2010-x/wav/it-001.wav,it,train\n"
        "deuser-2011-y/wav/de-001.wav,de,test\n"
        "enuser-2012-z/wav/en-000.wav,en,valid\n"
        "enuser-2012-z/wav/en-001.wav,fr,valid\n"
        "gone-2013-w/wav/go-000.wav,ru,test\n"
    )
    found = DATASET.discover(tmp_path, {"protocol": "evar", "list": str(table)})
    assert [(row.source, row.label, row.split, row.group) for row in found.rows] == [
        ("it-user-2010-x/wav/it-000.wav", "it", "train", "it"),
        ("it-user-2010-x/wav/it-001.wav", "it", "train", "it"),
        ("deuser-2011-y/flac/de-001.flac", "de", "test", "deuser"),
        ("en/enuser-2012-z/wav/en-000.wav", "en", "valid", "enuser"),
        ("en/enuser-2012-z/wav/en-001.wav", "fr", "valid", "enuser"),
    ]
    notes = " ".join(found.notes)
    assert "1 files of voxforge.csv are not here, such as gone-2013-w/wav/go-000.wav." in notes
    assert "2 files left out: not in voxforge.csv." in notes and "1 files have another language in their path" in notes
    assert "2 clips come as FLAC." in notes and "2 train, 2 valid, 1 test" in notes
    for old, new, words in (
        (",ru,", ",xx,", "has label 'xx' and split 'test'"),
        (",it,train", ",it,fold1", "label 'it' and split 'fold1'"),
        ("file_name", "file", "but file_name, label, split are needed"),
        ("wav/", "clips/", "none of its 6 files is here"),
    ):
        other = tmp_path / "other.csv"
        other.write_text(table.read_text().replace(old, new))
        with pytest.raises(UserError, match=words):
            DATASET.discover(tmp_path, {"protocol": "evar", "list": str(other)})
    for given in ({"protocol": "evar"}, {"list": str(table)}):
        with pytest.raises(UserError, match=r"go together; PATH is EVAR's evar/metadata/voxforge\.csv"):
            DATASET.discover(tmp_path, given)


def test_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="protocol=lape: voxforge takes one of tfds, evar, random"):
        DATASET.discover(root, {"protocol": "lape"})
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "user-20100101-abc.tgz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"1 archives are still to be unpacked.*needs this layout: ROOT/"):
        DATASET.discover(packed, {})
    _archive(packed / "de" / "one-2010-x")
    with pytest.raises(UserError, match="1 speakers, but protocol=tfds"):
        DATASET.discover(packed, {})
