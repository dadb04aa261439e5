"""`--save-every`: how often a run saves within an epoch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unfused_fast.errors import UserError

DEFAULT_SECONDS = 600.0
"""Seconds between two saves within an epoch. Ours: no more than ten minutes are lost, and a save every ten minutes
costs less than a hundredth of them."""


@dataclass(frozen=True)
class SaveEvery:
    """When a run saves within an epoch; at the end of an epoch it saves by `train.save_every`."""

    steps: int | None = None
    """After this many optimiser steps, counted over the whole run."""
    seconds: float | None = DEFAULT_SECONDS
    """When this many seconds have passed since the last save."""


def parse_save_every(text: str | None) -> tuple[SaveEvery, int | None]:
    """`500steps`, `300s` or `2epochs` -> how often to save within an epoch, and `train.save_every` where it was given.

    `2epochs` saves within no epoch. None: the default. Raises UserError for anything else.
    """
    if text is None:
        return SaveEvery(), None
    found = re.fullmatch(r"([1-9]\d{0,8})\s*(steps?|s|epochs?)", text.strip())
    if found is None:
        raise UserError(
            f"--save-every {text}: want a whole number of steps, seconds or epochs, as 500steps, 300s or 2epochs"
        )
    number, unit = int(found[1]), found[2]
    if unit.startswith("step"):
        return SaveEvery(steps=number, seconds=None), None
    if unit == "s":
        return SaveEvery(seconds=number), None
    return SaveEvery(seconds=None), number
