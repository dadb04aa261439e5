"""`unfused-fast doctor` against pyproject.toml; the first lines of its help and of its neighbours'."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from outcomes import Cli

from unfused_fast.commands import doctor

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[><=!~;\\[ ]", line)[0] for line in requirements}


def test_every_requirement_of_the_project_is_looked_for(cli: Cli) -> None:
    found = {line["name"]: line for line in json.loads(cli("doctor", "--json").out)}
    assert names(PROJECT["dependencies"]) <= found.keys()
    assert "indexed_gzip" in found
    assert all(found[name]["works"] for name in names(PROJECT["dependencies"])), found
    extras = PROJECT["optional-dependencies"]
    ways = extras.keys() - {"cpu", "cuda12", "cuda13", "dev"}
    optional = set[str]().union(*(names(extras[way]) for way in ways))
    assert {"ray", "fsspec", "s3fs", "gcsfs", "onnx"} <= optional <= found.keys()
    for name in names(PROJECT["dependencies"]) | optional:
        version = found[name]["found"]
        assert version == "missing" or version.startswith(importlib.metadata.version(name).split("+")[0])


def test_what_is_missing_or_does_not_load(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional package may be missing; what training uses has to load where it is."""
    version, load = importlib.metadata.version, importlib.import_module

    def without(name: str) -> str:
        if name in ("soxr", "s3fs", *doctor.DALI):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    def broken(name: str, package: str | None = None) -> ModuleType:
        if name in ("soxr", "nvidia.dali"):
            raise ImportError("libexample.so.1: cannot open shared object file")
        return load(name, package)

    def examined() -> dict[str, dict[str, Any]]:
        done = cli("doctor", "--json")
        assert done.code == 1
        return {line["name"]: line for line in json.loads(done.out)}

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", without)
        found = examined()
    assert not found["soxr"]["works"] and re.search(r"needed; .* pip install '\.\[", found["soxr"]["note"])
    assert found["s3fs"]["works"] and found["DALI"]["works"] and "--data stream" in found["DALI"]["note"]
    assert found["s3fs"]["note"].endswith("behind URLs; in a checkout: pip install '.[remote]'")
    monkeypatch.setattr(importlib, "import_module", broken)
    found = examined()
    for name in ("soxr", "DALI"):
        assert not found[name]["works"] and "does not load (libexample.so.1" in found[name]["note"]


def test_every_auto_is_resolved_or_explained(cli: Cli) -> None:
    lines = [line for line in json.loads(cli("doctor", "--json").out) if line["name"].startswith("auto ")]
    found = {line["name"].removeprefix("auto "): line["note"] for line in lines}
    fields = {
        name
        for stage in ("pretrain", "distill", "linear", "finetune")
        for name, value in json.loads(cli("config", "--stage", stage, "--json").out).items()
        if value == "auto"
    }
    assert {"cluster.k", "train.batch_size", "pseudo.k"} <= fields and fields | {"--device", "--compile"} == set(found)
    assert found["data.store"] == "the fastest store with room for the split"
    assert found["eval.seconds"].startswith("the window of the authors' code for a LAPE task, for another set the crop")
    assert found["cluster.k"] == "512, or one for every 8 clips where that is fewer"
    assert found["pseudo.k"] == "the number of classes of the set, which is all that is read of the labels"


def test_a_checkout_that_is_not_installed_is_not_ready(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", none)
    done = cli("doctor")
    assert done.code == 1 and "what it needs is not known" in done.out and "not ready" in done.out


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "extra", "works", "note"),
    [
        ("13.0", "13.0", "cuda13", True, ""),
        ("14.1", "13.0", "cuda13", True, ""),
        ("13.0", "12.8", "cuda13", True, ""),
        ("12.4", "12.8", "cuda12", True, ""),
        (
            "12.4",
            "13.0",
            "cuda12",
            False,
            "too old for torch (CUDA 13.0); in a checkout, in a new virtual environment: ",
        ),
        ("12.4", None, "cuda12", True, "not used, because torch is a CPU build; in a checkout"),
        ("11.8", "13.0", "cuda12", False, "too old; update the NVIDIA driver to 525 or newer"),
        (None, "13.0", "cpu", True, None),
    ],
)
def test_the_driver_decides_the_build(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    driver: str | None,
    torch_cuda: str | None,
    extra: str,
    works: bool,
    note: str | None,
) -> None:
    version = driver or "N/A"
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text(f"#!/bin/sh\necho '| Driver Version: 1.2.3    CUDA Version: {version:6} |'\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(doctor, "builds", dict)
    found = {line["name"]: line for line in json.loads(cli("doctor", "--json").out)}
    if note is None:
        assert "driver" not in found
    else:
        assert (found["driver"]["works"], found["driver"]["found"]) == (works, f"CUDA {driver}")
        assert found["driver"]["note"].startswith(note) and bool(note) == bool(found["driver"]["note"])
        if "pip" in found["driver"]["note"]:
            assert found["driver"]["note"].endswith(f"pip install -c requirements/{extra}.txt '.[{extra}]'")
    if shutil.which("make"):
        root = Path(__file__).parents[2]
        # What `make test EXTRA=cpu` hands on would decide here too.
        for given in ("EXTRA", "MAKEFLAGS", "MAKEOVERRIDES"):
            monkeypatch.delenv(given, raising=False)
        said = subprocess.run(["make", "-n", "demo", f"VENV={tmp_path}"], cwd=root, capture_output=True, text=True)
        assert f"-c requirements/{extra}.txt -e '.[{extra}]'" in said.stdout


def test_builds_by_name_and_by_what_they_require(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"nvidia-dali-cuda130": "2.4.0", "cupy-cuda12x": "14.2.0", "cuml-cu13": "26.10.0", "faiss-gpu": "1.15.1"}
    monkeypatch.setattr(doctor, "installed", lambda name: f"{name} {here[name]}" if name in here else None)
    asked = {"faiss-gpu": ["numpy", "nvidia-cublas-cu12<13"]}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked.get(name))
    assert doctor.builds() == {
        "nvidia-dali-cuda130 2.4.0": "13",
        "faiss-gpu 1.15.1": "12",
        "cuml-cu13 26.10.0": "13",
        "cupy-cuda12x 14.2.0": "12",
    }


def test_training_on_a_gpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("CXX", "no-such-compiler")
    on_gpu, on_cpu = doctor._compiler(True), doctor._compiler(False)
    assert not on_gpu.works and "without --no-compile needs a C compiler (no-such-compiler)" in on_gpu.note
    assert on_cpu.works and "--compile needs a C++ compiler" in on_cpu.note


@pytest.mark.parametrize("command", [["clusters"], ["doctor"], ["explore"], ["similar"], ["train", "pretrain"]])
def test_the_first_sentence_of_the_help_fits_a_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    listed = cli(*command[:-1], "--help").out
    (line,) = [line for line in listed.splitlines() if re.match(rf"\W*{command[-1]}\s", line)]
    sentence = line.split(command[-1], 1)[1].strip(" │|")
    assert len(sentence) <= 75 and sentence.endswith(".")
