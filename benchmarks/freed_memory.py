"""Clips a second of a training step on the CPU, with glibc as it is and with memory.freed_memory_kept, in turns.

Each measurement is a process of its own: --one is what it measures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
from measure import arguments, record

from unfused_fast.commands.demo import width_values
from unfused_fast.config import preset, with_values
from unfused_fast.memory import freed_memory_kept
from unfused_fast.models import PretrainNetwork

KINDS = {"as it is": False, "freed memory kept": True}
CPU = torch.device("cpu")


def step_rates(width: int, batch: int) -> list[float]:
    """Of each step of this process: a forward pass without gradient, one with, and its backward pass."""
    config = with_values(preset("recommended", "pretrain"), width_values(width))
    network = PretrainNetwork(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    crop, found = torch.randn(batch, 1, config.frontend.n_mels, config.crop_frames), list[float]()
    for _ in range(10):
        start = time.perf_counter()
        with torch.no_grad():
            network(crop)
        network(crop).sum().backward()
        network.zero_grad(set_to_none=True)
        found.append(batch / (time.perf_counter() - start))
    return found[2:]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, nargs="+", default=[16, 64], help="64 is the paper's encoder")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--one", choices=list(KINDS), help="print what one process measures")
    given = parser.parse_args()
    if given.one:
        with freed_memory_kept(CPU) if KINDS[given.one] else nullcontext(True) as kept:
            if not kept:
                sys.exit("this system's malloc keeps nothing")
            print(json.dumps(step_rates(given.width[0], given.batch_size)))
        return
    for width in given.width:
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(given.repeats):
            for kind, found in rates.items():
                flags = ["--one", kind, "--width", str(width), "--batch-size", str(given.batch_size)]
                done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=True)
                found += json.loads(done.stdout)
        for kind, found in rates.items():
            settings = {"width": width, "batch": given.batch_size, "rounds": given.repeats}
            record("freed_memory", f"bare training step, malloc {kind}", "clips/s", found, CPU, **settings)


if __name__ == "__main__":
    main()
