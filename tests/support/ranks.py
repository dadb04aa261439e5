"""Runs the command line on several ranks, all processes forked from one that has imported everything.

python tests/support/ranks.py JOBS.json     a list of {"ranks": N, "arguments": [...]}; prints a list of lists of
                                            {"code", "said"}, one for each rank

Networks are not laid out channels last here: torch's BatchNorm of such a batch on a CPU adds up to 6e-5 of error, where
that of several ranks adds 4e-7; and without oneDNN and NNPACK a convolution of a part of a batch is that part of the
whole, bit for bit.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from unfused_fast import distill, pipeline, pretraining
from unfused_fast.cli import app
from unfused_fast.terminal import run_app


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def begin(arguments: list[str], own: dict[str, str], said: Path) -> int:
    """Starts the command line in a process; its id."""
    sys.stdout.flush()
    started = os.fork()
    if started:
        return started
    try:
        os.environ.update(own)
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


def run(ranks: int, arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """The command on each rank to its end."""
    port = free_port()
    said = [folder / f"{port}-{rank}" for rank in range(ranks)]
    owns = [environment(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
    processes = [begin(arguments, own, file) for own, file in zip(owns, said, strict=True)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return [{"code": code, "said": file.read_text()} for code, file in zip(codes, said, strict=True)]


def prepare() -> None:
    """Imports once what every process needs, and leaves no thread behind that a fork would lose."""
    pipeline.import_dali()
    for heavy in ("matplotlib.pyplot", "torch.utils.tensorboard", "zarr", "torch._dynamo", "torch.distributed"):
        importlib.import_module(heavy)
    torch.set_num_threads(1)
    for module in (pretraining, distill):
        module.prepare_for = lambda network, device: network  # type: ignore[attr-defined]
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)


def main() -> None:
    prepare()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps([run(job["ranks"], job["arguments"], Path(name)) for job in jobs]))


if __name__ == "__main__":
    main()
