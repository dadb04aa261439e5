"""What a user without root's right to read and write everything meets; tests may run as root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def without_root_rights() -> Iterator[None]:
    """Permissions hold for this thread while the block runs, also for root. Source: capset(2), version 3."""
    libc, header, data = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        pytest.skip(f"capget: {os.strerror(ctypes.get_errno())}")
    before = data[0].effective
    data[0].effective &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if libc.capset(ctypes.byref(header), data):
        pytest.skip(f"capset: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        data[0].effective = before
        libc.capset(ctypes.byref(header), data)


@contextlib.contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    """`path` has these permissions while the block runs."""
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(bits)
    try:
        with without_root_rights():
            yield
    finally:
        path.chmod(before)
