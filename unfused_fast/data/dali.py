"""The DALI graph of stream.py: WebDataset reader -> decode -> crop -> log-mel.

N clips to read, F mel bins, T frames. One graph for CPU and GPU: without a GPU `device_id` is None and every operator
runs on the CPU, which needs no driver.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from unfused_fast.config import FrontendConfig
from unfused_fast.data.crops import Pieces
from unfused_fast.data.front_end import analysis_window
from unfused_fast.data.order import Int64s
from unfused_fast.errors import UserError
from unfused_fast.mel import DECAR_RANGE
from unfused_fast.optional import importing


def import_dali() -> tuple[Any, Any, Any, Any]:
    """DALI's fn, math, types and Pipeline. Raises UserError where DALI is not installed or does not load."""
    install = "pip install '.[cpu]', or '.[cuda12]' or '.[cuda13]' for a GPU; or use --data resident or mmap"
    with importing("nvidia.dali", "DALI", "training on streamed audio (data.store = stream)", install):
        from nvidia.dali import fn, math, types
        from nvidia.dali.pipeline import Pipeline
    return fn, math, types, Pipeline


def dali_log_mel(waveform: Any, config: FrontendConfig, mean: float, std: float) -> Any:
    """Samples with their context -> (F, T) (log-mel - mean) / std, on the waveform's device."""
    fn, math, *_ = import_dali()
    decar = config.kind == "decar1"
    spectrum = fn.spectrogram(
        waveform,
        nfft=config.n_fft,
        window_length=config.n_fft,
        window_step=config.hop_samples,
        power=1 if decar else 2,
        center_windows=False,
        window_fn=analysis_window(config).tolist(),  # DALI's own Hann window is symmetric
    )
    mel = fn.mel_filter_bank(
        spectrum,
        nfilter=config.n_mels,
        sample_rate=float(config.sample_rate_hz),
        freq_low=config.fmin_hz,
        freq_high=config.fmax_hz,
        mel_formula="htk" if decar else "slaney",
        normalize=not decar,
    )
    log = math.log(math.clamp(mel, *DECAR_RANGE) if decar else mel + config.log_floor)
    return (log - mean) * (1.0 / std)


def cut(pcm: Any, crop: list[Any], unit_norm: bool) -> Any:
    """(1, L, 1) PCM16, entries of crops.Pieces -> float32 samples of the crop; zeros after the clip's end.

    Args:
        unit_norm: divide by the L2 norm of all of `pcm` instead of 32768.
    """
    fn, math, types, _ = import_dali()
    head, body, tail = (
        fn.slice(pcm, start=start, shape=length, axes=(1,), out_of_bounds_policy="pad")
        for start, length in zip(crop[::2], crop[1::2], strict=True)
    )
    joined = fn.reshape(fn.cat(fn.flip(head), body, fn.flip(tail), axis=1), shape=[-1], layout="")
    if not unit_norm:
        return fn.cast(joined, dtype=types.FLOAT) * (1.0 / 32768)
    samples = fn.reshape(fn.cast(pcm, dtype=types.FLOAT), shape=[-1], layout="")
    norm = math.sqrt(fn.reductions.sum(samples * samples))
    return fn.cast(joined, dtype=types.FLOAT) / math.max(norm, 1.0)


def clip_pipeline(
    tars: list[str],
    indexes: list[str],
    crops: list[Pieces],
    *,
    log_mel: Callable[[Any], Any] | None,
    whole: bool,
    codec: str,
    decoded: bool,
    unit_norm: bool,
    batch_size: int,
    threads: int,
    device_id: int | None,
) -> Any:
    """A pipeline, not yet built. It gives the digits of the clip ids and each crop's waveform, or its log-mel, batch
    after batch, and starts again at the first clip after the last.

    Args:
        crops: of all N clips.
        log_mel: computes one from a waveform, on the GPU where there is one.
        whole: pad the clips of a batch to the longest.
        decoded: whether audio is decoded; if not, members are read as PCM16.
        unit_norm: as of cut.
    """
    fn, _, types, pipeline_class = import_dali()
    table = np.concatenate(crops)

    def given(step: int) -> list[Any]:
        # the reader starts again after the last clip; the caller drops the repeated clips
        taken = (step * batch_size + np.arange(batch_size)) % table.shape[1]
        return [row[taken] for row in table]

    pipeline = pipeline_class(batch_size=batch_size, num_threads=threads, device_id=device_id, exec_dynamic=True)
    with pipeline:
        encoded, digits = fn.readers.webdataset(
            paths=tars,
            index_paths=indexes,
            ext=[codec, "index"],
            missing_component_behavior="error",
            name="reader",
        )
        pcm = (
            fn.decoders.audio(encoded, dtype=types.INT16)[0] if decoded else fn.reinterpret(encoded, dtype=types.INT16)
        )
        pcm = fn.reshape(pcm, shape=[1, -1, 1], layout="HWC")
        rows = list(fn.external_source(source=given, num_outputs=len(table), batch=True))
        made = [cut(pcm, rows[first : first + 6], unit_norm) for first in range(0, len(rows), 6)]
        if log_mel is not None:
            made = [log_mel(waveform if device_id is None else waveform.gpu()) for waveform in made]
        if whole:
            made = [fn.pad(values, axes=(0 if log_mel is None else 1,)) for values in made]
        pipeline.set_outputs(digits, *made)
    return pipeline


def in_torch(output: Any, device: torch.device) -> Tensor:
    """A pipeline's output (B, ...) as a tensor: on a CPU without a copy; on a GPU, of a run on the current stream, a
    float32 copy made on that stream, for which DALI's own stream waits before it uses the memory again.

    Ours: whenever torch drops a tensor that is DALI's, a thread of DALI waits for the whole GPU (DLTensorGraveyard in
    its dltensor.cc). CUDA refuses that while a CUDA graph is recorded, and DALI 2.0 then ends the process. Copying 512
    crops takes 10 us on an H100, computed, not measured.
    """
    found = output.as_tensor()
    if device.type == "cpu":
        return from_dlpack(found)
    from nvidia.dali.plugin.pytorch import feed_ndarray

    made = torch.empty(found.shape(), device=device)
    copied: Tensor = feed_ndarray(found, made, torch.cuda.current_stream(device))
    return copied


def check_ids(folder: Path, split: str, wanted: Int64s, digits: NDArray[np.uint8]) -> None:
    """Raises UserError unless .index members of a set's clips, ASCII digits (B, width), are the ids `wanted` (B,)."""
    found = (digits.astype(np.int64) - ord("0")) @ 10 ** np.arange(digits.shape[1])[::-1]
    if len(other := np.flatnonzero(found != wanted)):
        raise UserError(
            f"{folder}: clip {found[other[0]]} of split {split} is where the index has clip {wanted[other[0]]}; "
            f"unfused-fast check {folder} reports what is wrong"
        )
