"""Clips of digital silence stay in a set: packed, flagged, named by check, trained on, embedded, always finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from unfused_fast.config.audio import FrontendConfig
from unfused_fast.data.front_end import log_mel, unit_norm
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.shards.sources.row import SourceRow

SILENT = 6


@pytest.fixture(scope="module")
def silent_rows(tone_rows: list[SourceRow], tmp_path_factory: pytest.TempPathFactory) -> list[SourceRow]:
    """30 labelled tones of all splits, and six clips of zeros, two in each split."""
    folder = tmp_path_factory.mktemp("silence")
    for number in range(SILENT):
        soundfile.write(folder / f"silent{number}.wav", np.zeros(16000 + 1000 * number), 16000)
    label = tone_rows[0].label
    silent = [
        SourceRow(folder / f"silent{n}.wav", f"silent{n}.wav", label, ("train", "valid", "test")[n % 3], f"silence{n}")
        for n in range(SILENT)
    ]
    return [*tone_rows[::2][:30], *silent]


def test_silent_clips_go_all_the_way(cli: Any, tiny: list[str], silent_rows: list[SourceRow], tmp_path: Path) -> None:
    shards, run, out = tmp_path / "set", tmp_path / "run", tmp_path / "x.npz"
    made = pack(silent_rows, shards, workers=0, statistics=log_mel_statistics)
    assert made.packed == len(silent_rows) and made.rejected == {}
    clips = open_shards(shards).clips.to_pylist()
    assert {row["source"] for row in clips if row["constant"]} == {f"silent{number}.wav" for number in range(SILENT)}
    checked = cli("check", shards, "--json")
    assert checked.code == 0, checked.err
    found = [finding for finding in json.loads(checked.out)["warnings"] if finding["kind"] == "constant"]
    assert [finding["count"] for finding in found] == [SILENT]
    done = cli("train", "pretrain", shards, "--out", run, "--epochs", 2, *tiny)
    assert done.code == 0, done.err
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert losses and np.isfinite(losses).all()
    done = cli("embed", shards, "--encoder", run, "--out", out, "--device", "cpu", "--workers", 1)
    assert done.code == 0, done.err
    with np.load(out) as table:
        assert len(table["embeddings"]) == len(silent_rows) and np.isfinite(table["embeddings"]).all()


@pytest.mark.parametrize("kind", ["byola", "decar1"])
def test_log_mels_and_their_norm_of_silence_are_finite(kind: Any) -> None:
    config = FrontendConfig(kind=kind)
    silence = torch.zeros(2, 16000)
    assert torch.isfinite(log_mel(silence, config)).all() and torch.isfinite(log_mel(unit_norm(silence), config)).all()
    statistics = log_mel_statistics([np.zeros(16000, np.int16)] * 2, config)
    assert statistics["std"] > 0 and np.isfinite([statistics["mean"], statistics["std"]]).all()
