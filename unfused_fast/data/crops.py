"""Parts of a clip: the random crops of training, the windows of evaluation, and the samples that they need.

B clips in a batch, F mel bins, T frames.
"""

from __future__ import annotations

from tarfile import BLOCKSIZE
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfused_fast.config import LAPE_TASKS, Config
from unfused_fast.data.order import Int64s
from unfused_fast.data.randomness import Stream, uniform
from unfused_fast.shards.audio.codec import WAV_HEADER_BYTES
from unfused_fast.shards.sets.table import ShardSet

Pieces = NDArray[np.int32]
"""(6, B) samples of a waveform with the edges of a centred STFT: first sample and number of samples of its head, body
and tail, each possibly empty. Head and tail are read backwards (reflection), or begin at BEYOND (zeros)."""
BEYOND = 1 << 29
"""First sample of an edge of zeros: after the end of every clip, where the reader gives zeros. 9 hours."""
Where = Literal["start", "centre", "random"]


def crop_samples(config: Config) -> int:
    """Samples between the centres of a crop's first and last frame: the length to which shorter clips are padded."""
    return (config.crop_frames - 1) * config.frontend.hop_samples


def first_frames(config: Config, counters: Tensor, samples: Tensor, epoch: int, view: int) -> Tensor:
    """(B,) counters and lengths in samples -> (B,) int64 first frame of a crop, uniform over all places where it fits;
    on the device of the counters, with the same values on every device.
    """
    if config.data.crop != "random":
        return torch.zeros_like(samples)
    draw = uniform(counters, 1, seed=config.train.seed, epoch=epoch, stream=Stream.CROP, view=view)[:, 0]
    length = samples.clamp(min=crop_samples(config))
    places = 1 + torch.div(length, config.frontend.hop_samples, rounding_mode="floor") - config.crop_frames + 1
    return (draw.double() * places).long()


def pieces(config: Config, samples: Int64s, first_frame: Int64s | None = None) -> Pieces:
    """(B,) lengths in samples, (B,) first frames -> the samples of each clip that a crop needs; without frames, the
    whole clip.

    A shorter clip is padded with zeros to the length of a crop.
    """
    reach, width = config.frontend.n_fft // 2, crop_samples(config)
    length = np.maximum(samples, width)
    start = np.zeros_like(length) if first_frame is None else first_frame * config.frontend.hop_samples
    stop = (length if first_frame is None else start + width) + reach
    head, tail = np.maximum(0, reach - start), np.maximum(0, stop - length)
    body_start = np.maximum(0, start - reach)
    if config.frontend.pad_mode == "constant":
        head_start = tail_start = np.full_like(length, BEYOND)
    else:
        head_start, tail_start = np.ones_like(length), length - 1 - tail
    body = np.minimum(length, stop) - body_start
    return np.stack([head_start, head, body_start, body, tail_start, tail]).astype(np.int32)


def cut(pcm: NDArray[np.int16], piece: NDArray[np.int32], unit_norm: bool) -> NDArray[np.float32]:
    """(L,) PCM16 of a clip, (6,) one column of Pieces -> float32 samples of the crop; zeros after the clip's end.

    Args:
        unit_norm: divide by the L2 norm of all of `pcm` instead of 32768.
    """

    def part(start: int, count: int) -> NDArray[np.int16]:
        found = pcm[start : start + count]
        return found if len(found) == count else np.pad(found, (0, count - len(found)))

    head_start, head, body_start, body, tail_start, tail = piece.tolist()
    edges = part(head_start, head)[::-1], part(body_start, body), part(tail_start, tail)[::-1]
    samples = np.concatenate(edges).astype(np.float32)
    if not unit_norm:
        return samples * np.float32(1 / 32768)
    return samples / np.float32(max(float(np.linalg.norm(pcm.astype(np.float32))), 1.0))


def wav_parts(crops: list[Pieces], samples: Int64s) -> tuple[Int64s, Int64s, list[Pieces]]:
    """(N,) lengths of the clips -> first byte and number of bytes of each WAV that its crops need, both (N,), and the
    crops relative to there.

    Reflected edges are within the body of their crop. DALI reads from multiples of a tar block. Ours: a crop needs a
    tenth of a clip of 10 s.
    """
    first = np.min([crop[2] for crop in crops], axis=0).astype(np.int64)
    last = np.max([crop[2] + crop[3] for crop in crops], axis=0).astype(np.int64)
    begin = (WAV_HEADER_BYTES + 2 * first) // BLOCKSIZE * BLOCKSIZE
    moved = [crop.copy() for crop in crops]
    for crop in moved:
        crop[::2] += ((WAV_HEADER_BYTES - begin) // 2).astype(np.int32)
    return begin, WAV_HEADER_BYTES + 2 * np.minimum(last, samples) - begin, moved


class Window(NamedTuple):
    """A part of each clip."""

    seconds: float
    where: Where
    seed: int = 0
    """Of `random`, which is one place a clip for a seed and"""
    epoch: int = 0
    """number of the pass."""

    def frames(self, config: Config) -> int:
        """Its log-mel frames, computed as for a crop (Config.crop_frames)."""
        return config.frames_of(self.seconds)

    def cut(self, log_mel: Tensor, counts: Tensor, clip_ids: Tensor, config: Config) -> tuple[Tensor, Tensor]:
        """(B, 1, F, T) whole clips, (B,) valid frames, (B,) ids -> (B, 1, F, T') windows, (B,) valid frames.

        Windows are frames of the clip's log-mel; a shorter clip is used whole and padded with zeros.
        """
        count = counts.clamp(max=self.frames(config))
        spare = counts - count
        if self.where == "random":
            draw = uniform(clip_ids, 1, seed=self.seed, epoch=self.epoch, stream=Stream.CROP)[:, 0]
            start = (draw.double() * (spare + 1)).long()
        else:
            start = spare // 2 if self.where == "centre" else torch.zeros_like(spare)
        place = torch.arange(int(count.max()), device=log_mel.device)
        index = (start[:, None] + place).clamp(max=log_mel.shape[3] - 1)[:, None, None]
        windows = log_mel.gather(3, index.expand(-1, *log_mel.shape[1:3], -1))
        return windows.masked_fill((place >= count[:, None])[:, None, None], 0.0), count


def eval_window(config: Config, encoder: Config, shards: ShardSet) -> Window | None:
    """By `eval.crop` and `eval.seconds`, for an encoder trained with `encoder`; None: whole clips."""
    if config.eval.crop == "full":
        return None
    seconds = config.eval.seconds
    if seconds == "auto":
        dataset = shards.manifest.dataset
        of_task = {task.dataset: task.seconds for task in LAPE_TASKS}
        known = None if dataset is None else of_task.get(dataset["name"])
        seconds = encoder.data.crop_seconds if known is None else known
    return Window(seconds, config.eval.crop, config.train.seed)
