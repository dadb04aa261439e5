"""JSON of unknown origin, within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST_JSON = 16 * 2**20
"""Bytes above which a file is not one of ours and is not read. Ours: what runs write has a few kilobytes."""


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """The value of a JSON file. Raises OSError, or ValueError: too large, no UTF-8, no JSON, nested too deeply."""
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{size:,} bytes, which is too large")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number that a float holds; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_scale(value: Any) -> bool:
    """Whether a value from JSON has a finite mean and a std above 0."""
    return isinstance(value, dict) and all(is_number(value.get(name)) for name in ("mean", "std")) and value["std"] > 0


def is_count(value: Any) -> bool:
    """Whether a value from JSON is a whole number from 0 on that 64 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
