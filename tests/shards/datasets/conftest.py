"""Tiny real files for miniatures of published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def wav() -> Callable[..., None]:
    """`wav(path, rate=16000, channels=1, subtype="PCM_16")` writes 0.2 s of noise, no two files alike."""

    def write(path: Path, rate: int = 16000, channels: int = 1, subtype: str = "PCM_16") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(path.as_posix().encode())).uniform(-0.5, 0.5, (rate // 5, channels))
        soundfile.write(path, noise, rate, subtype)

    return write
