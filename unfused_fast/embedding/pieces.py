"""A clip of any length in pieces of bounded size, such that the steps of the pieces are the steps of the clip.

T frames of a clip, T' steps of the encoder, `stride` frames a step.

The clip is padded with silence up to `length` samples, as in training, and both of its edges are reflected. A piece
after the first begins one step early, and a piece before the last ends one step late; these steps are dropped.
AudioNTT's step depends on 7 frames before and after its own 8, so that its steps are exactly those of the whole clip.
Squeeze-and-excitation of EfficientNet-B0 averages over its input, here one piece.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfused_fast.config import Config
from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ

PIECE_FRAMES = 16384
"""Frames in one pass of the encoder, of one clip or of several. Ours: 164 s; the first convolution's maps of
64 channels and 64 mel bins take 268 MB in float32."""
CPU_FRAMES = 1536
"""The same for several clips on a CPU. Ours: the two largest maps then take 25 MB each, and glibc keeps up to 64 MB of
freed memory (workers.keep_freed_memory); more comes from the kernel page by page, which took as long as the encoder
itself."""


class ClipPiece(NamedTuple):
    """A part of a clip."""

    start: int
    stop: int
    """Samples of the clip that are needed, [start, stop); those after its end are silence and not counted."""
    first_frame: int
    frames: int
    """Frames that are computed."""
    first_step: int
    steps: int
    """Steps that are kept, of those computed from the frames."""
    length: int
    """Samples of the whole clip with the silence after it."""

    @property
    def span(self) -> slice:
        """The steps that are kept."""
        return slice(self.first_step, self.first_step + self.steps)


class Cutting(NamedTuple):
    """How clips are cut: the settings that it depends on."""

    n_fft: int
    hop_samples: int
    shortest: int
    """Samples up to which clips are padded with silence."""
    stride: int
    rounds_up: bool
    """Whether the encoder gives a step for frames that do not fill one."""

    def frames(self, samples: int) -> int:
        """T of a clip."""
        return 1 + max(samples, self.shortest) // self.hop_samples

    def steps(self, samples: int) -> int:
        """T' of a clip."""
        return self._steps(self.frames(samples))

    def centre_ms(self, step: NDArray[np.int64]) -> NDArray[np.float64]:
        """The time of a step in the clip, in milliseconds: AudioNTT's at the middle of its 8 frames; EfficientNet-B0's,
        whose strided layers centre on every 32nd frame, there.
        """
        middle = 0.0 if self.rounds_up else (self.stride - 1) / 2
        return (step * self.stride + middle) * self.hop_samples * 1000 / SAMPLE_RATE_HZ

    def pieces(self, samples: int) -> list[ClipPiece]:
        """A clip of at least 1 sample -> its pieces, in order."""
        frames, stride = self.frames(samples), self.stride
        steps = self._steps(frames)
        inner = steps if frames <= PIECE_FRAMES else PIECE_FRAMES // stride - 2
        pieces = []
        for start in range(0, steps, inner):
            first, stop = max(0, start - 1), min(steps, start + inner)
            last = frames if stop == steps else min(frames, (stop + 1) * stride)
            pieces.append(self._piece(samples, first * stride, last, start - first, stop - start))
        return pieces

    def _piece(self, samples: int, first_frame: int, stop_frame: int, first_step: int, steps: int) -> ClipPiece:
        length = max(samples, self.shortest)
        low, high = self.span(first_frame, stop_frame)
        mirrored = 2 * (length - 1) - (high - 1)  # the earliest sample that the reflected end needs
        start = 0 if low < 0 else min(low, max(0, mirrored) if high > length else low)
        stop = min(samples, max(high, 1 - low))
        return ClipPiece(min(start, stop), stop, first_frame, stop_frame - first_frame, first_step, steps, length)

    def span(self, first_frame: int, stop_frame: int) -> tuple[int, int]:
        """Samples under the windows of frames, counted from the clip's first; some are before it or after the last."""
        reach = self.n_fft // 2
        return first_frame * self.hop_samples - reach, (stop_frame - 1) * self.hop_samples + self.n_fft - reach

    def _steps(self, frames: int) -> int:
        return -(-frames // self.stride) if self.rounds_up else frames // self.stride


def cutting_of(config: Config) -> Cutting:
    """How clips are cut for the encoder of a config."""
    frontend, audiontt = config.frontend, config.model.encoder == "audiontt"
    stride = 8 if audiontt else 32
    crop = (config.crop_frames - 1) * frontend.hop_samples  # as order.whole_crops
    shortest = max(crop, frontend.n_fft // 2 + 1, (stride - 1) * frontend.hop_samples)
    return Cutting(frontend.n_fft, frontend.hop_samples, shortest, stride, not audiontt)


def in_batches(pieces: list[ClipPiece], most_frames: int) -> list[list[int]]:
    """Batches of piece numbers, of similar lengths, with at most so many frames after padding, or of one piece.

    Ours: the longest first, so that each fits into the memory that the one before it has freed.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(pieces)), key=lambda number: pieces[number].frames, reverse=True):
        if batches and (len(batches[-1]) + 1) * pieces[batches[-1][0]].frames <= most_frames:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
