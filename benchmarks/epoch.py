"""Epochs a second of the real `train pretrain` on the embedded recordings, and what the parts of an epoch take."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measure import arguments, record

from unfused_fast.commands.demo import packed_set, width_values
from unfused_fast.commands.measure import parts
from unfused_fast.config import preset, with_values
from unfused_fast.training import Options


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as name:
        shards = packed_set("union", Path(name))
        for width in given.width:
            values = {**width_values(width), "cluster.k": 64, "train.batch_size": given.batch_size}
            bench = parts.Bench(shards, with_values(preset("recommended", "pretrain"), values), Options(device))
            for row in parts.epoch(bench):
                record("epoch", row.what, row.unit, row.values, device, width=width, batch=given.batch_size, k=64)


if __name__ == "__main__":
    main()
