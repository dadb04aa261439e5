"""Where float32 is promised no product is TF32 or bfloat16; elsewhere and afterwards all is as the process set it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import precisions
import pytest
import torch

from unfused_fast.embedding.embedder import load
from unfused_fast.float32 import ieee_float32
from unfused_fast.shards.sets.table import open_shards
from unfused_fast.stages.features import extract, load_encoder

CPU = torch.device("cpu")
IEEE = ("ieee",) * 4


def settings() -> tuple[str, ...]:
    """How matmuls and convolutions of float32 are computed, on CUDA and on a CPU."""
    return tuple(setting.fp32_precision for setting in precisions.settings())


def older() -> tuple[Any, ...]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """PyTorch's, after each test."""
    with precisions.as_before():
        yield


def matmul(precision: str) -> Callable[[], None]:
    return lambda: torch.set_float32_matmul_precision(precision)


def attribute(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


@pytest.mark.parametrize(
    "asked",
    [
        (),
        (matmul("high"),),
        (attribute(torch.backends.cuda.matmul, "allow_tf32", True), matmul("highest"), matmul("high")),
        (attribute(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),),  # type: ignore[attr-defined]
        (attribute(torch.backends, "fp32_precision", "tf32"),),
        (attribute(torch.backends, "fp32_precision", "bf16"), matmul("medium")),
    ],
)
def test_settings_are_ieee_inside_and_as_before_afterwards(asked: tuple[Callable[[], None], ...]) -> None:
    """Whatever was asked for, in the older or the newer words, in which order, and where an error ends the block."""
    for ask in asked:
        ask()
    before = settings()
    try:
        said = older()
    except RuntimeError:  # PyTorch refuses: the older words cannot say it
        said = None
    with ieee_float32():
        assert settings() == IEEE
        with ieee_float32():
            pass
        assert settings() == IEEE
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)).flatten(1) @ torch.ones(4, 1)
    assert settings() == before and (said is None or older() == said)
    with pytest.raises(KeyError), ieee_float32():
        raise KeyError
    assert settings() == before


Seen = list[tuple[bool, tuple[str, ...]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Of each convolution whether it is for training, and of each backward pass: what the settings were."""
    found, convolve, backward = Seen(), torch.nn.functional.conv2d, torch.Tensor.backward

    def noted_convolution(*arguments: Any, **named: Any) -> torch.Tensor:
        if arguments[0].device.type != "meta":  # which computes nothing
            found.append((torch.is_grad_enabled(), settings()))
        return convolve(*arguments, **named)

    def noted_backward(*arguments: Any, **named: Any) -> None:
        found.append((True, settings()))
        backward(*arguments, **named)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(torch.nn.functional, "conv2d", noted_convolution)
    monkeypatch.setattr(torch.Tensor, "backward", noted_backward)
    return found


def test_features_and_embeddings_are_float32(pretrained: Path, tones: Path, seen: Seen) -> None:
    before = settings()
    extract(load_encoder(pretrained, CPU), open_shards(tones), "test", "encoder", "maxmean", CPU)
    embedder = load(pretrained, device="cpu")
    count = len(seen)
    embedder.embed(torch.randn(16000), 16000)
    embedder.embed_frames(torch.randn(16000), 16000)
    embedder(torch.randn(1, 16000))
    assert 0 < count < len(seen)
    assert {found for _, found in seen} == {IEEE} and settings() == before != IEEE


@pytest.mark.parametrize("amp", ["fp32", "bf16"])
def test_training_in_fp32_is_float32_and_judging_always(
    cli: Callable[..., Any], tones: Path, tiny: list[str], tmp_path: Path, seen: Seen, amp: str
) -> None:
    before = settings()
    flags = ("--encoder", "random", "--out", tmp_path / "run", "--epochs", 1, *tiny, "--set", f"train.amp={amp}")
    done = cli("train", "finetune", tones, *flags)
    assert done.code == 0, done.err
    assert {found for trains, found in seen if trains} == {IEEE if amp == "fp32" else before}
    assert {found for trains, found in seen if not trains} == {IEEE} and settings() == before
