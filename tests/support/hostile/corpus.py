"""The corpus of hostile audio files: `PYTHONPATH=tests/support python -m hostile.corpus FOLDER` writes it there."""

from __future__ import annotations

import sys
from pathlib import Path

from hostile import coded_files, odd_files, wav_files
from hostile.case import Case, build_all


def audio_cases() -> list[Case]:
    """Every case, none of them twice."""
    return wav_files.cases() + coded_files.cases() + odd_files.cases()


if __name__ == "__main__":
    build_all(audio_cases(), Path(sys.argv[1]))
