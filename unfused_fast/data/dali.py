"""The DALI graph of stream.py and what it is made of: crops of waveforms, log-mels, clip ids.

N clips that are read, F mel bins, T frames.

DALI itself is handed in, as pipeline.import_dali gives it, so that one file imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfused_fast.config import FrontendConfig
from unfused_fast.data.front_end import analysis_window
from unfused_fast.mel import DECAR_RANGE

Dali = tuple[Any, Any, Any, Any]
"""fn, math, types, Pipeline."""


def log_mel(dali: Dali, waveform: Any, config: FrontendConfig, mean: float, std: float) -> Any:
    """Samples with their context -> (F, T) (log-mel - mean) / std, where the waveform is."""
    fn, math, *_ = dali
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


def cut(dali: Dali, pcm: Any, crop: list[Any], unit_norm: bool) -> Any:
    """(1, L, 1) PCM16 -> float32 samples of the crop with the edges of a centred STFT, as order.Crop says; beyond the
    clip's end lie zeros.

    Args:
        unit_norm: divide by the L2 norm of all of `pcm`, and not by 32768.
    """
    fn, math, types, _ = dali
    head_start, head, body_start, body, tail_start, tail = crop

    def part(start: Any, length: Any) -> Any:
        return fn.slice(pcm, start=start, shape=length, axes=(1,), out_of_bounds_policy="pad")

    pieces = fn.flip(part(head_start, head)), part(body_start, body), fn.flip(part(tail_start, tail))
    joined = fn.reshape(fn.cat(*pieces, axis=1), shape=[-1], layout="")
    if not unit_norm:
        return fn.cast(joined, dtype=types.FLOAT) * (1.0 / 32768)
    samples = fn.reshape(fn.cast(pcm, dtype=types.FLOAT), shape=[-1], layout="")
    norm = math.sqrt(fn.reductions.sum(samples * samples))
    return fn.cast(joined, dtype=types.FLOAT) / math.max(norm, 1.0)


def clip_id(dali: Dali, digits: Any, width: int) -> Any:
    """The ASCII digits of an `.index` member -> the clip id, int64."""
    fn, _, types, _ = dali
    powers = types.Constant(np.array([10**place for place in range(width - 1, -1, -1)], dtype=np.int64))
    return fn.reductions.sum((fn.cast(digits, dtype=types.INT64) - 48) * powers, axes=(0,), keep_dims=True)


def clip_pipeline(
    dali: Dali,
    tars: list[str],
    indexes: list[str],
    crops: Sequence[Sequence[NDArray[np.int32]]],
    arrays: Sequence[NDArray[Any]],
    graph: Callable[[list[Any], list[Any]], list[Any]] | None,
    *,
    codec: str,
    key_width: int,
    decoded: bool,
    unit_norm: bool,
    batch_size: int,
    threads: int,
    device_id: int | None,
) -> Any:
    """A pipeline, not yet built: clip ids and what `graph` makes, batch after batch, again from the first clip after
    the last.

    Args:
        crops: order.Crop of all clips; the graph gets a waveform of each.
        arrays: (N, ...) what the graph gets beside them.
        graph: None: the outputs are the waveforms.
        key_width: digits of a key.
        decoded: whether audio is decoded; if not, members are read as PCM16.
        unit_norm: as of cut.
    """
    fn, _, types, pipeline_class = dali
    handed, fields = [*(array for crop in crops for array in crop), *arrays], len(crops[0])

    def given(step: int) -> list[NDArray[Any]]:
        # the reader goes round after the last clip; what it repeats is for the caller to cut off
        taken = (step * batch_size + np.arange(batch_size)) % len(handed[0])
        return [array[taken] for array in handed]

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
        given_to = list(fn.external_source(source=given, num_outputs=len(handed), batch=True))
        cuts = [
            cut(dali, pcm, given_to[fields * number : fields * (number + 1)], unit_norm) for number in range(len(crops))
        ]
        made = cuts if graph is None else graph(cuts, given_to[fields * len(crops) :])
        pipeline.set_outputs(clip_id(dali, digits, key_width), *made)
    return pipeline
