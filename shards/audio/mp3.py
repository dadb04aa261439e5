"""MP3 files: counts the frames, and puts a header with the right count before them.

libsndfile takes the length from the first frame (Xing, Info), or guesses it by the first frame's bit rate, and ends
there: where the header is wrong or missing, or files were joined, most of the audio is lost without an error. Ours: all
frame headers are counted, which costs a few percent of decoding; where the count is not libsndfile's, the frames are
read from memory, after a Xing frame with the right count.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import BinaryIO

from unfused_fast.shards.sources.reasons import Reason, Rejected

_KBITS = {  # by MPEG version, layer III. Source: ISO/IEC 11172-3 and 13818-3, bitrate_index
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_FRAME_START = re.compile(
    b"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]["
    + re.escape(bytes(byte for byte in range(0x10, 0xF0) if byte >> 2 & 3 != 3))
    + b"]"
)
"""First three bytes of what `_frame_bytes` takes for a frame. Ours: found without a step of Python for each byte, which
would take minutes for a file that only begins like an MP3."""
LARGEST_BYTES = 1 << 29
"""Largest file that is read into memory. Ours: nine hours at 128 kbit/s."""
BLOCK_BYTES = 1 << 20
"""Read at once while frames are counted; the first frame is searched no further after the tags."""
_LOOK_BYTES = 1 << 14
"""What three frames take at most, and more: a frame has 2881 bytes or fewer."""
_ROOM_BYTES = 192
"""Room for the header, the count and what LAME adds: 4 + 32 + 12 + 36 bytes, and more."""
_DECODER_DELAY = 529
"""Samples that libsndfile leaves out where a first frame with a count names no delay of the encoder."""
_LAME_DELAYS = 21
"""Where LAME's delay and padding are stored, after the fields of Xing: 12 bits each. Source: LAME's tag, revision 1."""
FRAME_SAMPLES = 1152
"""Most samples of a frame, per channel."""
SLACK_FRAMES = 4
"""A header may declare so many more frames than the file holds: encoders pad by two at each end."""
TAGS = (b"ID3", b"APETAGEX", b"\0")
"""What may precede the first frame: tags, and zeros as padding."""


@dataclass
class Frames:
    """The layer III frames of a file."""

    header: bytes
    """Of the first one."""
    count: int = 0
    """Those that hold audio."""
    runs: list[tuple[int, int]] = field(default_factory=list)
    """[start, stop) in the file, in bytes, of consecutive frames; tags, headers and garbage are between the runs."""
    declared: int | None = None
    """The count in the first frame; None: it has none."""
    delay: int = 0
    """Samples that the encoder put before the audio, and `padding` after it, by LAME's tag."""
    padding: int = 0
    other: bytes = b""
    """First header of frames of another rate or channel count that follow these and are not counted; empty: none do."""

    def add(self, place: int, size: int) -> None:
        """Counts a frame."""
        start = self.runs.pop()[0] if self.runs and self.runs[-1][1] == place else place
        self.runs.append((start, place + size))
        self.count += 1

    @property
    def frame_samples(self) -> int:
        """Samples of a frame, per channel: FRAME_SAMPLES of MPEG-1, half as many of MPEG-2 and 2.5."""
        return FRAME_SAMPLES if self.header[1] >> 3 & 3 == 3 else FRAME_SAMPLES // 2

    @property
    def samples(self) -> int:
        """Per channel, as libsndfile counts where the header is right, or where its guess without one is."""
        unnamed = _DECODER_DELAY if self.declared is not None and not self.delay + self.padding else 0
        return self.count * self.frame_samples - self.delay - self.padding - unnamed

    @property
    def declared_samples(self) -> int:
        """As `samples`, by the first frame's count; 0 where it has none."""
        return 0 if self.declared is None else self.samples + (self.declared - self.count) * self.frame_samples


def slack_samples(subtype: str, rate_hz: int) -> int:
    """SLACK_FRAMES of layer III, or of another layer, whose frames are 1152 samples or fewer."""
    halved = subtype == "MPEG_LAYER_III" and rate_hz < min(_RATES_HZ[3])
    return SLACK_FRAMES * FRAME_SAMPLES >> halved


_last: tuple[object, int, Frames | None] = None, 0, None
"""Name and size of the file counted last, and what was found: a long file is opened for each of its pieces."""


def frames_of(file: BinaryIO, name: object) -> Frames | None:
    """All layer III frames; None where there are fewer than two of one kind in a row."""
    global _last
    size = file.seek(0, io.SEEK_END)
    if _last[:2] != (name, size):
        _last = name, size, _counted(file, size)
    return _last[2]


def with_length(file: BinaryIO, frames: Frames) -> io.BytesIO:
    """The frames alone, after a Xing frame that counts them and keeps LAME's delay and padding.

    Raises:
        Rejected: longer than LARGEST_BYTES.
    """
    if sum(stop - start for start, stop in frames.runs) > LARGEST_BYTES:
        what = f"an MP3 of more than {LARGEST_BYTES >> 20} MiB without a correct frame count"
        raise Rejected(Reason.UNREADABLE, f"{what}; save it as FLAC")
    pieces = [_xing_frame(frames)]
    for start, stop in frames.runs:
        file.seek(start)
        pieces.append(file.read(stop - start))
    return io.BytesIO(b"".join(pieces))


def tag_bytes(head: bytes) -> int:
    """Size of the ID3v2 or APE tag that begins so (32 bytes are enough), 0 without one."""
    if head[:3] == b"ID3" and len(head) >= 10:
        footer = 10 if head[5] & 0x10 else 0
        return 10 + footer + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    if head[:8] == b"APETAGEX" and len(head) >= 24:
        before = 32 if head[23] & 0x20 else 0  # a header as well; the size counts the footer
        return before + int.from_bytes(head[12:16], "little")
    return 0


def behind_tags(file: BinaryIO) -> int:
    """Position after all leading tags."""
    place = 0
    file.seek(0)
    while size := tag_bytes(file.read(32)):
        place = file.seek(place + size)
    return place


def _counted(file: BinaryIO, end: int) -> Frames | None:
    found: Frames | None = None
    sizes: dict[bytes, int] = {}
    place = first = behind_tags(file)
    base, data, follows = place, b"", False  # follows: a frame of this kind ends here
    while place + 4 <= end:
        offset = place - base
        if offset + _LOOK_BYTES > len(data) and base + len(data) < end:
            file.seek(place)
            base, offset, data = place, 0, file.read(BLOCK_BYTES)
            if len(data) < 4:
                break
        if found is not None and follows:
            header = data[offset : offset + 4]
            size = sizes.get(header)
            if size is None:
                size = sizes[header] = _frame_bytes(header) if _kind(header) == _kind(found.header) else 0
            if size and place + size <= end:
                tag = offset + _tag_offset(header)
                if data.startswith((b"Xing", b"Info"), tag) or data.startswith(b"VBRI", offset + 36):
                    _note_header(found, data[tag : offset + size])
                else:
                    found.add(place, size)
                place += size
                continue
            follows = False
        if size := tag_bytes(data[offset : offset + 32]):
            place += size
            continue
        match = _FRAME_START.search(data, offset)
        if match is None:
            if found is None and base + len(data) - first >= BLOCK_BYTES:
                break
            place = base + len(data) - 2 if base + len(data) < end else end
            continue
        place = base + match.start()
        if match.start() + _LOOK_BYTES > len(data) and base + len(data) < end:
            continue  # after reading more of the file
        header = data[match.start() : match.start() + 4]
        known = found is None or _kind(header) == _kind(found.header)
        if not _followed(data, match.start(), 1 if known else 3):
            place += 1
        elif known:
            found, follows = found or Frames(header), True
        elif found is not None:
            found.other = header
            break
    return found if found is not None and found.count else None


def _followed(data: bytes, offset: int, times: int) -> bool:
    """Whether a frame begins here, and `times` others of its kind follow it."""
    kind = _kind(data[offset : offset + 4])
    for _ in range(times):
        size = _frame_bytes(data[offset : offset + 4])
        offset += size
        if not size or offset + 4 > len(data) or _kind(data[offset : offset + 4]) != kind:
            return False
    return _frame_bytes(data[offset : offset + 4]) > 0


def _note_header(found: Frames, tag: bytes) -> None:
    """Takes the count from a Xing or Info frame that is the first, and the delay; the padding from any."""
    first = not found.count
    if tag[:4] not in (b"Xing", b"Info") or len(tag) < 8:
        return
    flags = tag[7]
    if first and flags & 1:
        found.declared = int.from_bytes(tag[8:12], "big") or None
    place = 8 + 4 * (flags & 1) + 2 * (flags & 2) + 25 * (flags & 4) + (flags & 8) // 2
    named = tag[place : place + 1] > b"\0"
    delays = int.from_bytes(tag[place + _LAME_DELAYS : place + _LAME_DELAYS + 3], "big") if named else 0
    found.padding = delays & 0xFFF
    if first:
        found.delay = delays >> 12


def _xing_frame(frames: Frames) -> bytes:
    first = frames.header
    # The same header without protection, at a bit rate that leaves room for the count.
    plain = bytes((first[0], first[1] | 1))
    header, size = next(
        (header, size)
        for index in range(1, 15)
        if (size := _frame_bytes(header := plain + bytes((index << 4 | first[2] & 0x0C, first[3])))) >= _ROOM_BYTES
    )
    frame = (
        header.ljust(_tag_offset(header), b"\0") + b"Xing" + (1).to_bytes(4, "big") + frames.count.to_bytes(4, "big")
    )
    if delays := frames.delay << 12 | frames.padding:
        frame += b"LAME".ljust(_LAME_DELAYS, b"\0") + delays.to_bytes(3, "big")
    return frame.ljust(size, b"\0")


def _tag_offset(header: bytes) -> int:
    """Offset of Xing or Info in a frame: after the header and the side information."""
    mono, mpeg1 = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    return 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))


def described(header: bytes) -> str:
    """Rate and channels of a frame."""
    rate_hz = _RATES_HZ[header[1] >> 3 & 3][header[2] >> 2 & 3]
    return f"{rate_hz} Hz {'mono' if header[3] >> 6 == 3 else 'stereo'}"


def _kind(header: bytes) -> tuple[int, int, bool]:
    """Version and layer, sample rate, and whether it is mono: libsndfile reads up to a change of any."""
    return header[1] & 0x1E, header[2] & 0x0C, header[3] >> 6 == 3


def _frame_bytes(header: bytes) -> int:
    """Size of the layer III frame that begins so; 0 where none begins."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0 or header[1] >> 1 & 3 != 1:
        return 0
    version, rate = header[1] >> 3 & 3, header[2] >> 2 & 3
    kbits = 0 if version == 1 else _KBITS[3 if version == 3 else 2][header[2] >> 4]
    if not kbits or rate == 3:
        return 0
    return (144 if version == 3 else 72) * kbits * 1000 // _RATES_HZ[version][rate] + (header[2] >> 1 & 1)
