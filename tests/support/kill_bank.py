"""Kills processes that save the memory bank with SIGKILL at random moments; each time what is left must be whole.

python tests/support/kill_bank.py --kills 30 --seed 0

A process goes on from the newest generation, as a resumed run does, and saves epoch after epoch, each with a file that
stands for its checkpoint. After each kill another process opens the bank: every generation has the bytes of its epoch,
and the newest checkpoint has its generation.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from unfused_fast.clustering import bank_files
from unfused_fast.clustering.bank import MemoryBank
from unfused_fast.clustering.bank_files import GENERATIONS_KEPT, Generation

ROWS, DIM, FIRST_ID = 2000, 16, 100


def content(epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows (N, D) and assignments (N,) of an epoch."""
    generator = torch.Generator().manual_seed(epoch)
    return torch.randn(ROWS, DIM, generator=generator), torch.randint(9, (ROWS,), generator=generator)


def epochs_in(folder: Path, pattern: str) -> list[int]:
    """Epochs of what the folder holds, ascending."""
    return sorted(int(path.name[-6:]) for path in folder.glob(pattern))


def keep_saving(folder: Path, told: int) -> None:
    """Saves one epoch after the other until it is killed; where odd, the last epoch again, as after damage. Writes a
    byte to the pipe `told` when it begins, and with each checkpoint.
    """
    done = epochs_in(folder, "checkpoint-??????")
    epoch = done[-1] if done else 0
    bank = MemoryBank(ROWS, DIM, FIRST_ID, torch.device("cpu"))
    if epoch:
        bank.load(folder, epoch)
    epoch -= epoch % 2

    def publish(epoch: int) -> None:
        (folder / f"checkpoint-{epoch:06d}").touch()
        os.write(told, b"!")

    os.write(told, b"!")
    while True:
        epoch += 1
        rows, assignments = content(epoch)
        bank.write(torch.arange(ROWS) + FIRST_ID, rows)
        bank.snapshot(folder, epoch, assignments, then=partial(publish, epoch))()


def check(folder: Path) -> None:
    """Raises AssertionError unless all that goes by the name of a generation is whole, and of its own epoch."""
    generations, checkpoints = epochs_in(folder, "gen-??????"), epochs_in(folder, "checkpoint-??????")
    for epoch in generations:
        generation, (rows, assignments) = Generation(folder / f"gen-{epoch:06d}"), content(epoch)
        assert generation.manifest.epoch == epoch
        assert torch.equal(generation.rows(), rows) and torch.equal(generation.assignments(), assignments), epoch
    assert len(generations) <= GENERATIONS_KEPT + 1
    if checkpoints:
        assert checkpoints[-1] in generations, (checkpoints[-1], generations)
        assert generations[-1] - checkpoints[-1] <= 1


def child(work: Callable[[], None]) -> int:
    """Starts a process of its own for the work; exit code 1 when it fails."""
    sys.stdout.flush()
    started = os.fork()
    if started:
        return started
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.15, help="seconds from a save to the kill, at most")
    given = parser.parse_args()
    bank_files.CHUNK_BYTES = 8192  # 16 files of rows
    import zarr  # once for all children

    chance, left, started = random.Random(given.seed), collections.Counter[str](), time.perf_counter()
    kills = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bank.zarr"
        folder.mkdir()
        while kills < given.kills:
            reading, told = os.pipe()
            writer = child(partial(keep_saving, folder, told))
            os.close(told)
            for _ in range(1 + chance.randrange(4)):  # so that there are new epochs however slow the disk is
                if not os.read(reading, 1):
                    raise SystemExit(f"seed {given.seed}, kill {kills}: the writer ended by itself")
            time.sleep(chance.uniform(0, given.longest))
            os.kill(writer, signal.SIGKILL)
            os.close(reading)
            if os.WTERMSIG(os.waitpid(writer, 0)[1]) != signal.SIGKILL:
                raise SystemExit("the writer ended by itself")
            kills += 1
            left.update("old" if (path / "old").exists() else "new" for path in folder.glob("tmp-*"))
            if os.waitpid(child(partial(check, folder)), 0)[1]:
                raise SystemExit(f"seed {given.seed}, kill {kills}: what is left is not whole")
        last = epochs_in(folder, "gen-??????")
    print(
        f"seed {given.seed}, zarr {zarr.__version__}: {kills} kills, {time.perf_counter() - started:.0f} s, every bank "
        f"whole; epochs {last}; unfinished when killed: {left['new']} being written, {left['old']} being deleted"
    )
    return 0 if left["new"] and last and last[-1] > 2 else 1


if __name__ == "__main__":
    sys.exit(main())
