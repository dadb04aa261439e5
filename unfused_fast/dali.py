"""DALI itself, and the parts of its graph that are ours: the only file that imports it."""

from __future__ import annotations

from typing import Any

import numpy as np

from unfused_fast.errors import UserError


def import_dali() -> tuple[Any, Any, Any, Any]:
    """DALI's fn, math, types and Pipeline. Raises UserError that says which extra brings it."""
    try:
        from nvidia.dali import fn, math, types
        from nvidia.dali.pipeline import Pipeline
    except ImportError as error:
        raise UserError(
            "DALI is not installed, and it decodes the audio here; install one extra, in a checkout: "
            "pip install '.[cpu]', or '.[cuda12]' or '.[cuda13]' for a GPU (see: unfused-fast doctor)"
        ) from error
    return fn, math, types, Pipeline


def cut(pcm: Any, crop: list[Any]) -> Any:
    """(1, L, 1) PCM16 -> float32 samples of the crop with the reflected edges of a centred STFT; beyond the clip's end
    lie zeros.
    """
    fn, _, types, _ = import_dali()
    head_start, head, body_start, body, tail_start, tail = crop

    def part(start: Any, length: Any) -> Any:
        return fn.slice(pcm, start=start, shape=length, axes=(1,), out_of_bounds_policy="pad")

    pieces = fn.flip(part(head_start, head)), part(body_start, body), fn.flip(part(tail_start, tail))
    joined = fn.reshape(fn.cat(*pieces, axis=1), shape=[-1], layout="")
    return fn.cast(joined, dtype=types.FLOAT) * (1.0 / 32768)


def clip_id(digits: Any, width: int) -> Any:
    """(width,) bytes of an `.index` member -> (1,) int64, the id that they spell."""
    fn, _, types, _ = import_dali()
    powers = types.Constant(np.array([10**place for place in range(width - 1, -1, -1)], dtype=np.int64))
    return fn.reductions.sum((fn.cast(digits, dtype=types.INT64) - 48) * powers, axes=(0,), keep_dims=True)
