"""config.json and manifest.json of a stranger: one sentence, exit code 1, little memory, nothing read elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_runs import in_little_memory
from outcomes import Cli, refused

TEXTS = ["", "[]", "NaN", "[" * 100_000, '{"a":' * 100_000, '{"seed": ' + "9" * 5000 + "}", "\x00\x01"]
CONFIG: list[tuple[str, Any]] = [
    *(("stage", value) for value in (None, ["pretrain"])),
    *(("config", value) for value in (7, {}, [["model.dim", 32]])),
    *(("shards", value) for value in (None, ["digest"])),
    ("inputs", 7),
    *(("log_mel", value) for value in ([], {"mean": 0.0}, {"mean": "0", "std": 1.0}, {"mean": 0.0, "std": 0.0})),
    *(("log_mel", {"mean": value, "std": 1.0}) for value in (float("nan"), float("inf"), 10**400)),
    *(("config.model.dim", value) for value in (None, "wide", [32], -1, 32.5, 1e999, 10**9, "9" * 5000, float("nan"))),
    *((f"config.{name}", 10**18) for name in ("model.channels", "frontend.n_mels")),
    *(("config.model.encoder", value) for value in ("__import__('os')", 7, None)),
    *(("config.aug.rrc.freq_scale", value) for value in (7, [[1, 2], 3], [1, 2, 3])),
    ("config.eval.lr_grid", [[]]),
    ("config.model.l2_normalize", "perhaps"),
]
MANIFEST: list[tuple[str, Any]] = [
    *(("splits.train.shards", value) for value in (["../other/train-000000.tar"], ["/etc/passwd"], [".."], [7], 7)),
    ("splits.train.shards", "train-000000.tar"),
    *(("splits.train.clips", value) for value in ("many", float("inf"))),
    *(("splits", value) for value in (["train"], {"train": []})),
    ("label_names", 7),
    ("codec", "../wav"),
    ("sample_rate", "16000"),
    *(("dataset", value) for value in (7, {}, {"name": ["nsynth"]}, {"name": "nsynth", "options": 7})),
]


def changed(path: Path, name: str, value: Any) -> None:
    """Sets a value in a JSON file; of config.json, `config` is flat."""
    content = json.loads(path.read_text())
    parts = name.split(".", 1) if name.startswith("config.") else name.split(".")
    inner = content
    for part in parts[:-1]:
        inner = inner[part]
    inner[parts[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("text", TEXTS)
def test_files_that_are_none(
    cli: Cli, linear: Cli, copy_of: Callable[[Path], Path], pretrained: Path, tones: Path, tmp_path: Path, text: str
) -> None:
    run, shards, out = copy_of(pretrained), copy_of(tones), tmp_path / "out"
    (run / "config.json").write_text(text)
    (shards / "manifest.json").write_text(text)
    for done in (linear(tones, run, out), cli("clusters", run)):
        refused(done, run / "config.json")
    refused(linear(shards, "random", out), shards / "manifest.json")
    assert not out.exists()


@pytest.mark.parametrize(("name", "value"), CONFIG)
def test_configs_of_another_type_or_size(
    linear: Cli, copy_of: Callable[[Path], Path], pretrained: Path, tones: Path, tmp_path: Path, name: str, value: Any
) -> None:
    run = copy_of(pretrained)
    changed(run / "config.json", name, value)
    with in_little_memory():
        refused(linear(tones, run, tmp_path / "out"), run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), MANIFEST)
def test_manifests_of_something_else(
    linear: Cli, copy_of: Callable[[Path], Path], tones: Path, tmp_path: Path, name: str, value: Any
) -> None:
    shards = copy_of(tones)
    changed(shards / "manifest.json", name, value)
    refused(linear(shards, "random", tmp_path / "out"), shards, "manifest.json")
    assert not (tmp_path / "out").exists()
