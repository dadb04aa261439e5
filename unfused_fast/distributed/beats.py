"""Signs of life: each process of a run notes every second where it stands, so that others can say who is missing."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

from torch.distributed import Store

SECONDS = 1.0
"""From one sign of life to the next."""
LOOK_SECONDS = 3.5
"""How long a rank is watched before it is said to be silent."""


class Beats:
    """A thread that tells where this process stands. It has a connection of its own: one that waits for something holds
    up all that use it.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.where = "start"
        self._store, self._rank, self._world_size = store, rank, world_size
        self._lock, self._end = threading.Lock(), threading.Event()
        self._seen = dict[int, tuple[int, float]]()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._tell(0, 0.0)
        self._thread.start()

    def stop(self, reason: str | None) -> None:
        """Ends; `reason`: why this process gives up."""
        self._end.set()
        self._thread.join()
        if reason is not None:
            try:
                with self._lock:
                    self._store.set(f"unfused/ended/{self._rank}", reason)
            except RuntimeError:
                return  # nobody is left to be told

    def silent_for(self, rank: int) -> float:
        """Seconds for which no new sign of a rank was seen, over all calls."""
        sign = self._read(rank)
        number, now = (-1 if sign is None else int(sign["number"])), time.monotonic()
        before = self._seen.get(rank)
        if before is None or before[0] != number:
            self._seen[rank] = number, now
            return 0.0
        return now - before[1]

    def who_is_missing(self) -> str:
        """Which ranks gave up, which are silent, and else which stand elsewhere than this one."""
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        try:
            ended = {rank: text for rank in others if (text := self.ended(rank)) is not None}
            if ended:
                return "; ".join(f"rank {rank} stopped: {text}" for rank, text in ended.items())
            before = {rank: self._read(rank) for rank in others}
            time.sleep(LOOK_SECONDS)
            ended = {rank: text for rank in others if (text := self.ended(rank)) is not None}
            if ended:
                return "; ".join(f"rank {rank} stopped: {text}" for rank, text in ended.items())
            after = {rank: self._read(rank) for rank in others}
        except RuntimeError:
            return "another rank ended, and what it last did cannot be read"
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            return "; ".join(f"rank {rank} {_said(after[rank])} ended or does not answer" for rank in silent)
        elsewhere = [rank for rank in others if (after[rank] or {}).get("where") != self.where] or others
        return "; ".join(f"rank {rank} {_said(after[rank])} is blocking the other ranks" for rank in elsewhere)

    def _run(self) -> None:
        number, where, since = 0, self.where, time.monotonic()
        while not self._end.wait(SECONDS):
            number += 1
            if self.where != where:
                where, since = self.where, time.monotonic()
            try:
                self._tell(number, time.monotonic() - since)
            except RuntimeError:
                return  # whoever holds the store has ended

    def _tell(self, number: int, seconds: float) -> None:
        sign = {"number": number, "where": self.where, "seconds": round(seconds)}
        sign |= {"process": os.getpid(), "host": socket.gethostname()}
        with self._lock:
            self._store.set(f"unfused/beat/{self._rank}", json.dumps(sign))

    def _read(self, rank: int) -> dict[str, Any] | None:
        return None if (text := self._get(f"unfused/beat/{rank}")) is None else dict(json.loads(text))

    def ended(self, rank: int) -> str | None:
        """Why a rank gave up; None where it has not."""
        return self._get(f"unfused/ended/{rank}")

    def _get(self, key: str) -> str | None:
        with self._lock:
            return self._store.get(key).decode() if self._store.check([key]) else None


def _said(sign: dict[str, Any] | None) -> str:
    if sign is None:
        return "(which never began)"
    return f"(process {sign['process']} on {sign['host']}, for {sign['seconds']} s at: {sign['where']})"
