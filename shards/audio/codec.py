"""The audio member of a shard: PCM16, 16 kHz, one channel, as WAV or FLAC."""

from __future__ import annotations

import io
import struct
from functools import lru_cache

import numpy as np
import soundfile
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16000
"""Rate of every shard set, in hertz. Source: DECAR and the authors' code, see FrontendConfig.sample_rate_hz."""

_HEADER = struct.Struct("<4sI8sIHHIIHH4sI")
WAV_HEADER_BYTES = _HEADER.size
"""44: where the samples of a WAV of encode_clip begin."""


def encode_clip(pcm: NDArray[np.int16], codec: str) -> bytes:
    """PCM16 at 16 kHz -> the bytes of a file: WAV with the plain 44-byte header, or FLAC."""
    if codec == "wav":
        data = np.ascontiguousarray(pcm, "<i2").data
        return b"".join((_wav_header(data.nbytes), data))
    stream = io.BytesIO()
    soundfile.write(stream, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def decode_clip(data: bytes | memoryview) -> NDArray[np.int16]:
    """The bytes that encode_clip returned -> their samples. Raises ValueError for anything else."""
    header = bytes(data[:WAV_HEADER_BYTES])
    if header.startswith(b"RIFF"):
        if header != _wav_header(len(data) - WAV_HEADER_BYTES):
            raise ValueError("its header is not that of a 16 kHz mono PCM16 WAV of this size")
        return np.frombuffer(data, "<i2", offset=WAV_HEADER_BYTES)
    try:
        pcm, rate_hz = soundfile.read(io.BytesIO(data), dtype="int16")
    except soundfile.SoundFileError as error:
        raise ValueError(str(error)) from error
    if rate_hz != SAMPLE_RATE_HZ or pcm.ndim != 1:
        raise ValueError(f"{rate_hz} Hz, {pcm.ndim} dimensions, but a clip has {SAMPLE_RATE_HZ} Hz and one channel")
    return np.asarray(pcm, np.int16)


@lru_cache(maxsize=1024)
def _wav_header(data_bytes: int) -> bytes:
    size = max(0, data_bytes)
    rates = SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ
    return _HEADER.pack(b"RIFF", 36 + size, b"WAVEfmt ", 16, 1, 1, *rates, 2, 16, b"data", size)
