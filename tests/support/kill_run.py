"""Kills runs of `train pretrain` (by any method), `distill` and `linear` with SIGKILL at random moments; each must end
as the undisturbed.

python tests/support/kill_run.py --kills 25 --seed 0 --stage pretrain

A run saves after every step. After a random number of steps and a random moment more it is killed; another process goes
on with --resume, until one finishes. Then the newest checkpoint, the bank, the result and the log must be those of a
run that nobody killed, bit for bit but for times. A run that ends too soon is followed by another, until the kills are
done. With --ranks 2 one of two processes is killed, and the other has to end by itself. With a kind of method_kinds.py
as --stage, or methods for all of them, every second signal is SIGTERM, after which a run saves and ends.

A run of `train linear` saves nothing on its way and begins again: it must take what a kill left, and its heads, result
and confusion.png must be those of the undisturbed run. Its moments count from the parts it goes through, steps among
them.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from method_kinds import DECARS, KINDS, PARTS, flags, sets
from ranks import HEAVY, environment, free_port
from safetensors.torch import save_file
from same_runs import assert_same_linear, assert_same_run

from unfused_fast.cli import app
from unfused_fast.commands.exits import run_app
from unfused_fast.data import dali as pipeline
from unfused_fast.stages import linear_heads as linear
from unfused_fast.training import loop
from unfused_fast.training import run_directory as run

TINY = (
    "model.channels=4 model.dim=32 model.proj_hidden=32 model.proj_dim=16 cluster.k=4 train.batch_size=16 "
    "train.amp=fp32 aug.mixup.memory=32"
)
EPOCHS = 3
STEPS: dict[str, list[tuple[Any, str]]] = {
    "pretrain": [(loop.Trainer, "train_batch")],
    "distill": [(loop.Trainer, "train_batch")],
    "linear": [
        *((linear, name) for name in ("eval_features", "head_losses", "plot_confusions")),
        *((run, name) for name in ("FileLock", "write_json")),
    ],
}
"""Stage -> what it does again and again, from which the moments of kills count."""
LEFT = "result.json", "result.json.new", "confusion.png", "config.json", "config.json.new", "run.lock"
"""Files of a run without checkpoints, from the last one written."""


def command(kind: str, shards: Path, teacher: Path, out: Path) -> list[str]:
    """The arguments of a tiny run that saves after every step: of a stage, or of pre-training by a method."""
    stage, tiny = kind, sets(TINY)
    if kind not in STEPS:
        stage, read = "pretrain", " ".join(value for value in TINY.split() if not value.startswith("cluster."))
        tiny = [*sets(f"{read} {PARTS}"), *flags(kind)]
    if stage == "linear":
        given = ["train", stage, str(shards), "--out", str(out), "--epochs", str(EPOCHS), "--encoder", str(teacher)]
        return [*given, "--device", "cpu"]
    more = ["--teacher", str(teacher)] if stage == "distill" else []
    return [
        *("train", stage, str(shards), "--out", str(out), "--epochs", str(EPOCHS), "--save-every", "1steps"),
        *("--device", "cpu", "--timeout", "15", *more, *tiny),
    ]


def begin(arguments: list[str], told: int, said: Path, ranks: int = 1) -> list[int]:
    """Starts the command line on so many ranks, of which the first writes a byte to the pipe `told` with each step; the
    ids of the processes.
    """
    port = free_port()
    return [
        _begin(arguments, told, said, environment(rank, ranks, port) if ranks > 1 else {"RANK": "0"})
        for rank in range(ranks)
    ]


def _begin(arguments: list[str], told: int, said: Path, own: dict[str, str]) -> int:
    sys.stdout.flush()
    started = os.fork()
    if started:
        return started

    def telling(original: Any) -> Any:
        def step(*given: Any, **named: Any) -> Any:
            if own["RANK"] == "0":
                os.write(told, b"!")
            return original(*given, **named)

        return step

    def keeping(*given: Any) -> torch.Tensor:
        heads = train_heads(*given)
        save_file({"heads": heads.contiguous()}, heads_of(Path(out)))
        return heads

    try:
        os.environ.update(own)
        out, train_heads, linear.train_heads = arguments[arguments.index("--out") + 1], linear.train_heads, keeping
        for owner, name in STEPS[arguments[1]]:
            setattr(owner, name, telling(getattr(owner, name)))
        with said.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv[1:] = arguments
        run_app(app)
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def heads_of(out: Path) -> Path:
    """Where the harness keeps the heads that a run of `train linear` trained; the run itself does not."""
    return out.with_name(f"{out.name}.heads")


def finish(arguments: list[str], said: Path, ranks: int = 1) -> None:
    """Runs the command line to its end. Raises SystemExit when it fails."""
    reading, told = os.pipe()
    statuses = [os.waitpid(process, 0)[1] for process in begin(arguments, told, said, ranks)]
    if any(statuses):
        raise SystemExit(f"{arguments}: failed\n{said.read_text()}")
    os.close(reading)
    os.close(told)


def left_by(out: Path) -> str:
    """What the kill came in the middle of, by the files it left."""
    names = {path.name for folder in ("checkpoints", "bank.zarr") for path in (out / folder).glob("*")}
    if not (out / "checkpoints").exists():
        own = {path.name for path in out.glob("*")}
        return next((f"with {name} there" for name in LEFT if name in own), "before the directory")
    unfinished = any(name.endswith((".partial", ".new", ".stale")) for name in names)
    states = {name.rsplit(".", 1)[0] for name in names if name.endswith(".safetensors")}
    whole = {name.rsplit(".", 1)[0] for name in names if name.endswith(".json")}
    return "within a save" if unfinished or states != whole else "between saves" if whole else "before any save"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shards", type=Path, required=True, help="a shard set with a train split of a few dozen clips"
    )
    parser.add_argument("--stage", choices=[*STEPS, *KINDS, *DECARS, "methods"], default="pretrain")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together; one of them is killed")
    parser.add_argument("--kills", type=int, default=25, help="of each kind, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=int, default=0, help="steps from a start to the kill, at least")
    parser.add_argument("--steps", type=int, default=5, help="steps from a start to the kill, at most")
    parser.add_argument("--longest", type=float, default=0.2, help="seconds from a step to the kill, at most")
    given = parser.parse_args()
    pipeline.import_dali()  # once for all processes, as what follows
    for heavy in HEAVY:
        importlib.import_module(heavy)
    torch.set_num_threads(1)
    chance, left, started = random.Random(given.seed), collections.Counter[str](), time.perf_counter()
    kills, runs = 0, 0
    with tempfile.TemporaryDirectory() as name:
        for kind in (*KINDS, *DECARS) if given.stage == "methods" else (given.stage,):
            (folder := Path(name) / kind).mkdir()
            killed, more = kill_runs(kind, folder, given, chance, left)
            kills, runs = kills + killed, runs + more
    ranks_said = f" on {given.ranks} ranks" if given.ranks > 1 else ""
    print(
        f"seed {given.seed}, {given.stage}{ranks_said}: {kills} kills of {runs} runs, "
        f"{time.perf_counter() - started:.0f} s, every run ended as the undisturbed one; killed "
        f"{', '.join(f'{left[what]} {what}' for what in sorted(left))}"
    )
    return 0


def kill_runs(
    kind: str, folder: Path, given: argparse.Namespace, chance: random.Random, left: collections.Counter[str]
) -> tuple[int, int]:
    """Kills runs of one kind in `folder`; how many kills, of how many runs. Raises SystemExit where one differs."""
    said, teacher, kills, runs = folder / "said", folder / "teacher", 0, 0
    if kind in ("distill", "linear"):
        finish(command("pretrain", given.shards, teacher, teacher), said)
    finish(command(kind, given.shards, teacher, folder / "whole"), said, given.ranks)
    while kills < given.kills:
        out, ended = folder / f"run-{runs}", False
        runs += 1
        while not ended:
            reading, told = os.pipe()
            arguments = [*command(kind, given.shards, teacher, out), "--resume"]
            processes = begin(arguments, told, said, given.ranks)
            os.close(told)
            if kills < given.kills:
                for _ in range(chance.randint(given.least, given.steps)):
                    os.read(reading, 1)
                time.sleep(chance.uniform(0, given.longest))
                number = signal.SIGTERM if given.stage not in STEPS and kills % 2 else signal.SIGKILL
                os.kill(processes[chance.randrange(given.ranks)], number)
            codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
            os.close(reading)
            stopped, ended = min(codes) < 0 or 130 in codes, codes[0] == 0
            if not ended and not stopped:
                raise SystemExit(f"seed {given.seed}, {kind}, kill {kills}: it failed\n{said.read_text()[-3000:]}")
            if stopped:
                kills += 1
                left[left_by(out)] += 1
        try:
            if kind == "linear":
                assert_same_linear(out, folder / "whole", heads_of)
            else:
                assert_same_run(out, folder / "whole")
        except AssertionError as error:
            raise SystemExit(f"seed {given.seed}, {kind}, kill {kills}: not the undisturbed run: {error}") from error
    if given.stage not in STEPS and "damaged" in said.read_text():  # an earlier checkpoint gives the same run
        raise SystemExit(f"{kind}: a checkpoint was not taken\n{said.read_text()[-3000:]}")
    return kills, runs


if __name__ == "__main__":
    sys.exit(main())
