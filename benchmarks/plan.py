"""What `plan` says of an epoch here beside epochs of the real `train pretrain`, for sets of three sizes."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measure import record

from unfused_fast.demo import width_values
from unfused_fast.memory import free_memory
from unfused_fast.plan import Machine, clusters_of, plan
from unfused_fast.plan_bytes import FLAC_SHARE, step_cost
from unfused_fast.plan_rates import measured_here
from unfused_fast.pretrain import pretrain
from unfused_fast.settings import preset, with_values
from unfused_fast.synthetic import synthetic_set
from unfused_fast.training import Options, resolve_batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=16, help="channels of the encoder; 64 is the paper's")
    parser.add_argument("--epochs", type=int, default=4, help="the first is warm-up and does not count")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    options, free = Options(device), free_memory(device)
    values = {
        **width_values(given.width),
        "train.epochs": given.epochs,
    }
    config = with_values(preset("recommended", "pretrain"), values)
    machine = Machine(device.type, float(free.device), float(free.host))
    for clips in given.clips:
        rates = measured_here(config, options, given.seconds, resolve_batch_size(config, clips))
        cost = step_cost(config, clusters_of(config, clips))
        planned = plan(config, clips, given.seconds, machine, rates, FLAC_SHARE, cost)
        with tempfile.TemporaryDirectory() as name:
            out = Path(name) / "run"
            pretrain(config, synthetic_set(Path(name), clips, given.seconds), out, options)
            rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][1:]
        ratios = [planned.epoch_seconds / (row["epoch_seconds"] + row["parts"].get("save", 0.0)) for row in rows]
        settings = {"clips": clips, "seconds": given.seconds, "width": given.width, "data": planned.store}
        record("plan", "seconds of an epoch, planned / measured", "ratio", ratios, device, **settings)


if __name__ == "__main__":
    main()
