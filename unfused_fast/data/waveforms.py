"""Waveforms: of the clips of a shard set by libsndfile, where DALI is not installed; and of a caller, checked.

B clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Number, Real
from pathlib import PurePath
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unfused_fast.data.crops import Pieces, cut
from unfused_fast.data.order import Int64s, Reading, SplitIndex
from unfused_fast.data.unreadable import read_clip, reading_error
from unfused_fast.errors import UserError
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.decode import HIGHEST_RATE_HZ, LARGEST_SAMPLE, LOWEST_RATE_HZ, RESAMPLING_QUALITY
from unfused_fast.shards.sets.shard_files import members_of

Waveform = Tensor | NDArray[np.floating] | Sequence[Tensor | NDArray[np.floating]]
"""(samples,), (B, samples), or B of (samples,); float, in [-1, 1], one channel. (channels, samples), as torchaudio.load
gives, would be read as that many clips: average the channels first."""
FEWEST_COLUMNS = 160
"""An array with fewer columns than this, and than rows, is refused as (samples, channels). Ours: a clip of less than 10
ms has no audible content, and so many channels are rare."""
_AS_FLOAT = {
    "uint8": "subtract 128, then divide by 128",
    "int16": "divide by 32768",
    "int32": "divide by 2147483648",
    "object": "of a column or an array of clips make a list, with .tolist()",
}
_MONO = "average the channels, with waveform.mean(axis=1)"


def decoded(
    index: SplitIndex,
    reading: Reading,
    crops: Pieces,
    samples: Int64s,
    *,
    split: str,
    codec: str,
    unit_norm: bool,
    batch_size: int,
    threads: int,
) -> Iterator[tuple[Tensor, slice]]:
    """(B, L) crops of the clips to read, padded with zeros to the longest of their batch, and the rows of the batch: as
    DALI's graph gives them. A batch is decoded while the one before it is used.

    Args:
        samples: (n,) lengths of the clips to read.
        unit_norm: as of crops.cut.

    Raises:
        UserError: a clip cannot be read or decoded.
    """

    def waveform(number: int) -> Tensor:
        row = reading.rows[number]
        tar, members = index.tars[index.shard[row]], members_of(index.lines[row])
        try:
            pcm = read_clip(tar, members, codec, int(samples[number]))
        except ValueError as error:
            key = members[0].name.partition(".")[0]
            raise reading_error(split, [str(tar)], [], ValueError(f"clip {key}: {error}")) from error
        return torch.from_numpy(cut(pcm, crops[:, number], unit_norm))

    def part(begin: int) -> tuple[slice, Iterator[Tensor]]:
        rows = slice(begin, min(begin + batch_size, len(reading.rows)))
        return rows, pool.map(waveform, range(rows.start, rows.stop))

    with ThreadPoolExecutor(threads) as pool:
        begun = map(part, range(0, len(reading.rows), batch_size))
        ahead = next(begun, None)
        while ahead is not None:
            rows, made = ahead[0], list(ahead[1])
            ahead = next(begun, None)
            yield pad_sequence(made, batch_first=True), rows


def clips_16k(waveform: Waveform, sample_rate: int, lengths: Sequence[int] | Tensor | None = None) -> list[Tensor]:
    """Each clip as (samples,) float32 at 16 kHz, on its own device.

    Args:
        sample_rate: of `waveform`, in hertz; resampled by soxr HQ where it differs.
        lengths: samples of each row of a (B, samples) batch; the rest is not read.

    Raises:
        UserError: what Embedder.embed refuses.
    """
    number = isinstance(sample_rate, Real) and not isinstance(sample_rate, bool)
    if not number or not LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ:  # in kilohertz, say
        found = f"{sample_rate}" if number else f"a {type(sample_rate).__name__}"
        raise UserError(f"sample_rate = {found}: want hertz, {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ}, such as 16000")
    rows = _rows(waveform)
    if lengths is not None:
        rows = _shortened(rows, lengths)
    peaks = torch.stack([row.abs().amax().to(rows[0].device, torch.float32) for row in rows]).tolist()  # read once
    for clip, peak in enumerate(peaks):
        if not math.isfinite(peak):
            raise UserError(f"clip {clip}: it holds NaN or infinity; repair the recording, or leave it out")
        if peak > LARGEST_SAMPLE:
            raise UserError(
                f"clip {clip}: samples up to {peak:g}: want float in [-1, 1]; divide 16-bit integers by 32768"
            )
    if sample_rate == SAMPLE_RATE_HZ:
        return [row.float() for row in rows]
    arrays = [row.detach().cpu().float().numpy() for row in rows]
    made = [soxr.resample(array, sample_rate, SAMPLE_RATE_HZ, RESAMPLING_QUALITY) for array in arrays]
    if not all(map(len, made)):
        raise UserError(f"a clip is shorter than one sample at {SAMPLE_RATE_HZ} Hz; give a longer one")
    return [torch.from_numpy(array) for array in made]


def _shortened(rows: list[Tensor], lengths: Sequence[int] | Tensor) -> list[Tensor]:
    """The first samples of each row, as many as `lengths` says."""
    wanted: Any = lengths
    try:
        wanted = torch.as_tensor(lengths).tolist()
        if all(0 < length <= len(row) and length == int(length) for row, length in zip(rows, wanted, strict=True)):
            return [row[: int(length)] for row, length in zip(rows, wanted, strict=True)]
    except (TypeError, ValueError, RuntimeError):  # no numbers, or not one for each row
        pass
    raise UserError(f"lengths {wanted}: want one whole number for each clip, from 1 to the number of its samples")


def check_batch(waveform: object) -> None:
    """Raises UserError for an input that is not a batch of clips, before its rows are read: a file's name, the pair
    that soundfile.read returns, a list of numbers, an array (samples, channels).
    """
    shape = tuple(waveform.shape) if hasattr(waveform, "__array__") else ()  # type: ignore[attr-defined]
    numbers = [isinstance(item, Number) for item in waveform[:3]] if isinstance(waveform, list | tuple) else []
    if isinstance(waveform, str | bytes | PurePath):
        wrong = f"a file name, {str(waveform)!r}: want samples; read the file with soundfile.read"
    elif hasattr(waveform, "__array__") and len(shape) not in (1, 2):
        wrong = f"{shape}: want (samples,) or (clips, samples), one channel"
    elif len(shape) == 2 and 0 < shape[1] < min(shape[0], FEWEST_COLUMNS):
        wrong = (
            f"{shape}, which looks like (samples, channels): want (samples,) or (clips, samples), one channel; {_MONO},"
            " or give clips as short as this as a list"
        )
    elif not hasattr(waveform, "__array__") and not isinstance(waveform, Sequence):
        wrong = f"of type {type(waveform).__name__}: want an array, or a list of arrays"
    elif len(numbers) == 2 and sum(numbers) == 1:
        wrong = "a pair of samples and sample rate, as soundfile.read returns: want the two as two arguments"
    elif numbers and numbers[0]:
        wrong = "a list of numbers: want an array; make one with numpy.asarray"
    else:
        return
    raise UserError(f"waveform is {wrong}")


def _rows(waveform: Waveform) -> list[Tensor]:
    """B tensors (samples,) of a floating type, which share the caller's memory where they can."""
    check_batch(waveform)
    if hasattr(waveform, "__array__"):
        whole = _tensor(waveform, "waveform")
        rows = list(whole[None] if whole.ndim == 1 else whole)
    else:
        rows = [_tensor(clip, f"clip {number}") for number, clip in enumerate(waveform)]
    if not rows:
        raise UserError("no clips; give at least one")
    for number, row in enumerate(rows):
        if row.ndim != 1 or not len(row):
            channels = row.ndim == 2 and row.shape[1] < row.shape[0]
            raise UserError(
                f"clip {number} is {tuple(row.shape)}: want (samples,), one channel, 1 sample or more"
                f"{f'; {_MONO}' if channels else ''}"
            )
    return rows


def _tensor(value: object, name: str) -> Tensor:
    """Raises UserError unless its numbers are floating. Arrays that torch does not take (negative strides, foreign byte
    order, long doubles) are copied.
    """
    try:
        array = value if isinstance(value, Tensor) else np.asarray(value)
    except ValueError as error:
        raise UserError(f"{name} is a list of lists of different lengths: want an array (samples,)") from error
    if isinstance(array, Tensor):
        if array.is_floating_point():
            return array
    elif array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinity is refused later
            return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
    kind = str(array.dtype).removeprefix("torch.")
    raise UserError(f"{name} is {kind}: want float in [-1, 1]; {_AS_FLOAT.get(kind, 'convert it')}")
