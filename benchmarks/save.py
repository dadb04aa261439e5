"""What saving within an epoch costs: seconds that training loses to one save, and their share of the time between two.

The same steps of `train pretrain` are timed in turn without a save, and with one that is begun before the first of them
and written while they go on; the time counts until both are done.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from loader import write_noise
from measure import record, seconds_of

from unfused_fast.config.fields import Config
from unfused_fast.config.presets import with_values
from unfused_fast.mel import log_mel_statistics
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.row import SourceRow
from unfused_fast.stages.pretraining import pretrainer
from unfused_fast.training.checkpoint import Position
from unfused_fast.training.options import DEFAULT_SECONDS, Options, quietly
from unfused_fast.training.run_directory import Run


def with_and_without(
    config: Config, device: torch.device, clips: int, bank_rows: int, repeats: int, folder: Path
) -> tuple[list[float], list[float], int]:
    """Seconds of an epoch with a save and without one, repeat by repeat, and the bytes of a checkpoint.

    `bank_rows` is the size of the memory bank that is saved: the steps write the first rows of it.
    """
    rows = [SourceRow(path, path.name) for path in write_noise(folder, clips, 1.0)]
    shards = pack(rows, folder / "set", statistics=log_mel_statistics).shard_set
    options = Options(device, compile=False)
    config = with_values(config, {"data.store": "resident"})
    run = Run(folder / "run", "pretrain", config, shards, options)
    method, trainer = pretrainer(config, shards, options, run)
    trainer.start()
    trainer.begin_epoch(1)
    assert method.bank is not None
    more = torch.randn(max(0, bank_rows - len(method.bank.rows)), method.bank.rows.shape[1], device=device)
    method.bank.rows = torch.cat([method.bank.rows, more])

    def epoch(batch: int | None) -> None:
        if batch is not None:
            trainer.saves.begin(Position(1, batch), {}, {"step": trainer.step})
        for item in trainer.batches(1):
            trainer.train_batch(item, 1)
        trainer.saves.settle()

    epoch(1)
    pairs = [
        (seconds_of(partial(epoch, turn + 2), device), seconds_of(partial(epoch, None), device))
        for turn in range(repeats)
    ]
    size = max(path.stat().st_size for path in run.checkpoints.glob("*.safetensors"))
    return [one for one, _ in pairs], [other for _, other in pairs], size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="in one timing; they should take longer than the save")
    parser.add_argument("--bank-rows", type=int, default=250_000)
    parser.add_argument("--width", type=int, default=64, help="channels of the encoder; 64 is the paper's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--interval", type=float, default=DEFAULT_SECONDS, help="seconds from one save to the next")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device, width = torch.device(given.device), given.width
    network = {"model.channels": width, "model.dim": 32 * width, "model.proj_hidden": 32 * width}
    config = with_values(Config(), {**network, "train.batch_size": given.batch_size, "cluster.k": 32})
    with tempfile.TemporaryDirectory(dir=given.folder) as name, quietly():
        saved, plain, size = with_and_without(
            config, device, given.steps * given.batch_size, given.bank_rows, given.repeats, Path(name)
        )
    settings = {"width": width, "batch": given.batch_size, "bank_rows": given.bank_rows, "steps": given.steps}
    settings["megabytes"] = round(size / 1e6)
    lost = [one - other for one, other in zip(saved, plain, strict=True)]
    record("save", "training lost to one save", "s", lost, device, **settings)
    shares = [100 * seconds / given.interval for seconds in lost]
    record("save", "share of training, saved every interval", "%", shares, device, interval=given.interval, **settings)


if __name__ == "__main__":
    main()
