"""Seconds of the parts of an epoch on CUDA, with stand-ins for its events: a device that lags behind its host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unfused_fast.training.progress import PartTimer

LAG = 6
"""Events that the device has not reached yet."""


class Device:
    """Reaches an event every second, LAG events after the host has recorded it, or at once where it is waited for."""

    def __init__(self) -> None:
        self.recorded, self.reached, self.events = 0, 0, 0

    def synchronize(self) -> None:
        self.reached = self.recorded

    def event(self, enable_timing: bool) -> Any:
        device = self
        device.events += 1

        class Event:
            at = 0

            def record(self) -> None:
                device.recorded += 1
                device.reached = max(device.reached, device.recorded - LAG)
                self.at = device.recorded

            def query(self) -> bool:
                return self.at <= device.reached

            def elapsed_time(self, end: Any) -> float:
                assert self.query() and end.query(), "an event is read that the device has not reached"
                return 1000.0 * (end.at - self.at)

        return Event()


def test_events_are_used_again_and_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    timer = PartTimer(torch.device("cuda"))
    for steps in (50, 7):
        for _ in range(steps):
            with timer.part("forward"), timer.part("inner"):
                pass
            with timer.part("backward"):
                pass
        assert timer.read() == {"forward": 3.0 * steps, "inner": 1.0 * steps, "backward": 1.0 * steps}
    assert timer.read() == {}
    assert device.events <= 2 * LAG, "as many as are under way, not as many as parts"
