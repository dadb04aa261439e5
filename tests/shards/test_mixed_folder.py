"""A folder of audio as people have it goes through `shard`, `check` and `train pretrain`."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from unfused_fast.shards.sets.table import open_shards


def test_a_mixed_folder_goes_through(
    cli: Callable[..., Any], mixed: Any, write_tone: Callable[..., Any], tmp_path: Path
) -> None:
    """What lies before the cut of a long file is whole, and is kept."""
    folder, shards, run = tmp_path / "-recordings", tmp_path / "shards", tmp_path / "run"
    shutil.copytree(mixed.folder, folder, symlinks=True)
    soundfile.write(folder / "long.flac", write_tone(25.0, 24000, 400), 24000)
    data = (folder / "long.flac").read_bytes()
    (folder / "--cut ü.flac").write_bytes(data[: len(data) // 2])
    (folder / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8)
    done = cli("shard", folder, shards)
    assert done.code == 0 and "rejected.csv" in done.out, done.err
    clips = open_shards(shards).clips
    assert f"{clips.num_rows} clips" in done.out
    assert sorted(clips["source"].to_pylist()) == sorted([*mixed.good, *["long.flac"] * 3, "--cut ü.flac"])
    with (shards / "rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    begins = [(path, mixed.bad[path]) for path in mixed.bad] + [("cover.jpg", "not audio")]
    begins += [("--cut ü.flac", f"piece {number} of 3: truncated or damaged") for number in (2, 3)]
    assert all(
        path == wanted and reason.startswith(begin)
        for (path, reason), (wanted, begin) in zip(rejected, sorted(begins), strict=True)
    ), rejected
    assert cli("check", shards).code == 0
    network = ("model.channels=4", "model.dim=32", "model.proj_hidden=32", "model.proj_dim=16")
    flags = [word for value in network for word in ("--set", value)]
    done = cli("train", "pretrain", shards, "--out", run, "--epochs", 2, *flags)
    assert done.code == 0, done.err
    result = json.loads((run / "result.json").read_text())
    assert result["clips"] == {"train": clips.num_rows} and result["k"] == 2 and result["batch_size"] == 16
    assert np.isfinite([json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]).all()
