"""What a file is that libsndfile does not read, by its first bytes."""

from __future__ import annotations

import re

HEAD_BYTES = 256
"""Of a file, behind its tags, that tell what it is."""
_FORMATS = [
    (re.compile(start, re.DOTALL), name)
    for start, name in (
        (rb"....ftyp", "MPEG-4 audio (AAC or ALAC)"),
        (rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", "AAC"),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (ASF)"),
        (rb"\x1a\x45\xdf\xa3", "Matroska or WebM"),
        (rb"#!AMR", "AMR"),
        (rb"\x0b\x77|\x77\x0b", "AC-3"),
        (rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\x00|\xff\x1f\x00\xe8", "DTS"),
        (rb"wvpk", "WavPack"),
        (rb"MAC ", "Monkey's Audio"),
        (rb"TTA[12]", "True Audio"),
        (rb"MPCK|MP\+", "Musepack"),
        (rb"DSD |FRM8", "DSD"),
        (rb"\.RMF|\.ra\xfd", "RealAudio"),
        (rb"FLV\x01", "Flash video"),
        (rb"\x00\x00\x01[\xb3\xba]|\x47.{187}\x47", "MPEG video"),
        (
            rb"RIFF.{4}WAVEfmt .{4}(?:[\x20\x45\x50\x64\xff]\x00|[\x60-\x63]\x01|\x8f\x02|[\x00\x01]\x20)",
            "a codec in WAV",
        ),
        (rb"OggS.{24}Speex   ", "Speex"),
        (rb"OggS.{24}\x7fFLAC", "FLAC in Ogg"),
    )
]
"""Source: each format's own definition, as file(1) has them; of WAV the codecs of Yamaha, G.726, MPEG layer II, AAC,
Windows Media, G.722, AC-3 and DTS, by RFC 2361 and its successors."""


def format_named(head: bytes) -> str | None:
    """The name of a format that libsndfile does not read; None: it is none of those."""
    return next((name for start, name in _FORMATS if start.match(head)), None)
