"""Why a file, or a piece of one, is not packed."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a file is not packed, as rejected.csv gives it."""

    UNREADABLE = "unreadable"
    EMPTY = "empty file"
    NOT_AUDIO = "not audio"
    UNSUPPORTED = "unsupported format"
    JOINED = "several recordings in one file"
    NO_SAMPLES = "no samples"
    TOO_SHORT = "too short"
    TOO_LONG = "too long"
    RATE = "unusable sample rate"
    DAMAGED = "truncated or damaged"
    NON_FINITE = "non-finite samples"
    SCALE = "samples out of range"
    CRASHED = "crashed the decoder"
    HUNG = "hung the decoder"


class Rejected(Exception):
    """A file, or a piece of one, that is not packed; `str()` is the reason for rejected.csv. Holds no path."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)
