"""Clips a second of a training step on the CPU, with glibc as it is and with memory.freed_memory_kept, in turns."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
from measure import record

from unfused_fast.commands.demo import width_values
from unfused_fast.config.presets import preset, with_values
from unfused_fast.data.memory import freed_memory_kept
from unfused_fast.models.audiontt import PretrainNetwork

KINDS = {"as it is": False, "freed memory kept": True}
CPU = torch.device("cpu")


def step_rates(width: int, batch: int, steps: int, bf16: bool) -> list[float]:
    """Of each step of this process: a forward pass without gradient, one with, and its backward pass."""
    config = with_values(preset("recommended", "pretrain"), width_values(width))
    network = PretrainNetwork(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    crop, found = torch.randn(batch, 1, config.frontend.n_mels, config.crop_frames), list[float]()
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                network(crop)
            loss = network(crop).sum()
        loss.backward()
        network.zero_grad(set_to_none=True)
        found.append(batch / (time.perf_counter() - start))
    return found[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, nargs="+", default=[16, 64], help="64 is the paper's encoder")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="of a process; two are warm-up")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--one", choices=list(KINDS), help="print what one process measures")
    given = parser.parse_args()
    if given.one:
        with freed_memory_kept(CPU) if KINDS[given.one] else nullcontext(True) as kept:
            if not kept:
                sys.exit("this system's malloc keeps nothing")
            print(json.dumps(step_rates(given.width[0], given.batch_size, given.steps, given.bf16)))
        return
    for width in given.width:
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(given.rounds):
            for kind, found in rates.items():
                flags = ["--one", kind, "--width", str(width), "--batch-size", str(given.batch_size)]
                flags += ["--bf16"] if given.bf16 else []
                command = [sys.executable, __file__, *flags, "--steps", str(given.steps)]
                found += json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for kind, found in rates.items():
            settings = {"width": width, "batch": given.batch_size, "rounds": given.rounds, "bf16": given.bf16}
            record("freed_memory", f"bare training step, malloc {kind}", "clips/s", found, CPU, **settings)


if __name__ == "__main__":
    main()
