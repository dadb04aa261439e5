"""Epochs a second of the real `train pretrain` on the embedded recordings, and what the parts of an epoch take."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from measure import record

from unfused_fast.commands.demo import width_values
from unfused_fast.config.presets import preset, with_values
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.demo import union_rows
from unfused_fast.shards.packing.pack import pack
from unfused_fast.stages.pretraining import pretrain
from unfused_fast.training.options import Options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="the first is warm-up and does not count")
    parser.add_argument("--width", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as name:
        shards = pack(union_rows(), Path(name) / "shards", statistics=log_mel_statistics).shard_set
        for width in given.width:
            values = {
                **width_values(width),
                "cluster.k": 64,
                "train.batch_size": given.batch_size,
                "train.epochs": given.epochs,
            }
            out = Path(name) / f"run-{width}"
            pretrain(with_values(preset("recommended", "pretrain"), values), shards, out, Options(device))
            rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][1:]
            settings = {
                "clips": shards.manifest.splits["train"].clips,
                "width": width,
                "batch": given.batch_size,
                "k": 64,
            }
            record(
                "epoch", "train pretrain", "epochs/s", [1 / row["epoch_seconds"] for row in rows], device, **settings
            )
            record("epoch", "train pretrain", "clips/s", [row["clips_per_second"] for row in rows], device, **settings)
            for part in dict.fromkeys(name for row in rows for name in row["parts"]):  # not every epoch has all
                shares = [row["parts"].get(part, 0.0) / row["epoch_seconds"] for row in rows]
                record("epoch", f"share of an epoch: {part}", "share", shares, device, **settings)


if __name__ == "__main__":
    main()
