"""Any audio file -> 16 kHz mono PCM16, or the reason why not.   C channels.

A file's signal at 16 kHz has `samples_16k(frames, rate)` samples; a piece of it is [start, stop) in these samples.
`frames` are samples per channel at the file's own rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from unfused_fast.shards.audio.codec import SAMPLE_RATE_HZ
from unfused_fast.shards.audio.measures import Clipping
from unfused_fast.shards.audio.mp3 import slack_samples
from unfused_fast.shards.audio.open_audio import ForwardFile, message, open_audio
from unfused_fast.shards.sources.location import Location
from unfused_fast.shards.sources.reasons import Reason, Rejected

MINIMUM_SAMPLES = 514
"""Shortest clip that a set may hold. Ours: half a window of 1024 reflected at the edge needs more than 513 samples."""
RESAMPLING_QUALITY = "HQ"
"""soxr's quality. Ours: librosa's default, 20 bit, above the 16 bit that are kept; VHQ costs twice the time."""
MARGIN_SAMPLES = 512
"""What is decoded on both sides of a piece, in samples of the lower of the two rates. Ours: 128 already give the whole
file's signal to 2e-7 at rates from 100 Hz to 192 kHz."""
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 100, 1_536_000
"""Sample rates that are resampled. Ours: a lower rate holds nothing audible, no converter samples audio faster, and
soxr needs seconds per file to set up for the 2 GHz of a broken header."""
LONGEST_FILE_SECONDS = 24 * 3600.0
"""Longest file. Ours: a day of a field recorder; a few kilobytes of FLAC can decode to years."""
LARGEST_SAMPLE = 64.0
"""Ours: 36 dB above full scale. No recording reaches it, but integers converted to float without scaling do."""
NO_LENGTH_FRAMES = 1 << 60
"""As many or more are libsndfile's value for a FLAC without a length."""
SPAN_FRAMES = 1 << 25
"""Most samples per channel that are in memory at once: 128 MB, eleven minutes at 48 kHz. A longer piece is decoded in
spans."""
BLOCK_VALUES = 1 << 18
"""Samples of all channels that are decoded at once. Ours: 1 MB stays in the cache, whatever the number of channels."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Contents of a header: samples per channel, and their rate in hertz."""

    frames: int
    rate_hz: int

    @property
    def samples(self) -> int:
        """Length at 16 kHz."""
        return samples_16k(self.frames, self.rate_hz)


def samples_16k(frames: int, rate_hz: int) -> int:
    """Length that soxr gives `frames` samples at `rate_hz`: rounded, halves up."""
    return (2 * frames * SAMPLE_RATE_HZ + rate_hz) // (2 * rate_hz)


def probe(path: Location, longest_seconds: float = LONGEST_FILE_SECONDS) -> Probe:
    """Reads the header, or decodes once to count where it holds no length (FLAC from a stream).

    Raises:
        Rejected: unreadable, empty, not audio, no samples, longer than `longest_seconds`, a sample rate that audio does
            not have, or a header that declares more than the file holds.
    """
    with open_audio(path) as file:
        frames, rate_hz = int(file.frames), int(file.samplerate)
        if file.format == "RAW":  # libsndfile's guess by .au, .snd, .gsm or .vox in the name, whatever is in the file
            raise Rejected(Reason.NOT_AUDIO, "the file has no header, so its sample rate is unknown")
        if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
            raise Rejected(Reason.RATE, f"{rate_hz} Hz, not between {LOWEST_RATE_HZ} and {HIGHEST_RATE_HZ} Hz")
        longest = int(longest_seconds * rate_hz)
        if frames >= NO_LENGTH_FRAMES:
            frames = sum(map(len, _blocks(file, longest + 1)))  # counting ends beyond the longest
    if frames <= 0:
        raise Rejected(Reason.NO_SAMPLES)
    if frames > longest:
        raise Rejected(Reason.TOO_LONG, f"more than {longest_seconds / 3600:g} hours")
    return Probe(frames, rate_hz)


def decode_whole(path: Location, longest_seconds: float = LONGEST_FILE_SECONDS) -> NDArray[np.int16]:
    """All of a file at 16 kHz, (samples,). Raises Rejected: as `probe` and `decode_piece`."""
    found = probe(path, longest_seconds)
    return decode_samples(path, found.frames, 0, found.samples)


class Decoded(NamedTuple):
    """A piece of a file, and the facts that only the original file holds."""

    pcm: NDArray[np.int16]
    """At 16 kHz, one channel."""
    clipped_share: float
    """Of its samples at the file's own rate, those that are clipped, in the channel that has most of them."""
    rate_hz: int
    """Of the file."""
    channels: int
    """Of the file."""


def decode_samples(path: Location, frames: int, start: int, stop: int) -> NDArray[np.int16]:
    """The samples of decode_piece."""
    return decode_piece(path, frames, start, stop).pcm


def decode_piece(path: Location, frames: int, start: int, stop: int) -> Decoded:
    """One piece of a file: the mean of its channels at 16 kHz, rounded to 16 bit and clipped -> (stop - start,).

    Only the piece and `MARGIN_SAMPLES` around it are read, in spans of `SPAN_FRAMES`; of a file that cannot be sought,
    all before it.

    Raises:
        Rejected: as `probe`; or other than `frames`, fewer samples than the header declares, or not finite, or beyond
            LARGEST_SAMPLE.
    """
    file = open_audio(path, frames)
    try:
        return _decode_opened(file, frames, start, stop)
    except Rejected as rejected:
        if rejected.reason is not Reason.DAMAGED or not file.subtype.startswith("MPEG"):
            raise
    # The count in its header is right, but libsndfile fails on garbage between the frames: read the frames alone.
    return _decode_opened(open_audio(path), frames, start, stop)


def _decode_opened(file: ForwardFile, frames: int, start: int, stop: int) -> Decoded:
    with file:
        if frames != (own := int(file.frames)) < NO_LENGTH_FRAMES:
            raise Rejected(Reason.UNREADABLE, f"changed since its header was read, from {frames} to {own} samples")
        step = max(1, SPAN_FRAMES * SAMPLE_RATE_HZ // int(file.samplerate) if file.can_seek() else stop - start)
        clipping = Clipping(file.subtype, file.channels)
        begins = range(start, stop, step)
        spans = [_decode_span(file, frames, begin, min(begin + step, stop), clipping) for begin in begins]
    if not any(map(len, spans)):
        raise Rejected(Reason.NO_SAMPLES)
    return Decoded(np.concatenate(spans), clipping.share, int(file.samplerate), int(file.channels))


def _decode_span(file: ForwardFile, frames: int, start: int, stop: int, clipping: Clipping) -> NDArray[np.int16]:
    """Part of a piece -> (stop - start,). Raises Rejected.

    It equals the same span of the whole file resampled at once, because its first sample is on the grids of both rates.
    """
    rate_hz = int(file.samplerate)
    slack = slack_samples(file.subtype, rate_hz) if file.subtype.startswith("MPEG") else 0
    grid = rate_hz // math.gcd(rate_hz, SAMPLE_RATE_HZ)
    margin = MARGIN_SAMPLES * max(1, -(-rate_hz // SAMPLE_RATE_HZ))
    first = max(0, start * rate_hz // SAMPLE_RATE_HZ - margin) // grid * grid
    last = min(frames, -(-stop * rate_hz // SAMPLE_RATE_HZ) + margin)
    own = (place * rate_hz // SAMPLE_RATE_HZ - first for place in (start, stop))
    if start and not file.can_seek():
        deque(_blocks(file, first), maxlen=0)
    elif start:
        try:
            file.seek(first)
        except soundfile.SoundFileError as error:
            raise Rejected(Reason.DAMAGED, message(error)) from error
    mono = _read_mono(file, last - first, slice(*own), clipping)
    if len(mono) < last - first - slack:
        raise Rejected(Reason.DAMAGED, f"ends after {first + len(mono)} of {frames} samples")
    offset = first * SAMPLE_RATE_HZ // rate_hz
    if mono.dtype == np.int16:
        if rate_hz == SAMPLE_RATE_HZ:
            return mono[start - offset : stop - offset].astype("<i2", copy=False)
        mono = mono * np.float32(1 / 32768)
    peak = max(mono.max(initial=0), -mono.min(initial=0))  # NaN if any is
    if not np.isfinite(peak):
        raise Rejected(Reason.NON_FINITE, "NaN or infinite")
    if peak > LARGEST_SAMPLE:
        raise Rejected(Reason.SCALE, f"up to {peak:g}, not in [-1, 1]; divide 16-bit integers by 32768")
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, RESAMPLING_QUALITY)
    scaled = mono[start - offset : stop - offset] * np.float32(32768)
    pcm: NDArray[np.int16] = np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled).astype("<i2")
    return pcm


def _read_mono(file: ForwardFile, frames: int, own: slice, clipping: Clipping) -> NDArray[Any]:
    """The mean of the channels of the next `frames`, or of fewer where the file ends -> (frames,) float32 in [-1, 1];
    a single channel of 16 bit as int16.

    Args:
        own: those in which clipping is counted.
    """
    if file.channels == 1:
        single: NDArray[Any] = file.read(out=np.empty(frames, _stored_as(file)))
        clipping.count(single[own, None])
        return single
    mono, done = np.empty(frames, np.float32), 0
    for block in _blocks(file, frames):
        clipping.count(block[max(0, own.start - done) : max(0, own.stop - done)])
        mono[done : done + len(block)] = _mean_of_channels(block)
        done += len(block)
    return mono[:done]


def _stored_as(file: ForwardFile) -> type[np.int16 | np.float32]:
    """In what its samples are read. Ours: libsndfile takes longer to make float of 16 bit than numpy does."""
    return np.int16 if file.subtype == "PCM_16" else np.float32


def _blocks(file: ForwardFile, frames: int) -> Iterator[NDArray[Any]]:
    """(n, C) the next `frames`, or fewer where the file ends, in blocks, each of which overwrites the one before."""
    block = np.empty((max(1, BLOCK_VALUES // file.channels), file.channels), _stored_as(file))
    wanted = got = 0
    while frames and got == wanted:
        wanted = min(len(block), frames)
        got = len(file.read(wanted, out=block))
        frames -= got
        yield block[:got]


def _mean_of_channels(signal: NDArray[Any]) -> NDArray[np.float32]:
    """(frames, C) in [-1, 1], or of 16 bit -> (frames,) in [-1, 1]. By columns: eighteen times as fast as numpy's mean
    over the short axis. Sums of 16 bit are exact; two of them are the halves of 32, which takes 0.6 of the time.
    """
    scale = 32768 if signal.dtype == np.int16 else 1
    if signal.dtype == np.int16 and signal.shape[1] == 2:
        pairs = signal.view(np.int32)[:, 0]
        return ((pairs << 16 >> 16) + (pairs >> 16)).astype(np.float32) / np.float32(2 * scale)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is rejected later
        mono = signal[:, 0].astype(np.float32)
        for channel in range(1, signal.shape[1]):
            mono += signal[:, channel]
        mono /= scale * signal.shape[1]
    return mono
