"""How well an epoch used its device: the share of its arithmetic, the memory, and the shares of time spent waiting."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from unfused_fast.config import Config
from unfused_fast.models import operations
from unfused_fast.training.options import resolve_amp

A100 = 312e12, 19.5e12
LIMITS = {
    "A100-SXM4-40GB": A100,
    "A100-SXM4-80GB": A100,
    "A100-PCIE-40GB": A100,
    "A100 80GB PCIe": A100,
    "H100 80GB HBM3": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H200": (989e12, 67e12),
    "L4": (121e12, 30.3e12),
    "L40S": (362e12, 91.6e12),
    "GeForce RTX 3090": (71e12, 35.6e12),
    "GeForce RTX 4090": (165e12, 82.6e12),
}
"""Operations a second, by name without NVIDIA: of dense bf16 products added up in float32, and of float32 without TF32.
Source: NVIDIA data sheets and white papers; figures with sparsity are halved.
"""
WAITED = {"load": "data_share", "collectives": "collectives_share"}
"""Parts of an epoch in which nothing is computed, and the names of their shares."""
SHOWN = 0.1
"""Share of waiting from which it is worth a reader's attention."""


class Usage:
    """What an epoch did with the device of this process."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._device = device
        name = torch.cuda.get_device_name(device).removeprefix("NVIDIA ") if device.type == "cuda" else ""
        bf16, fp32 = LIMITS.get(name, (None, None))
        self._limit = bf16 if resolve_amp(config, device) else fp32
        self._operations, self._of = 0, dict[tuple[object, ...], int]()
        self._began = 0.0

    def begin(self) -> None:
        """An epoch begins, or what is left of one."""
        self._operations, self._began = 0, time.perf_counter()

    def ran(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Counts a forward pass of the network, and where gradients are on its backward pass. Each kind is counted on
        tensors without memory when it is first seen; the device is not asked.
        """
        if self._limit is None:
            return
        kind = (network, torch.is_grad_enabled(), *(one.shape for one in inputs))
        if kind not in self._of:
            self._of[kind] = operations(network, inputs, backward=torch.is_grad_enabled())
        self._operations += self._of[kind]

    def read(self, parts: Mapping[str, float]) -> dict[str, float | None]:
        """Of the time since `begin`: `mfu`, operations of the networks divided by what the device could do, None where
        its limit is not known; `memory_gb`, the most that this process has held of a GPU's memory (of PyTorch), or of
        the machine's; and the shares of WAITED, of those parts (in seconds) that there were.

        k-means, heads outside the network, views and the optimiser are not in `mfu`. The share of memory bandwidth is
        left out: what kernels read and write cannot be known without a profiler.
        """
        seconds = time.perf_counter() - self._began
        used = None if self._limit is None else round(self._operations / (self._limit * seconds), 4)
        shares = {name: round(parts[part] / seconds, 4) for part, name in WAITED.items() if part in parts}
        return {"mfu": used, "memory_gb": round(_peak(self._device) / 1e9, 3), **shares}


def in_words(used: Mapping[str, float | None]) -> str:
    """What an epoch's line says of it: MFU where it is known, waiting where it takes long."""
    words = [] if (share := used["mfu"]) is None else [f"  MFU {share:.0%}"]
    for name, cause in ("data_share", "data"), ("collectives_share", "other ranks"):
        if (waited := used.get(name) or 0.0) > SHOWN:
            words.append(f"  {waited:.0%} waiting for {cause}")
    return "".join(words)


def _peak(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # on Linux getrusage's would count what the process was before it became this program
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
