"""A job whose worker process dies, hangs or fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfused_fast.shards.packing.workers import At, Bad


@dataclass
class Double:
    """Twice each item; at 7 it does what `kind` says."""

    items: Sequence[int]
    kind: str = ""
    mark: str = ""

    def answer(self, bad: Bad, at: At) -> list[Any]:
        """Twice the items, or the reasons of those in `bad`."""
        if self.kind == "never begins":
            time.sleep(1000)
        if self.kind == "screens":
            return [os.path.samestat(os.fstat(number), Path(os.devnull).stat()) for number in (1, 2)]
        answers: list[Any] = []
        for place, item in enumerate(self.items):
            at(place, 50_000_000 if self.kind == "reads for long" else 0)
            first = not self.mark or not Path(self.mark).exists()
            if item == 7 and (place not in bad or self.kind == "dies whatever"):
                if self.kind == "hangs":
                    time.sleep(1000)
                if self.kind == "reads for long":
                    time.sleep(1)
                if self.kind == "fails":
                    raise RuntimeError("a fault of the program")
                if self.kind == "dies once" and first:
                    Path(self.mark).touch()
                if self.kind.startswith("dies") and (self.kind != "dies once" or first):
                    os.kill(os.getpid(), signal.SIGKILL)
            answers.append(str(bad[place].reason) if place in bad else 2 * item)
        return answers
