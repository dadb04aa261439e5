"""Epochs a second of the real `train pretrain` on the embedded recordings, and what the parts of an epoch take, with
each value of `bank.view` in turns.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from measure import arguments, record

from unfused_fast.commands.demo import packed_set, width_values
from unfused_fast.commands.measure import parts
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config import preset, with_values
from unfused_fast.training import Options

VIEWS = ("separate", "training")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--clips", type=int, help="of a synthetic set, in place of the recordings")
    given = parser.parse_args()
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = packed_set("union", folder) if given.clips is None else synthetic_set(folder, given.clips, 2.0)
        clips = shards.manifest.splits["train"].clips
        for width in given.width:
            values = {**width_values(width), "cluster.k": 64, "train.batch_size": given.batch_size}
            settings = {"clips": clips, "width": width, "batch": given.batch_size, "k": 64}
            found = defaultdict[tuple[str, str, str], list[float]](list)
            rates = defaultdict[str, list[float]](list)
            for _ in range(given.repeats):
                for view in VIEWS:
                    config = with_values(preset("recommended", "pretrain"), {**values, "bank.view": view})
                    for row in parts.epoch(parts.Bench(shards, config, Options(device), quick=True)):
                        found[view, row.what, row.unit] += row.values
                        if row.unit == "clips/s":
                            rates[view].append(median(row.values))
            for (view, what, unit), measured in found.items():
                record("epoch", what, unit, measured, device, **settings, view=view)
            ratios = [one / other for other, one in zip(*rates.values(), strict=True)]
            record("epoch", "clips/s by bank.view training / separate, same round", "ratio", ratios, device, **settings)


if __name__ == "__main__":
    main()
