"""What saving within an epoch costs: seconds that training loses to one save, and their share of the time between two.

The same steps of `train pretrain` are timed in turn without a save, and with one that is begun before the first of them
and written while they go on; the time counts until both are done.
"""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path

import torch
from measure import arguments, pairs_of, record, seconds_of
from step import begun

from unfused_fast.clustering import MemoryBank
from unfused_fast.commands.demo import width_values
from unfused_fast.commands.measure.synthetic import synthetic_set
from unfused_fast.config import Config, with_values
from unfused_fast.methods.deep_clustering import DeepClustering
from unfused_fast.training import Position, quietly
from unfused_fast.training.options import DEFAULT_SECONDS


def with_and_without(
    config: Config, device: torch.device, clips: int, bank_rows: int, repeats: int, folder: Path
) -> tuple[list[float], list[float], int]:
    """Seconds of an epoch with a save and without one, repeat by repeat, and the bytes of a checkpoint.

    `bank_rows` is the size of the memory bank that is saved: the steps write the first rows of it.
    """
    method, trainer = begun(config, synthetic_set(folder, clips, 1.0), folder / "run", device)
    assert isinstance(method, DeepClustering)
    rows, dim = max(bank_rows, method.bank.clips), method.bank.rows.shape[1]
    method.bank = MemoryBank(rows, dim, method.bank.first_id, device)
    method.heads[0].assignments = torch.zeros(rows, dtype=torch.int64, device=device)
    saves = count(2)

    def plain() -> None:
        for item in trainer.batches(1):
            trainer.train_batch(item)
        trainer.saves.settle()

    def saved() -> None:
        trainer.saves.begin(Position(1, next(saves)), {}, {"step": trainer.step})
        plain()

    plain()
    seconds = pairs_of(lambda: seconds_of(saved, device), lambda: seconds_of(plain, device), repeats)
    size = max(path.stat().st_size for path in (folder / "run/checkpoints").glob("*.safetensors"))
    return *seconds, size


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="in one timing; they should take longer than the save")
    parser.add_argument("--bank-rows", type=int, default=250_000)
    parser.add_argument("--width", type=int, default=64, help="channels of the encoder; 64 is the paper's")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary folder")
    given = parser.parse_args()
    device = torch.device(given.device)
    values = {**width_values(given.width), "train.batch_size": given.batch_size, "cluster.k": 32}
    with tempfile.TemporaryDirectory(dir=given.folder) as name, quietly():
        saved, plain, size = with_and_without(
            with_values(Config(), values),
            device,
            given.steps * given.batch_size,
            given.bank_rows,
            given.repeats,
            Path(name),
        )
    settings = {"width": given.width, "batch": given.batch_size, "bank_rows": given.bank_rows, "steps": given.steps}
    settings["megabytes"] = round(size / 1e6)
    lost = [one - other for one, other in zip(saved, plain, strict=True)]
    record("save", "training lost to one save", "s", lost, device, **settings)
    shares = [100 * seconds / DEFAULT_SECONDS for seconds in lost]
    what = "share of training, saved every interval"
    record("save", what, "%", shares, device, interval=DEFAULT_SECONDS, **settings)


if __name__ == "__main__":
    main()
