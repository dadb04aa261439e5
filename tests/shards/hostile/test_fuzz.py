"""Real files with bytes changed, cut and put in: audio of the declared length or a reason, never anything else.

FUZZ_EXAMPLES=100000 looks for longer.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from hostile.decoding import DecodeJob
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unfused_fast.shards.demo import DEMO_NAMES, demo_rows
from unfused_fast.shards.packing.workers import Workers

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
KINDS = (
    *("WAV PCM_16", "WAV FLOAT", "WAV IMA_ADPCM", "WAV MS_ADPCM", "WAV GSM610", "W64 PCM_24", "RF64 PCM_16"),
    *("AIFF PCM_16", "AIFF DWVW_16", "AU ULAW", "AU G721_32", "CAF ALAC_16", "FLAC PCM_16", "OGG VORBIS", "OGG OPUS"),
    *("MP3 MPEG_LAYER_III", "NIST PCM_16", "VOC PCM_16", "SVX PCM_16", "SDS PCM_16", "MAT5 PCM_16", "PAF PCM_24"),
    "XI DPCM_16",
)

Edit = tuple[str, int, bytes]
_places = st.one_of(st.integers(0, 127), st.integers(0, 1 << 16))
_edits = st.tuples(
    st.sampled_from(["overwrite", "insert", "delete", "cut", "repeat"]), _places, st.binary(min_size=1, max_size=8)
)


@pytest.fixture(scope="module")
def real_files() -> dict[str, bytes]:
    """A second of a real clip in each kind."""
    first = demo_rows(DEMO_NAMES[0])[0].path
    signal, rate = soundfile.read(first, frames=16_000)
    files = {}
    for kind in KINDS:
        file, (form, subtype) = io.BytesIO(), kind.split()
        soundfile.write(file, signal, rate, subtype, format=form)
        files[kind] = file.getvalue()
    return files


@pytest.fixture(scope="module")
def worker() -> Iterator[Workers]:
    with Workers(1, seconds_per_item=30.0) as workers:
        yield workers


def mutated(data: bytes, edits: list[Edit]) -> bytes:
    """The edits, one after the other."""
    for kind, place, new in edits:
        place %= len(data) + 1
        rest = data[place:]
        changed = {
            "overwrite": new + rest[len(new) :],
            "insert": new + rest,
            "delete": rest[new[0] :],
            "cut": b"",
            "repeat": rest[: 16 * new[0]] + rest,
        }
        data = data[:place] + changed[kind]
    return data


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(kind=st.sampled_from(KINDS), edits=st.lists(_edits, max_size=6))
def test_a_changed_file_is_packed_or_rejected(
    real_files: dict[str, bytes], worker: Workers, tmp_path: Path, kind: str, edits: list[Edit]
) -> None:
    path = tmp_path / f"a.{kind.split()[0].lower()}"
    path.write_bytes(mutated(real_files[kind], edits))
    ((_, answer),) = worker.answers([DecodeJob(path)])
    assert answer in ("packed", "rejected")
