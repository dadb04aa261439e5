"""Settings, devices and back ends that cannot be: one sentence, exit code 1, nothing lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from outcomes import Cli, refused

from unfused_fast.distributed.ranks import Ranks
from unfused_fast.errors import UserError
from unfused_fast.training.options import Options


def test_more_clusters_than_clips(pretrain: Cli, distill: Cli, tones: Path, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = pretrain(tones, out, "--set", "cluster.k=1000")
    refused(done, "cluster.k = 1000", "60 clips", "--set cluster.k=auto, or a number up to 60")
    done = distill(tones, pretrained, out, "--set", "pseudo.k=1000")
    refused(done, "pseudo.k = 1000", "60 clips", "--set pseudo.k=N with N up to 60")
    assert not out.exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(
    pretrain: Cli, linear: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    out = tmp_path / "out"
    for done in (pretrain(tones, out, "--device", device), linear(tones, "random", out, "--device", device)):
        refused(done, f"--device {device}:", "sees no CUDA device here", "use --device cpu", "unfused-fast doctor")
    assert not out.exists()


@pytest.mark.parametrize("device", ["gpu", "xpu", "cuda:x", "", "mps"])
def test_a_device_that_no_one_knows_or_without_float64(pretrain: Cli, tones: Path, tmp_path: Path, device: str) -> None:
    said = ["float64", "use --device cpu"] if device == "mps" else ["auto, cpu, cuda or cuda:N"]
    refused(pretrain(tones, tmp_path / "out", "--device", device), f"--device {device}:", *said)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--compile-mode max-autotune", "torch.compile is off by default on a CPU; give --compile, or leave"),
        ("--no-compile --compile-mode reduce-overhead", "--no-compile is given; give --compile, or leave"),
        ("--compile --compile-mode reduce-overhead", "records CUDA graphs, and the device is cpu; use default or max"),
        ("--compile --compile-mode fast", "is not one of 'default', 'reduce-overhead', 'max-autotune'"),
    ],
)
def test_a_compile_mode_that_would_do_nothing(
    pretrain: Cli, tones: Path, tmp_path: Path, flags: str, sentence: str
) -> None:
    done = pretrain(tones, tmp_path / "out", *flags.split())
    assert done.code in (1, 2) and sentence in " ".join(done.err.replace("│", "").split()), done.err
    assert not (tmp_path / "out").exists()


def test_cuda_graphs_are_for_one_process() -> None:
    """Without a GPU: the option is refused before anything is put on the device."""
    ranks = Ranks()
    ranks.group, ranks.world_size = cast(Any, object()), 4
    with pytest.raises(UserError, match="collective operations of 4 processes would cut into pieces; use default"):
        Options(torch.device("cuda"), True, "max-autotune", ranks=ranks)
    assert Options(torch.device("cuda"), True, "max-autotune-no-cudagraphs", ranks=ranks).compiles
    assert Options(torch.device("cuda")).compiles and not Options(torch.device("cuda"), ranks=ranks).compiles
    with pytest.raises(UserError, match=r"torch\.compile is off by default with several processes; give --compile"):
        Options(torch.device("cuda"), compile_mode="max-autotune-no-cudagraphs", ranks=ranks)


def test_a_back_end_that_cannot_run_here(
    pretrain: Cli, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = pretrain(tones, tmp_path / "out", "--set", "cluster.backend=triton")
    refused(done, "cluster.backend = triton", "the device is cpu", "use torch or auto")
    monkeypatch.setitem(sys.modules, "faiss", None)
    done = pretrain(tones, tmp_path / "out", "--set", "cluster.backend=faiss")
    refused(done, "cluster.backend = faiss", "not installed", "use torch")
    done = pretrain(tones, tmp_path / "out", "--set", "cluster.backend=numpy")
    refused(done, "cluster.backend = numpy", "one of auto, torch, triton, faiss, cuml")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("cluster", ["--set cluster: want section.field=value", "unfused-fast config"]),
        ("clusters.k=3", ["there is no such field", "did you mean cluster.k", "unfused-fast config"]),
        ("cluster.k=many", ["cluster.k = many: want a whole number or auto"]),
        ("frontend.n_mels=60", ["frontend.n_mels = 60", "multiple of 8"]),
    ],
)
def test_settings(pretrain: Cli, tones: Path, tmp_path: Path, setting: str, parts: list[str]) -> None:
    refused(pretrain(tones, tmp_path / "out", "--set", setting), *parts)
    assert not (tmp_path / "out").exists()
