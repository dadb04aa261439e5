"""Settings of the whole process by which float32 products are computed in less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


def settings() -> list[Any]:
    """Of matmuls and convolutions, on CUDA and on a CPU; each has a `fp32_precision`."""
    backends = cast(Any, torch.backends)
    return [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]


@contextmanager
def as_before() -> Iterator[None]:
    """What is asked for inside, in PyTorch's older or newer words, does not outlast the block."""
    before = [setting.fp32_precision for setting in settings()]
    try:
        yield
    finally:
        cast(Any, torch.backends).fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        for setting, precision in zip(settings(), before, strict=True):
            setting.fp32_precision = precision


@contextmanager
def medium() -> Iterator[None]:
    """Matmuls in TF32 on CUDA and bfloat16 on a CPU, as training may ask for."""
    with as_before():
        torch.set_float32_matmul_precision("medium")
        yield
