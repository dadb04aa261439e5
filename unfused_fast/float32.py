"""Float32 products that are float32, whatever PyTorch or the process allows elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Matmuls and convolutions of float32 are computed in float32 inside, backward passes too: not in TF32, which is
    PyTorch's default for convolutions on CUDA, nor in what the process asked for (TF32 on CUDA, bfloat16 on a CPU).

    Changes settings of the whole process, and restores them: enter it once, in the thread that starts others, not in
    each of those. Inside, PyTorch's older getters (`allow_tf32`) raise where they would say otherwise than
    `fp32_precision`; this reads and sets the latter alone.
    """
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    settings = (cuda.matmul, cudnn.conv, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision
